"""Fitted teachers against their prompted base, rules and a control, always on data they were not fitted to.

    python benchmarks/fit_teacher.py FOLDER --limit 200                        # what a program can check
    python benchmarks/fit_teacher.py FOLDER --part search --model SmolLM2-135M-Instruct    # and a model's reading of it

FOLDER holds the files of DATA in the formats of :mod:`ovd_gym.teachers.labelled`. Nothing is fitted to a file, and no
question is fitted to, that is measured on; thresholds for first errors are those chosen while fitting, and for
teachers that were not fitted, by halves. The search runs are one file: the runs of each model are scored by teachers
fitted to the other models' runs at other questions. Differences are paired: both teachers on the same
draw of questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ovd_gym.critique import score_attempts
from ovd_gym.fitting import measured
from ovd_gym.statistics import Estimate, auroc, estimate
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.teachers.canaries import probe
from ovd_gym.teachers.digits import DigitTeacher
from ovd_gym.teachers.features import CHECKS, FEATURES
from ovd_gym.teachers.fit import fit_teacher, split
from ovd_gym.teachers.fitted import FittedTeacher
from ovd_gym.teachers.heads import Floats
from ovd_gym.teachers.labelled import Attempt, load_attempts
from ovd_gym.teachers.measure import FewerSteps, Measurement, measure
from ovd_gym.teachers.rules import MathRules
from ovd_gym.teachers.search_rules import SearchRules
from ovd_gym.teachers.view_reader import ViewReader

NONCE = "0" * 16
CONTROL = "control: fewer answer tokens"
PROCESSBENCH = "processbench_gsm8k_olympiad_omni.jsonl.gz"
MR_BEN = "mr_ben.jsonl.gz"
MISTAKES = "big_bench_mistake.jsonl.gz"
SOLUTIONS = "gsm8k_model_solutions.jsonl.gz"
SEARCH = "search_trajectories_hotpotqa.jsonl.gz"
DATA = (PROCESSBENCH, MR_BEN, MISTAKES, SOLUTIONS, SEARCH)
"""ProcessBench, MR-Ben, BIG-Bench Mistake, GSM8K example solutions, ReAct runs on HotpotQA."""


class Remembering(ViewReader):
    """Reads every view once, however often it is fitted to."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._known: dict[str, Floats | None] = {}

    def read(self, views: Sequence[View]) -> list[Floats | None]:
        """[N] of [F]."""
        keys = [view.model_dump_json() for view in views]
        new = {key: view for key, view in zip(keys, views, strict=True) if key not in self._known}
        self._known |= zip(new, super().read(list(new.values())), strict=True)
        return [self._known[key] for key in keys]


def readers(model: str | None) -> dict[str, Remembering]:
    """What the compared teachers read."""
    made = {
        "fitted, checks": Remembering(None, tuple(CHECKS), NONCE),
        "fitted, checks + amounts": Remembering(None, tuple(FEATURES), NONCE),
    }
    if model:
        made["fitted, checks + likelihood"] = Remembering(model, tuple(CHECKS), NONCE, "likelihood", batch_tokens=1024)
    return made


def compare(attempts: Sequence[Attempt], fitted: dict[str, FittedTeacher], others: Iterable[Teacher]) -> dict[str, Any]:
    """Measurements of all teachers on ``attempts``, by label."""
    rows = {name: measured(teacher, attempts) for name, teacher in fitted.items()}
    rows |= {teacher.name: measure(attempts, score_attempts(teacher, attempts)) for teacher in others}
    return rows


def across_models(attempts: Sequence[Attempt], reader: ViewReader) -> list[float]:
    """[N] scores on [0, 1], each by a teacher fitted to other models' runs at other questions.

    One half of the questions is measured on with a teacher fitted to the other half, for every model in turn.
    """
    found: dict[str, float] = {}
    for name in sorted({attempt.model for attempt in attempts}):
        theirs = [attempt for attempt in attempts if attempt.model == name]
        for half in split(theirs, 0.5):
            fitted, _ = split([attempt for attempt in attempts if attempt.model != name], half)
            teacher = fit_teacher(fitted, reader, kinds=("trajectory",))
            found |= {critique.trajectory_id: critique.trajectory.u for critique in score_attempts(teacher, half)}
    return [found[attempt.id] for attempt in attempts]


def sayings(attempts: Sequence[Attempt], reader: ViewReader) -> dict[str, list[float]]:
    """The likelihood of the answer after the question, and its control: how few tokens it has."""
    at = reader.names.index("likelihood of the answer")
    rows = reader.read([attempt.views()[-1] for attempt in attempts])
    nats = [(row[at], row[at + 1]) for row in rows if row is not None]
    tokens = [whole / mean if mean else 0.0 for whole, mean in nats]
    return {"likelihood": [whole for whole, _ in nats], CONTROL: [-count for count in tokens]}


def ranking(attempts: Sequence[Attempt], scores: Sequence[float], control: Sequence[float] = ()) -> Estimate | None:
    """The AUROC of ``scores`` [N], or by how much it is above that of ``control`` [N]."""
    u, other = np.asarray(scores), np.asarray(control)
    right = np.asarray([bool(attempt.correct) for attempt in attempts])

    def value(rows: NDArray[np.intp]) -> float:
        return auroc(u[rows], right[rows]) - (auroc(other[rows], right[rows]) if len(other) else 0)

    return estimate(value, [attempt.question for attempt in attempts])


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


def math(options: argparse.Namespace, title: str, file: str, source: str = "*") -> None:
    """First errors or outcomes of written solutions."""
    folder: Path = options.folder
    sources = ((MR_BEN, "*"), (MISTAKES, "*"), (PROCESSBENCH, "processbench/o*"))
    labelled = [attempt for file, source in sources for attempt in load_attempts(folder / file, options.limit, source)]
    tested = load_attempts(folder / file, options.tested or options.limit, source)
    fitted = {name: fit_teacher(split(labelled, tested)[0], reader) for name, reader in readers(options.model).items()}
    base = [DigitTeacher(options.prompted, nonce=NONCE)] if options.prompted else []
    table(f"{title}, {len(tested)} attempts", compare(tested, fitted, [*base, MathRules(), FewerSteps()]))
    injections(fitted, "math")


def search(options: argparse.Namespace) -> None:
    """Outcomes of search runs."""
    runs = load_attempts(options.folder / SEARCH, options.limit)
    scores = {
        teacher.name: [critique.trajectory.u for critique in score_attempts(teacher, runs)]
        for teacher in (FewerSteps(), SearchRules())
    }
    read = readers(options.model)
    scores |= {name: across_models(runs, reader) for name, reader in read.items()}
    if options.model:
        scores |= sayings(runs, [*read.values()][-1])
    print(f"\nSearch runs, {len(runs)}, across models and questions\n")
    against = {name: scores[name] for name in (FewerSteps.name, SearchRules.name, CONTROL) if name in scores}
    print(
        f"| teacher | AUROC | {' | '.join(f'above {name}' for name in against)} |\n|---|{'---|' * (1 + len(against))}"
    )
    for name, each in scores.items():
        cells = [shown(ranking(runs, each, other)) for other in ((), *against.values())]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    injections({name: fit_teacher(runs, reader, kinds=("trajectory",)) for name, reader in read.items()}, "search")


def main() -> None:
    """Fit, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="local model that reads likelihoods, too")
    parser.add_argument("--prompted", help="local model that is prompted for digits")
    parser.add_argument("--limit", type=int, help="attempts taken of each source")
    parser.add_argument("--tested", type=int, help="attempts measured on, where that is another file")
    parser.add_argument(
        "--part", choices=["errors", "outcomes", "search"], nargs="*", default=["errors", "outcomes", "search"]
    )
    options = parser.parse_args()
    if "errors" in options.part:
        math(options, "First errors: ProcessBench, GSM8K part", PROCESSBENCH, "processbench/gsm8k")
    if "outcomes" in options.part:
        math(options, "Outcomes: GSM8K example solutions", SOLUTIONS)
    if "search" in options.part:
        search(options)


if __name__ == "__main__":
    main()
