"""Fitted teachers against their prompted base, rules and a control, always on data they were not fitted to.

    python benchmarks/fit_teacher.py FOLDER                                        # what a program can check
    python benchmarks/fit_teacher.py FOLDER --model SmolLM2-135M-Instruct --limit 60    # and a model's reading of it

FOLDER holds the files of DATA in the formats of :mod:`ovd_gym.teachers.labelled`. Nothing is fitted to a file, and no
question is fitted to, that is measured on; thresholds for first errors are those chosen while fitting, and for
teachers that were not fitted, by halves. The search runs are one file: the runs of each model are scored by teachers
fitted to the other models' runs at other questions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ovd_gym.critique import score_attempts
from ovd_gym.fitting import measured
from ovd_gym.statistics import Estimate, auroc, estimate
from ovd_gym.teachers.base import Teacher
from ovd_gym.teachers.canaries import probe
from ovd_gym.teachers.digits import DigitTeacher
from ovd_gym.teachers.features import CHECKS, FEATURES
from ovd_gym.teachers.fit import fit_teacher, split
from ovd_gym.teachers.fitted import FittedTeacher
from ovd_gym.teachers.labelled import Attempt, load_attempts, sample_groups
from ovd_gym.teachers.measure import FewerSteps, Measurement, measure
from ovd_gym.teachers.rules import MathRules
from ovd_gym.teachers.search_rules import SearchRules

PROCESSBENCH = "processbench_gsm8k_olympiad_omni.jsonl.gz"
MR_BEN = "mr_ben.jsonl.gz"
MISTAKES = "big_bench_mistake.jsonl.gz"
SOLUTIONS = "gsm8k_model_solutions.jsonl.gz"
SEARCH = "search_trajectories_hotpotqa.jsonl.gz"
DATA = (PROCESSBENCH, MR_BEN, MISTAKES, SOLUTIONS, SEARCH)
"""ProcessBench, MR-Ben, BIG-Bench Mistake, GSM8K example solutions, ReAct runs on HotpotQA."""


def variants(attempts: Sequence[Attempt], model: str | None) -> dict[str, FittedTeacher]:
    """The fitted teachers that are compared."""
    made = {
        "fitted, checks": fit_teacher(attempts),
        "fitted, checks + amounts": fit_teacher(attempts, features=tuple(FEATURES)),
    }
    if model:
        made["fitted, hidden state"] = fit_teacher(attempts, model=model, features=())
        made["fitted, hidden state + checks"] = fit_teacher(attempts, model=model, features=tuple(CHECKS))
    return made


def compare(attempts: Sequence[Attempt], fitted: dict[str, FittedTeacher], others: Iterable[Teacher]) -> dict[str, Any]:
    """Measurements of all teachers on ``attempts``, by label."""
    rows = {name: measured(teacher, attempts) for name, teacher in fitted.items()}
    rows |= {teacher.name: measure(attempts, score_attempts(teacher, attempts)) for teacher in others}
    return rows


def across_models(attempts: Sequence[Attempt], features: Sequence[str], model: str | None) -> Estimate | None:
    """AUROC over runs, each scored by a teacher fitted to other models' runs at other questions.

    One half of the questions is measured on with a teacher fitted to the other half, for every model in turn.
    """
    rows: list[tuple[float, bool, str]] = []
    for name in sorted({attempt.model for attempt in attempts}):
        theirs = [attempt for attempt in attempts if attempt.model == name]
        for half in split(theirs, 0.5):
            fitted, _ = split([attempt for attempt in attempts if attempt.model != name], half)
            teacher = fit_teacher(fitted, model=model, features=features)
            scores = [critique.trajectory for critique in score_attempts(teacher, half)]
            rows += [(s.u, bool(a.correct), a.question) for s, a in zip(scores, half, strict=True) if s.valid]
    u, right, questions = zip(*rows, strict=True)
    return estimate(lambda i: auroc([u[k] for k in i], [right[k] for k in i]), questions)


def shown(value: Estimate | None) -> str:
    """An estimate in a table's cell."""
    return "-" if value is None else f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"


def table(title: str, rows: dict[str, Measurement]) -> None:
    """Print what is known of the teachers."""
    print(f"\n{title}\n\n| teacher | AUROC of attempts | AUROC of steps | first error F1 |\n|---|---|---|---|")
    for name, row in rows.items():
        f1 = row.first_errors.f1 if row.first_errors else None
        print(f"| {name} | {shown(row.auroc)} | {shown(row.step_auroc)} | {shown(f1)} |", flush=True)


def injections(fitted: dict[str, FittedTeacher], canaries: str) -> None:
    """Print how far injected texts move the fitted teachers."""
    print("\n| teacher | largest shift | mean shift | canaries failed |\n|---|---|---|---|")
    for name, teacher in fitted.items():
        figures = probe(teacher, canaries).metrics()
        largest, mean = figures["injection_shift_max"], figures["injection_shift_mean"]
        print(f"| {name} | {largest:.2f} | {mean:.2f} | {figures['canary_failed']} |", flush=True)


def main() -> None:
    """Fit, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="local model to read hidden states of, and to prompt as the base")
    parser.add_argument("--limit", type=int, default=400, help="attempts taken of each source")
    options = parser.parse_args()

    def some(file: str, source: str = "*") -> list[Attempt]:
        return load_attempts(options.folder / file, options.limit, source)

    base = [DigitTeacher(options.model, nonce="0" * 16)] if options.model else []
    steps = [*some(MR_BEN), *some(MISTAKES), *some(PROCESSBENCH, "processbench/o*")]
    for title, tested, rules in (
        ("First errors: ProcessBench, GSM8K part", some(PROCESSBENCH, "processbench/gsm8k"), MathRules()),
        ("Outcomes: GSM8K example solutions", some(SOLUTIONS), MathRules()),
    ):
        fitted = variants(split(steps, tested)[0], options.model)
        table(f"{title}, {len(tested)} attempts", compare(tested, fitted, [*base, rules, FewerSteps()]))
    injections(fitted, "math")
    print(json.dumps({name: t.card.strength for name, t in fitted.items()}, default=lambda r: r.model_dump()))
    runs = sample_groups(some(SEARCH), options.limit)
    print(f"\nSearch runs, {len(runs)}, across models and questions\n\n| teacher | AUROC |\n|---|---|")
    sets: dict[str, tuple[Sequence[str], str | None]] = {
        "fitted, checks": (tuple(CHECKS), None),
        "fitted, checks + amounts": (tuple(FEATURES), None),
    }
    if options.model:
        sets["fitted, hidden state + checks"] = (tuple(CHECKS), options.model)
    for name, (features, model) in sets.items():
        print(f"| {name} | {shown(across_models(runs, features, model))} |", flush=True)
    for teacher in (*base, SearchRules(), FewerSteps()):
        print(f"| {teacher.name} | {shown(measure(runs, score_attempts(teacher, runs)).auroc)} |", flush=True)
    injections({"fitted, checks": fit_teacher(runs)}, "search")


if __name__ == "__main__":
    main()
