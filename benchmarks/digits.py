"""What a teacher's digits add to the environment's reward, and whether it is what they say: the SQL world, by seeds.

The world and its student are those of ``examples/sql``. Each seed has a student of its own, which imitates for a few
steps, and every arm goes on from there: the reward alone; the digits of a teacher that reads the query; digits that
say nothing, as a control. The learning rate of each arm is chosen by itself, with seeds and tables that are used for
nothing else; every arm is also run at the rates that the others chose. What is there already is not run again.

Example: python benchmarks/digits.py --json docs/figures/digits.json --figure docs/figures/digits.png
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from arms_report import Curve
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.stats import ttest_1samp
from training_runs import Run, carry_out, machine, side_by_side

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the example is found

from examples.sql.train_sql import CONFIG, IMITATE, TRY, make_model
from ovd_gym import Score, Teacher, View

ROOT = Path(__file__).resolve().parents[1]
ARMS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"credit.arm": "grpo", "teacher": None},
    "score-reward": {"teacher.name": "examples.sql.train_sql:RightColumn"},
    "digits that say nothing": {"teacher.name": "digits:Noise"},
}
COLOURS = {"grpo": "#0072b2", "score-reward": "#d55e00", "digits that say nothing": "#999999"}
TUNING_SEEDS = (100, 101)
TABLES = {"tune": 2, "test": 3}
"""Seeds of the held-out tables."""


class Noise(Teacher):
    """A digit that follows from a hash of what it reads: the same text has the same digit, and it means nothing."""

    def score(self, view: View) -> Score:
        """Of a step or an attempt."""
        read = "\n".join([view.question, *(step.text for step in view.steps)])
        return Score.of(sha256(read.encode()).digest()[0] % 10)


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    out: Path
    seeds: Sequence[int]
    rates: Sequence[float]
    imitate: int
    steps: int

    def warm_start(self, seed: int) -> Run:
        """A run that makes the student of ``seed``."""
        settings = {**IMITATE, "steps": self.imitate, "seed": seed, "evaluation": None}
        return Run(CONFIG, self.out / f"warm-{seed}", {**settings, "student.model": str(self.out / "model")})

    def run(self, arm: str, seed: int, rate: float, split: str) -> Run:
        """A run of ``arm`` from there, asked about the tables of ``split``."""
        settings = {
            **TRY,
            **ARMS[arm],
            "student.model": str(self.warm_start(seed).path / "model"),
            "learner.learning_rate": rate,
            "evaluation.options.seed": TABLES[split],
            "evaluation.every": max(1, self.steps // 6),
            "steps": self.steps,
            "seed": seed,
        }
        return Run(CONFIG, self.out / split / f"{arm} {rate:g} {seed}", settings)

    def tuned(self, arm: str, rate: float) -> float:
        """Share of right answers after training at ``rate``, over the tuning seeds."""
        return float(np.mean([Curve.of(self.run(arm, seed, rate, "tune").path).last for seed in TUNING_SEEDS]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(8)))
    parser.add_argument("--rates", nargs="+", type=float, default=[2.5e-4, 5e-4, 1e-3])
    parser.add_argument("--imitate", type=int, default=20, help="steps that make a student")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--figure", type=Path, help="draw the learning curves to this file")
    given = vars(parser.parse_args(arguments))
    workers, figures, picture = given.pop("workers"), given.pop("json"), given.pop("figure")
    plan = Plan(**given)
    if not (plan.out / "model").exists():
        make_model(plan.out / "model")
    with side_by_side(workers, ROOT, Path(__file__).parent) as pool:
        list(pool.map(carry_out, [plan.warm_start(seed) for seed in (*TUNING_SEEDS, *plan.seeds)]))
        grid = list(product(ARMS, plan.rates, TUNING_SEEDS))
        list(pool.map(carry_out, [plan.run(arm, seed, rate, "tune") for arm, rate, seed in grid]))
        tuning = {arm: {rate: plan.tuned(arm, rate) for rate in plan.rates} for arm in ARMS}
        chosen = {arm: max(found, key=lambda rate: found[rate]) for arm, found in tuning.items()}
        rates = sorted(set(chosen.values()))
        compared = list(product(plan.seeds, ARMS, rates))
        list(pool.map(carry_out, [plan.run(arm, seed, rate, "test") for seed, arm, rate in compared]))

    def curves_at(arm: str, rate: float) -> list[Curve]:
        return [Curve.of(plan.run(arm, seed, rate, "test").path) for seed in plan.seeds]

    reference = curves_at("grpo", chosen["grpo"])
    report = {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "seeds": list(plan.seeds),
        "tuning": {arm: {f"{rate:g}": round(em, 4) for rate, em in found.items()} for arm, found in tuning.items()},
        "arms": {arm: summary(curves_at(arm, rate), reference) | {"rate": rate} for arm, rate in chosen.items()},
        "at one rate": {
            f"{rate:g}": {arm: summary(curves_at(arm, rate), curves_at("grpo", rate)) for arm in ARMS} for rate in rates
        },
    }
    if figures:
        figures.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if picture:
        draw(picture, report)
    show(report)


def summary(by_seed: Sequence[Curve], reference: Sequence[Curve]) -> dict[str, Any]:
    """Before, after, over the whole of training, and against ``reference``, with the seeds as the sample."""
    last = np.array([curve.last for curve in by_seed])
    area = np.array([np.mean(curve.em[1:]) for curve in by_seed])
    return {
        "before": over_seeds([curve.em[0] for curve in by_seed]),
        "after": over_seeds(last),
        "mean of the curve": over_seeds(area),
        "after - grpo": over_seeds(last - [curve.last for curve in reference]),
        "mean of the curve - grpo": over_seeds(area - [np.mean(curve.em[1:]) for curve in reference]),
        "steps": by_seed[0].steps,
        "curves": [[round(em, 4) for em in curve.em] for curve in by_seed],
        "seconds": [round(curve.seconds, 1) for curve in by_seed],
    }


def over_seeds(values: Any) -> list[float]:
    """Mean and its 95 % interval by Student's t, each seed a draw."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2 or np.ptp(sample) == 0:
        return [round(float(sample.mean()), 4)] * 3
    interval = ttest_1samp(sample, 0).confidence_interval(0.95)
    return [round(float(value), 4) for value in (sample.mean(), interval.low, interval.high)]


def draw(path: Path, report: Mapping[str, Any]) -> None:
    """Every seed's curve thin, the mean of each arm thick."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for arm, found in report["arms"].items():
        curves = np.array(found["curves"])
        axes.plot(found["steps"], curves.T, color=COLOURS[arm], alpha=0.25, linewidth=1)
        axes.plot(found["steps"], curves.mean(0), "o-", color=COLOURS[arm], linewidth=2.5, markersize=4, label=arm)
    axes.set(xlabel="training step", ylabel="held-out questions answered rightly", ylim=(0, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, format="png")


def show(report: Mapping[str, Any]) -> None:
    """Print the comparison."""
    chosen = [(arm, f"{row['rate']:g}, chosen", row) for arm, row in report["arms"].items()]
    same = [(arm, rate, row) for rate, rows in report["at one rate"].items() for arm, row in rows.items()]
    table = Table("arm", "rate", "before", "after", "after - grpo", "mean of the curve", "- grpo")
    for arm, rate, row in (*chosen, *same):
        keys = ("before", "after", "after - grpo", "mean of the curve", "mean of the curve - grpo")
        table.add_row(arm, rate, *("{:.3f} [{:.3f}, {:.3f}]".format(*row[key]) for key in keys))
    console = Console(width=160)
    console.print(table)
    console.print(report["tuning"])


if __name__ == "__main__":
    main()
