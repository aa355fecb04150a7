"""Which numbers of a run are drawn, in which charts. Pure: rows of a run folder in, series out.

A chart holds up to three metrics (told apart by their dashes) of any number of runs (told apart by their colours).
What a run records and no chart names is drawn as well, each metric by itself, so that nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any, Literal, NamedTuple

__all__ = ["CHARTS", "Chart", "Line", "Rows", "charts_of", "number"]

Rows = Mapping[Literal["metrics", "evaluations"], Sequence[Mapping[str, Any]]]
"""The rows of one run: a metrics row per training step, an evaluations row per evaluation."""


class Line(NamedTuple):
    """One metric."""

    key: str
    label: str
    source: Literal["metrics", "evaluations"] = "metrics"
    scale: float = 1.0
    """What the values are multiplied by."""


class Chart(NamedTuple):
    """One picture."""

    group: str
    title: str
    why: str
    """What it shows, and what to look for."""
    lines: tuple[Line, ...]
    low: float | None = None
    high: float | None = None
    """Ends of the vertical axis; None: those of the numbers."""


_LEARNS, _HEALTH, _COST, _REST = "Learning", "Health", "Cost", "Everything else"
CHARTS = (
    Chart(
        _LEARNS,
        "Held-out accuracy",
        "Greedy episodes on questions that are never trained on, with 95 % Wilson intervals.",
        (Line("accuracy", "accuracy", "evaluations"),),
        0,
        1,
    ),
    Chart(
        _LEARNS,
        "Environment reward",
        "Means over the episodes of a training step; exact match is the share with reward 1.",
        (Line("reward", "reward"), Line("em", "exact match")),
        0,
        1,
    ),
    Chart(
        _LEARNS,
        "Teacher’s score / 9",
        "Mean score of whole trajectories and of single steps. Rising without the reward: the teacher is being gamed.",
        (Line("score", "trajectory", scale=1 / 9), Line("step_score", "steps", scale=1 / 9)),
        0,
        1,
    ),
    Chart(
        _LEARNS,
        "Score against outcome (AUROC)",
        "The probability that the teacher ranks a right episode above a wrong one; 0.5 is chance.",
        (Line("score_auroc", "training"), Line("score_auroc", "held out", "evaluations")),
        0,
        1,
    ),
    Chart(
        _LEARNS,
        "Demonstrations",
        "Shares of the student’s trajectories that the teacher rejected and that were replaced, and how often the "
        "demonstrator is right.",
        (Line("rejected", "rejected"), Line("replaced", "replaced"), Line("demonstrator_em", "demonstrator right")),
        0,
        1,
    ),
    Chart(_HEALTH, "Entropy", "Nats per sampled token. Towards 0: no more exploration.", (Line("entropy", "entropy"),)),
    Chart(_HEALTH, "KL to the reference", "Nats per token.", (Line("kl", "KL"),)),
    Chart(_HEALTH, "Clipped tokens", "Share of the tokens beyond the clip range.", (Line("clip_fraction", "clipped"),)),
    Chart(
        _HEALTH,
        "Importance weights",
        "Trainer over sampler, capped at 2; exactly 1 where both agree.",
        (Line("weight_mean", "mean"), Line("weight_max", "largest")),
    ),
    Chart(
        _HEALTH,
        "Trainer against sampler",
        "Largest difference of a token’s log-probability, in nats.",
        (Line("logprob_gap", "gap"),),
    ),
    Chart(
        _HEALTH,
        "Invalid scores",
        "Share of the teacher’s scores that are no number; they are masked, never 0.",
        (Line("invalid_share", "invalid"),),
        0,
    ),
    Chart(
        _HEALTH,
        "Groups without variance",
        "Share of the groups whose rewards are all equal.",
        (Line("zero_variance_share", "zero variance"),),
        0,
        1,
    ),
    Chart(
        _HEALTH,
        "Unfinished episodes",
        "Shares that ran out of turns or tokens, and that infrastructure broke.",
        (Line("truncated", "truncated"), Line("failed", "failed")),
        0,
    ),
    Chart(
        _HEALTH,
        "Likelihood of right episodes",
        "Nats per sampled token. A slow fall is an early sign of collapse.",
        (Line("correct_logprob", "log-probability"),),
    ),
    Chart(_HEALTH, "Gradient norm", "Before clipping.", (Line("grad_norm", "norm"),)),
    Chart(_HEALTH, "Value head", "Share of the variance of returns it explains.", (Line("explained_variance", "EV"),)),
    Chart(_COST, "Throughput", "Sampled tokens per second of rollout.", (Line("tokens_per_s", "tokens/s"),), 0),
    Chart(_COST, "Time per step", "Seconds, rollout and update.", (Line("seconds", "seconds"),), 0),
    Chart(
        _COST,
        "Peak memory",
        "GiB: of tensors on a GPU, of the whole process on a CPU.",
        (Line("peak_memory_gib", "peak"),),
        0,
    ),
    Chart(_COST, "Trained tokens", "Per update.", (Line("trained_tokens", "tokens"),), 0),
    Chart(_COST, "Turns per episode", "Mean number.", (Line("turns", "turns"),), 0),
)


def charts_of(runs: Sequence[Rows]) -> list[dict[str, Any]]:
    """The charts that have a number to show, as JSON.

    Each is ``{group, title, why, low, high, lines: [{label, runs: [{x, y, low, high} or None]}]}``, with one entry in
    ``runs`` for each of ``runs``; ``low`` and ``high`` are the ends of intervals, empty where there are none.
    """
    drawn = []
    for chart in (*CHARTS, *_others(runs)):
        lines = [{"label": line.label, "runs": [_series(rows, line) for rows in runs]} for line in chart.lines]
        lines = [line for line in lines if any(line["runs"])]
        if lines:
            drawn.append({**chart._asdict(), "lines": lines})
    return drawn


def _others(runs: Sequence[Rows]) -> list[Chart]:
    """A chart for each metric that none of :data:`CHARTS` names."""
    named = {line.key for chart in CHARTS for line in chart.lines} | {"step", "low", "high", "episodes"}
    found: dict[str, list[Line]] = {}
    for source in ("metrics", "evaluations"):
        for key in sorted({key for rows in runs for row in rows[source] for key in row} - named):
            found.setdefault(key, []).append(Line(key, "training" if source == "metrics" else "held out", source))
    return [Chart(_REST, key.replace("_", " "), "", tuple(lines)) for key, lines in found.items()]


def _series(rows: Rows, line: Line) -> dict[str, list[float | None]] | None:
    """The points of one line of one run; None where it has none."""
    points = [
        (row, step, value)
        for row in rows[line.source]
        if (step := number(row.get("step"))) is not None and (value := number(row.get(line.key))) is not None
    ]
    if not points:
        return None
    ends = line.key == "accuracy"
    return {
        "x": [step for _, step, _ in points],
        "y": _rounded(value * line.scale for _, _, value in points),
        "low": _rounded(number(row.get("low")) for row, _, _ in points) if ends else [],
        "high": _rounded(number(row.get("high")) for row, _, _ in points) if ends else [],
    }


def _rounded(values: Iterable[float | None]) -> list[float | None]:
    """Six significant digits: more than a reader sees, and half of the bytes."""
    return [None if value is None else float(f"{value:.6g}") for value in values]


def number(value: object) -> float | None:
    """``value`` if it is a number that can be drawn."""
    return float(value) if isinstance(value, int | float) and isfinite(value) else None
