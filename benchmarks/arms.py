"""Every arm on one small world: held-out exact match against student tokens, and what one single task teaches.

The world is ``examples/sums``. Each seed has a student of its own, warm-started from right solutions; every arm goes on
from there with the same tasks and as many episodes a step. Learning rates are chosen for each arm by itself, with other
seeds and on other questions than those that the figures are about. What is there already is not run again.

With ``--imitate`` the students are not made from scratch: the model that the configuration names is warm-started by
imitating right solutions (and the teacher of token-opd is the same model, taught for longer).

Examples:
    python benchmarks/arms.py --json docs/figures/arms.json --figure docs/figures/arms.png
    python benchmarks/arms.py --config smollm2.yaml --imitate 24 --rates 1e-4 3e-4 1e-3 --workers 8    # with a GPU
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms_report import Curve, compared, draw, show
from training_runs import Run, carry_out, machine, side_by_side

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "sums"
DEMONSTRATED = {"demonstrator.policy": "sums:add_up"}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {"credit.arm": "grpo", "teacher": None},
    "score-reward": {"credit.arm": "score-reward"},
    "ovd": {"credit.arm": "ovd", **DEMONSTRATED},
    "ovd-prefix": {"credit.arm": "ovd-prefix", **DEMONSTRATED},
    "token-opd": {"credit.arm": "token-opd", "teacher": None},
    "form only": {"credit.arm": "grpo", "teacher": None, "env.options.reward": "form"},
    "entropy only": {
        "credit.arm": "grpo",
        "teacher": None,
        "env.options.reward": "none",
        "learner.entropy_weight": 0.01,
    },
}
"""What each arm sets beside the configuration that all share. The last two are controls: a reward for the form of an
answer alone, and no reward at all."""
TREATMENTS = ("shaped", "as-student", "nll")
"""Of a demonstrator's tokens; the arms with a demonstrator are tuned over them, too."""
TUNING_SEED, TEACHER_SEED = 100, 1000
TEACHER = "teacher"


@dataclass(frozen=True)
class Choice:
    """Settings that tuning decides about."""

    rate: float
    treatment: str
    """One of :data:`TREATMENTS`, or empty."""

    def __str__(self) -> str:
        return f"{self.rate:g} {self.treatment}".strip()

    @property
    def settings(self) -> dict[str, Any]:
        """As keys of the configuration."""
        treatment = {"learner.teacher_tokens": self.treatment} if self.treatment else {}
        return {"learner.learning_rate": self.rate, **treatment}


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    out: Path
    config: str
    """A file of the example's folder."""
    imitate: int
    """Steps of imitation that make a student of the configuration's model; 0 makes students from scratch."""
    teach: int
    """Steps of imitation that make the teacher of arm ``token-opd``."""
    arms: Sequence[str]
    seeds: Sequence[int]
    single_seeds: Sequence[int]
    """Of the runs on one task, among ``seeds``."""
    rates: Sequence[float]
    steps: int
    """Of the comparison; of a tuning run and of a run on one task likewise."""
    tuning_steps: int
    single_steps: int
    targets: Sequence[float]

    @property
    def every(self) -> int:
        """Training steps between the evaluations of the comparison."""
        return max(1, self.steps // 4)

    def student(self, seed: int) -> Path:
        """Where the warm-started model of ``seed`` is."""
        return self._model(f"student-{seed}")

    def teacher(self) -> Path:
        """Where the teacher of arm ``token-opd`` is."""
        return self._model(TEACHER)

    def _model(self, name: str) -> Path:
        return self.out / name / "model" if self.imitate else self.out / name

    def grid(self, arm: str) -> list[Choice]:
        """What ``arm`` is tuned over."""
        treatments = TREATMENTS if arm in ("ovd", "ovd-prefix") else ("",)
        return [Choice(rate, treatment) for rate in self.rates for treatment in treatments]

    def tuned(self, arm: str, choice: Choice) -> Path:
        """The run that tries ``choice``."""
        return self.out / "tuning" / f"{arm} {choice}"

    def compared(self, arm: str, seed: int) -> Path:
        """The run on many tasks."""
        return self.out / "many" / f"{arm}-{seed}"

    def single(self, arm: str, seed: int) -> Path:
        """The run on one task."""
        return self.out / "one" / f"{arm}-{seed}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--config", default="train.yaml", help="a file in examples/sums")
    parser.add_argument("--imitate", type=int, default=0, help="steps of imitation that make a student; 0: without")
    parser.add_argument("--teach", type=int, default=200, help="steps that make the teacher, with --imitate")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--single-seeds", nargs="+", type=int, default=[0, 1, 2], help="of the runs on one task")
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-5, 1e-4, 3e-4])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--tuning-steps", type=int, default=30)
    parser.add_argument("--single-steps", type=int, default=40, help="training steps on one task")
    parser.add_argument("--targets", nargs="+", type=float, default=[0.5, 0.6], help="exact match to be reached")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--figure", type=Path, help="draw the learning curves to this file")
    given = vars(parser.parse_args(arguments))
    workers, figures, picture = given.pop("workers"), given.pop("json"), given.pop("figure")
    plan = Plan(**given)
    sys.path.insert(0, str(EXAMPLE))
    with side_by_side(workers, EXAMPLE) as pool:
        list(pool.map(carry_out, lessons(plan)) if plan.imitate else pool.map(make_model, models(plan)))
        list(pool.map(carry_out, tuning_runs(plan)))
        chosen = {arm: best(plan, arm) for arm in plan.arms}
        list(pool.map(carry_out, runs(plan, chosen)))
    report = summary(plan, chosen)
    if figures:
        figures.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if picture:
        draw(picture, report)
    show(report)


# Runs ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A model to be made from right solutions, until it solves the share ``until`` of fresh questions."""

    path: Path
    seed: int
    until: float


def models(plan: Plan) -> list[Model]:
    """The teacher of arm ``token-opd`` and the students; the longest work first."""
    students = [Model(plan.student(seed), seed, 0.2) for seed in (TUNING_SEED, *plan.seeds)]
    return [Model(plan.teacher(), TEACHER_SEED, 0.98)] * ("token-opd" in plan.arms) + students


def lessons(plan: Plan) -> list[Run]:
    """The same from a model that is there: runs that imitate right solutions; the longest first."""
    made = [(plan.student(seed), seed, plan.imitate) for seed in (TUNING_SEED, *plan.seeds)]
    taught = [(plan.teacher(), TEACHER_SEED, plan.teach)] * ("token-opd" in plan.arms)
    shared: dict[str, Any] = {**DEMONSTRATED, "credit.arm": "imitation", "teacher": None}
    shared |= {"rollout.group_size": 1, "evaluation.every": 0}
    return [
        Run(
            EXAMPLE / plan.config,
            model.parent,
            {**shared, "env.options.task_options.seed": seed, "steps": steps, "seed": seed},
        )
        for model, seed, steps in [*taught, *made]
    ]


def tuning_runs(plan: Plan) -> list[Run]:
    """Every arm with every choice of its grid, on a seed and on questions that the comparison does not see."""
    return [
        _run(plan, plan.tuned(arm, choice), arm, TUNING_SEED, choice, plan.tuning_steps, "tune")
        for arm in plan.arms
        for choice in plan.grid(arm)
    ]


def runs(plan: Plan, chosen: Mapping[str, Choice]) -> list[Run]:
    """The comparison and the runs on one task, seed after seed."""
    laid = [(arm, seed, chosen[arm]) for seed in plan.seeds for arm in plan.arms]
    many = [_run(plan, plan.compared(*run[:2]), *run, plan.steps, "test", every=plan.every) for run in laid]
    single = [
        _run(plan, plan.single(*run[:2]), *run, plan.single_steps, "test", tasks=1)
        for run in laid
        if run[1] in plan.single_seeds
    ]
    return [*many, *single]


def _run(
    plan: Plan,
    path: Path,
    arm: str,
    seed: int,
    choice: Choice,
    steps: int,
    split: str,
    every: int = 0,
    tasks: int = 4096,
) -> Run:
    """Held-out questions are of ``split``; training is on ``tasks`` others, drawn with ``seed``."""
    settings: dict[str, Any] = {
        **ARMS[arm],
        **choice.settings,
        "student.model": str(plan.student(seed)),
        "env.options.task_options.seed": seed,
        "env.options.task_options.count": tasks,
        "evaluation.options.task_options.split": split,
        "evaluation.every": every,
        "steps": steps,
        "seed": seed,
    }
    if arm == "token-opd":
        settings["distillation.model"] = str(plan.teacher())
    return Run(EXAMPLE / plan.config, path, settings)


def make_model(model: Model) -> None:
    """Make ``model``, unless it is there."""
    if not (model.path / "tokenizer.json").exists():  # it is written last
        script = [sys.executable, str(EXAMPLE / "tiny_adder.py"), str(model.path)]
        options = ["--until", str(model.until), "--seed", str(model.seed)]
        subprocess.run([*script, *options], check=True, stdout=subprocess.DEVNULL)


def best(plan: Plan, arm: str) -> Choice:
    """The choice whose run ends with the highest exact match on the tuning questions."""
    return max(plan.grid(arm), key=lambda choice: Curve.of(plan.tuned(arm, choice)).last)


def summary(plan: Plan, chosen: Mapping[str, Choice]) -> dict[str, Any]:
    """Everything that is reported; differences are paired by seed."""
    many = {arm: [Curve.of(plan.compared(arm, seed)) for seed in plan.seeds] for arm in plan.arms}
    one = {arm: [Curve.of(plan.single(arm, seed)) for seed in plan.single_seeds] for arm in plan.arms}
    tuned = {arm: {str(c): Curve.of(plan.tuned(arm, c)).last for c in plan.grid(arm)} for arm in plan.arms}
    return {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "config": plan.config,
        "imitation": {"student": plan.imitate, "teacher": plan.teach} if plan.imitate else None,
        "seeds": {"many tasks": list(plan.seeds), "one task": list(plan.single_seeds)},
        "tuning": {arm: {"chosen": str(chosen[arm]), "em": tuned[arm]} for arm in plan.arms},
        "many tasks": compared(many, plan.targets),
        "one task": compared(one, ()),
    }


if __name__ == "__main__":
    main()
