"""The figures of benchmarks/arms.py: learning curves read from run folders, compared by seed, printed and drawn."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy import stats

from ovd_gym.config import load_config

COLOURS = {
    "grpo": "#0072b2",
    "score-reward": "#d55e00",
    "ovd": "#009e73",
    "ovd-prefix": "#56b4e9",
    "token-opd": "#cc79a7",
    "form only": "#999999",
    "entropy only": "#000000",
}
"""Okabe and Ito (2008)."""


@dataclass(frozen=True)
class Curve:
    """What one run measured, at each of its evaluations."""

    steps: list[int]
    tokens: list[int]
    """Sampled by the student up to there."""
    em: list[float]
    """On the held-out questions."""
    episodes: int
    """Of the student, a training step."""
    demonstrations: float
    """In the whole run."""
    trained_em: float
    """Exact match of the student's episodes in the last five training steps, by the run's own reward."""
    seconds: float
    """Wall-clock time of all training steps."""

    @classmethod
    def of(cls, run: Path) -> Curve:
        """Read the run folder ``run``."""
        rows, held_out = _rows(run / "metrics.jsonl"), _rows(run / "evaluations.jsonl")
        rollout = load_config(run / "config.yaml").rollout
        episodes = rollout.tasks_per_step * rollout.group_size
        tokens = [0, *accumulate(row["sampled_tokens"] for row in rows)]
        return cls(
            steps=[row["step"] for row in held_out],
            tokens=[tokens[row["step"]] for row in held_out],
            em=[row["accuracy"] for row in held_out],
            episodes=episodes,
            demonstrations=episodes * sum(row.get("replaced", 0.0) for row in rows),
            trained_em=float(np.mean([row["em"] for row in rows[-5:]])),
            seconds=sum(row["seconds"] for row in rows),
        )

    @property
    def last(self) -> float:
        """Exact match after the last step."""
        return self.em[-1]

    def episodes_to(self, target: float) -> int | None:
        """Episodes after which an evaluation first gave ``target`` or more; None: none did."""
        reached = [step for step, em in zip(self.steps, self.em, strict=True) if em >= target]
        return reached[0] * self.episodes if reached else None


def interval(values: Sequence[float]) -> list[float]:
    """Mean and 95 % interval of Student's t, the seeds being the sample."""
    mean = float(np.mean(values))
    margin = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else math.nan
    return [round(value, 4) for value in (mean, mean - margin, mean + margin)]


def compared(curves: Mapping[str, Sequence[Curve]], targets: Sequence[float]) -> dict[str, Any]:
    """By arm: held-out exact match before, after and against the first arm; what it took; every seed's curve."""
    first = next(iter(curves.values()))
    return {
        arm: {
            "before": interval([curve.em[0] for curve in by_seed]),
            "after": interval([curve.last for curve in by_seed]),
            "gain": interval([curve.last - curve.em[0] for curve in by_seed]),
            "difference": interval([a.last - b.last for a, b in zip(by_seed, first, strict=True)]),
            "episodes to": {f"{target:g}": [curve.episodes_to(target) for curve in by_seed] for target in targets},
            "demonstrations": round(float(np.mean([curve.demonstrations for curve in by_seed]))),
            "student tokens": round(float(np.mean([curve.tokens[-1] for curve in by_seed]))),
            "em in training": interval([curve.trained_em for curve in by_seed]),
            "seconds": [round(curve.seconds, 1) for curve in by_seed],
            "curves": [{"steps": c.steps, "tokens": c.tokens, "em": [round(em, 4) for em in c.em]} for c in by_seed],
        }
        for arm, by_seed in curves.items()
    }


# Showing ------------------------------------------------------------------------------------------------


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Exact match against student tokens, and where every seed ended, on many tasks and on one."""
    figure = Figure(figsize=(13, 5), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 2))
    for arm, found in report["many tasks"].items():
        tokens = np.mean([curve["tokens"] for curve in found["curves"]], axis=0) / 1000
        low, mean, high = _band([curve["em"] for curve in found["curves"]])
        left.plot(tokens, mean, "o-", color=COLOURS[arm], label=arm, markersize=4)
        left.fill_between(tokens, low, high, color=COLOURS[arm], alpha=0.08)
    left.set(xlabel="student tokens (thousands)", ylabel="held-out exact match", ylim=(0, 1))
    left.set_title("Trained on many tasks", loc="left", fontweight="bold")
    left.legend(loc="best", frameon=False, fontsize=8)
    draw_ends(middle, report["many tasks"], "Many tasks, at the end")
    draw_ends(right, report["one task"], "One task, at the end")
    for axes in (left, middle, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, format="png")


def draw_ends(axes: Axes, found: Mapping[str, Any], title: str) -> None:
    """A dot for each seed, the mean and its interval; dashed: before training."""
    for x, (arm, row) in enumerate(found.items()):
        mean, low, high = row["after"]
        axes.vlines(x, max(0.0, low), min(1.0, high), color=COLOURS[arm], alpha=0.4, linewidth=4)
        axes.plot([x] * len(row["curves"]), [curve["em"][-1] for curve in row["curves"]], ".", color=COLOURS[arm])
        axes.plot(x, mean, "_", color=COLOURS[arm], markersize=14)
    axes.axhline(next(iter(found.values()))["before"][0], color="black", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(found)), list(found), rotation=60, ha="right")
    axes.set_title(title, loc="left", fontweight="bold")


def _band(by_seed: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Lower bounds, means and upper bounds at each evaluation."""
    found = [interval(values) for values in zip(*by_seed, strict=True)]
    return [max(0.0, low) for _, low, _ in found], [mean for mean, _, _ in found], [min(1.0, h) for _, _, h in found]


def show(report: Mapping[str, Any]) -> None:
    """Print the comparison."""
    for title in ("many tasks", "one task"):
        table = Table("arm", "chosen", "before", "after", "- first arm", "episodes to", "demonstrations", title=title)
        for arm, row in report[title].items():
            reached = "; ".join(f"{target}: {found}" for target, found in row["episodes to"].items())
            cells = [_text(row[key]) for key in ("before", "after", "difference")]
            table.add_row(arm, report["tuning"][arm]["chosen"], *cells, reached, str(row["demonstrations"]))
        Console().print(table)


def _text(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
