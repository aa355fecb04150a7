"""What training on one single question teaches a language model about others: the demo's student, by seeds.

The student and the world are those of ``examples/demo.yaml``: SmolLM2-135M, which knows both how to guess a sum and how
to have it calculated. Each seed draws a question of its own, and every training step asks it again; the held-out
questions are others. Beside it the same training on many questions, and two controls: a reward for any number as an
answer, right or wrong, and no reward but an entropy bonus. What is there already is not run again.

Example: python benchmarks/one_question.py --json docs/figures/one-question.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
from arms_report import Curve, over_questions
from rich.console import Console
from rich.table import Table
from training_runs import Run, carry_out, machine, side_by_side

from ovd_gym import Task
from ovd_gym.envs.math_qa import MathEnv
from ovd_gym.envs.math_qa.plain import plain_number

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.yaml"
ONE = "env.options.task_options"
GRPO: Mapping[str, Any] = {"credit.arm": "grpo", "teacher": None}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "score-reward, one question": {f"{ONE}.size": 1},
    "grpo, one question": {f"{ONE}.size": 1, **GRPO},
    "form only, one question": {f"{ONE}.size": 1, **GRPO, "env.options.reward": "form"},
    "entropy only, one question": {
        f"{ONE}.size": 1,
        **GRPO,
        "env.options.reward": "none",
        "learner.entropy_weight": 0.01,
    },
    "score-reward, 2,000 questions": {},
}
CONTROL = "form only, one question"


class Sums(MathEnv):
    """The demo's world. Reward ``form``, for a control, is 1 for any number; ``none`` is 0 always."""

    def __init__(self, *arguments: Any, reward: Literal["exact", "form", "none"] = "exact", **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._reward = reward

    def grade(self, task: Task, answer: str) -> float:
        """1.0 if ``answer`` is what ``reward`` asks for, else 0.0."""
        right = super().grade(task, answer)
        return right if self._reward == "exact" else float(self._reward == "form" and plain_number(answer) is not None)


if "OneQuestion-v0" not in gym.registry:
    gym.register("OneQuestion-v0", "one_question:Sums")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/one-question"))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--questions", type=int, default=64, help="held out")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    chosen = parser.parse_args(arguments)

    def run(arm: str, seed: int) -> Run:
        settings = {
            "env.id": "one_question:OneQuestion-v0",
            f"{ONE}.seed": 1000 + seed,
            **ARMS[arm],
            "evaluation.episodes": chosen.questions,
            "evaluation.options": {"reward": "exact", "task_options": {"size": chosen.questions, "seed": 2}},
            "evaluation.every": 0,
            "steps": chosen.steps,
            "checkpoint_every": 1000,
            "seed": seed,
        }
        return Run(DEMO, chosen.out / f"{arm} {seed}", settings)

    with side_by_side(chosen.workers, Path(__file__).parent) as pool:
        list(pool.map(carry_out, [run(arm, seed) for seed in chosen.seeds for arm in chosen.arms]))
    curves = {arm: [Curve.of(run(arm, seed).path) for seed in chosen.seeds] for arm in chosen.arms}
    report = {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "seeds": chosen.seeds,
        "held-out questions": chosen.questions,
        "arms": {arm: summary(by_seed, curves.get(CONTROL)) for arm, by_seed in curves.items()},
    }
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(report)


def summary(by_seed: Sequence[Curve], control: Sequence[Curve] | None) -> dict[str, Any]:
    """Held-out questions before and after, their difference, every seed, and the question that was trained on."""
    first, last = ([curve.outcomes(i) for curve in by_seed] for i in (0, -1))
    form = [curve.outcomes(-1) for curve in control or ()]
    above = {"above form only": over_questions([a - b for a, b in zip(last, form, strict=True)])} if form else {}
    return above | {
        "before": over_questions(first),
        "after": over_questions(last),
        "gain": over_questions([after - before for after, before in zip(last, first, strict=True)]),
        "seeds": [[round(em, 4) for em in curve.em] for curve in by_seed],
        "reward in training": [round(curve.trained_em, 4) for curve in by_seed],
        "seconds": [round(curve.seconds, 1) for curve in by_seed],
    }


def show(report: Mapping[str, Any]) -> None:
    """Print the comparison."""
    table = Table("trained with", "before", "after", "gain", "every seed", "reward in training")
    for arm, row in report["arms"].items():
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*row[key]) for key in ("before", "after", "gain")]
        table.add_row(arm, *cells, str([seed[-1] for seed in row["seeds"]]), str(row["reward in training"]))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
