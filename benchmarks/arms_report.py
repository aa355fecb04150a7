"""The figures of benchmarks/arms.py: learning curves read from run folders, compared by seed, printed and drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ovd_gym.config_files import load_config
from ovd_gym.records import Trajectory, load_jsonl
from ovd_gym.statistics import bootstrap_interval
from ovd_gym.teachers.registry import make_teacher

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

Outcomes = NDArray[np.float64]
"""[Q] one per held-out question, 0 or 1, in their order."""


@dataclass(frozen=True)
class Curve:
    """What one run measured, at each of its evaluations."""

    run: Path
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
            run,
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

    def outcomes(self, index: int) -> Outcomes:
        """Of the evaluation at ``index``: which questions were answered rightly."""
        return np.array([trajectory.reward for trajectory in self._played(index)], dtype=np.float64)

    def sound(self, index: int) -> Outcomes:
        """Of the evaluation at ``index``: in which episodes every turn was right."""
        critiques = make_teacher("sums:SumRules").critique(self._played(index))
        return np.array([critique.trajectory.value == 9 for critique in critiques], dtype=np.float64)

    def _played(self, index: int) -> list[Trajectory]:
        file = f"eval-{self.steps[index]:05d}.jsonl"
        return list(load_jsonl(self.run / "trajectories" / file, Trajectory))

    def episodes_to(self, target: float) -> int | None:
        """Episodes after which an evaluation first gave ``target`` or more; None: none did."""
        reached = [step for step, em in zip(self.steps, self.em, strict=True) if em >= target]
        return reached[0] * self.episodes if reached else None


def over_questions(by_seed: Sequence[Outcomes]) -> list[float]:
    """Mean over seeds and questions, and its 95 % bootstrap interval over questions, the seeds being as they are."""
    per_question = np.mean(by_seed, axis=0)
    return [round(float(v), 4) for v in (per_question.mean(), *bootstrap_interval(per_question.tolist()))]


def compared(curves: Mapping[str, Sequence[Curve]], targets: Sequence[float]) -> dict[str, Any]:
    """By arm: held-out exact match before, after and against the first arm; what it took; every seed's curve."""
    first = [curve.outcomes(-1) for curve in next(iter(curves.values()))]
    return {arm: _row(by_seed, first, targets) for arm, by_seed in curves.items()}


def _row(by_seed: Sequence[Curve], first: Sequence[Outcomes], targets: Sequence[float]) -> dict[str, Any]:
    played = [over_questions([curve.outcomes(i) for curve in by_seed]) for i in range(len(by_seed[0].steps))]
    last = [curve.outcomes(-1) for curve in by_seed]
    return {
        "before": played[0],
        "after": played[-1],
        "gain": over_questions([after - curve.outcomes(0) for after, curve in zip(last, by_seed, strict=True)]),
        "difference": over_questions([after - other for after, other in zip(last, first, strict=True)]),
        "sound before": over_questions([curve.sound(0) for curve in by_seed]),
        "sound after": over_questions([curve.sound(-1) for curve in by_seed]),
        "episodes to": {f"{target:g}": [curve.episodes_to(target) for curve in by_seed] for target in targets},
        "demonstrations": round(float(np.mean([curve.demonstrations for curve in by_seed]))),
        "tokens": np.mean([curve.tokens for curve in by_seed], axis=0).round().tolist(),
        "em": played,
        "em in training": [round(curve.trained_em, 4) for curve in by_seed],
        "seconds": [round(curve.seconds, 1) for curve in by_seed],
        "seeds": [[round(em, 4) for em in curve.em] for curve in by_seed],
    }


# Showing ------------------------------------------------------------------------------------------------


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Exact match against student tokens, and where every seed ended, on many tasks and on one."""
    figure = Figure(figsize=(13, 5), dpi=120, layout="constrained")
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(3, 2, 2))
    for arm, found in report["many tasks"].items():
        thousands = [tokens / 1000 for tokens in found["tokens"]]
        mean, low, high = zip(*found["em"], strict=True)
        left.plot(thousands, mean, "o-", color=COLOURS[arm], label=arm, markersize=4)
        left.fill_between(thousands, low, high, color=COLOURS[arm], alpha=0.08)
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
        axes.vlines(x, low, high, color=COLOURS[arm], alpha=0.4, linewidth=4)
        axes.plot([x] * len(row["seeds"]), [seed[-1] for seed in row["seeds"]], ".", color=COLOURS[arm])
        axes.plot(x, mean, "_", color=COLOURS[arm], markersize=14)
    axes.axhline(next(iter(found.values()))["before"][0], color="black", linestyle="--", linewidth=1)
    axes.set_xticks(range(len(found)), list(found), rotation=60, ha="right")
    axes.set_title(title, loc="left", fontweight="bold")


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
