"""The learning curve of a run as one picture: what it was trained for, what it gained, and how it kept its balance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ovd_gym.errors import DataError

__all__ = ["smooth", "write_curve"]


class _Line(NamedTuple):
    """How one metric is drawn."""

    key: str
    label: str
    colour: str
    scale: float = 1.0
    dash: str = "-"


# Colours of Okabe and Ito (2008): told apart by colour-blind readers too. Exact match is dashed because it often
# is the reward, and would hide it.
OUTCOME = (_Line("reward", "reward", "#0072b2"), _Line("em", "exact match", "#56b4e9", dash="--"))
SCORE = _Line("score", "teacher score / 9", "#d55e00", scale=1 / 9)
BALANCE = (_Line("entropy", "entropy (nats)", "#009e73"), _Line("kl", "KL to reference (nats)", "#cc79a7"))
HELD_OUT = "#000000"


def write_curve(
    path: str | Path, metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]], title: str
) -> None:
    """Draw a run's ``metrics`` (one mapping per training step) and ``evaluations`` as a PNG.

    The upper panel shows reward, exact match and the teacher's score, with held-out accuracy and its interval on
    top; the lower one entropy and KL. Dots are the numbers as they are, lines their moving average. What is
    missing, None or not finite is not drawn. Metrics and evaluations are those of a run folder's ``.jsonl`` files.

    Raises:
        DataError: when there is nothing to draw.
    """
    figure = Figure(figsize=(9, 6.5), dpi=120, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    drawn = [_draw(upper, metrics, line) for line in (*OUTCOME, SCORE)]
    drawn += [_draw_held_out(upper, evaluations), _draw_balance(lower, metrics)]
    if not any(drawn):
        raise DataError(
            f"nothing to draw for {title!r}: {len(metrics)} metric lines and {len(evaluations)} evaluations hold no "
            "number for any of step with reward, em, score, entropy, kl or accuracy"
        )
    upper.set_title(title, loc="left", fontweight="bold")
    upper.set_ylim(-0.03, 1.03)
    upper.set_ylabel("share of the maximum")
    lower.set_xlabel("training step")
    lower.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    if upper.get_legend_handles_labels()[0]:
        upper.legend(loc="best", frameon=False, ncols=2)
    figure.savefig(path, format="png")


def smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """A centred moving average over about a tenth of ``values``; shorter windows at the ends, so no lag.

    >>> smooth([1.0, 2.0, 6.0]).tolist()
    [1.0, 2.0, 6.0]
    """
    window = np.ones(1 + 2 * (len(values) // 20))
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _draw(axes: Axes, metrics: Sequence[Mapping[str, Any]], line: _Line) -> bool:
    """Draw one metric; whether there was anything to draw."""
    points = _points(metrics, line.key)
    if points:
        steps, values = zip(*points, strict=True)
        scaled = [value * line.scale for value in values]
        axes.plot(steps, scaled, ".", color=line.colour, alpha=0.35)
        axes.plot(steps, smooth(scaled), line.dash, color=line.colour, linewidth=1.8, label=line.label)
    return bool(points)


def _draw_held_out(axes: Axes, evaluations: Sequence[Mapping[str, Any]]) -> bool:
    """Draw accuracy points; an evaluation that carries no interval gets no bar."""
    points = [
        (step, accuracy, _finite(row.get("low")), _finite(row.get("high")))
        for row in evaluations
        if (step := _finite(row.get("step"))) is not None and (accuracy := _finite(row.get("accuracy"))) is not None
    ]
    for n, (step, accuracy, low, high) in enumerate(points):
        below = 0.0 if low is None else max(accuracy - low, 0.0)
        above = 0.0 if high is None else max(high - accuracy, 0.0)
        label = "held-out accuracy, 95 % interval" if n == 0 else None
        axes.errorbar([step], [accuracy], [[below], [above]], fmt="D", color=HELD_OUT, capsize=4, ms=5, label=label)
    return bool(points)


def _draw_balance(axes: Axes, metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Draw entropy on the left axis and KL on the right one: they differ by orders of magnitude."""
    right = axes.twinx()
    right.spines[["top", "left"]].set_visible(False)
    drawn = []
    for side, line in zip((axes, right), BALANCE, strict=True):
        drawn.append(_draw(side, metrics, line))
        side.set_ylabel(line.label, color=line.colour)
        side.tick_params(axis="y", labelcolor=line.colour)
        side.yaxis.set_visible(drawn[-1])
    return any(drawn)


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    pairs = ((_finite(row.get("step")), _finite(row.get(key))) for row in rows)
    return [(step, value) for step, value in pairs if step is not None and value is not None]


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and isfinite(value) else None
