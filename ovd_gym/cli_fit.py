"""The command line of fitting: ``ovd-gym fit-teacher``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ovd_gym.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ovd_gym.statistics import Estimate
    from ovd_gym.teachers.labelled import Attempt
    from ovd_gym.teachers.measure import Measurement

__all__ = ["app", "fit_teacher"]

app = typer.Typer(help="Fit teachers.")


@app.command(
    "fit-teacher",
    epilog="Example: ovd-gym fit-teacher mr_ben.jsonl.gz --limit 300 --out critic\n\n"
    "Example: ovd-gym fit-teacher runs/demo --continuations 4 --out critic\n\n"
    "Then: ovd-gym train CONFIG --set teacher.name=fitted --set teacher.options.folder=critic",
)
def fit_teacher(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA",
            help="Run folders (their training episodes); .jsonl or .jsonl.gz files of labelled attempts.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the teacher.", show_default=False)],
    model: Annotated[
        str, typer.Option(help="Local model that reads them, too; 'none': what a program can check, alone.")
    ] = "none",
    reads: Annotated[
        Literal["hidden", "likelihood"] | None,
        typer.Option(help="What is read off --model: 'hidden' state or 'likelihood'.", show_default="hidden"),
    ] = None,
    kind: Annotated[Literal["both", "step", "trajectory"], typer.Option(help="Judge only these.")] = "both",
    limit: Annotated[int | None, typer.Option(min=1, help="Take a fixed random choice of so many of each.")] = None,
    source: Annotated[str, typer.Option(help="Take attempts of sources that match, such as 'mr-ben/*'.")] = "*",
    test: Annotated[
        list[Path] | None, typer.Option(help="Measure on these data; without, on a share of the questions of DATA.")
    ] = None,
    held_out: Annotated[float, typer.Option(min=0, max=0.9, help="That share.")] = 0.2,
    amounts: Annotated[
        bool, typer.Option("--amounts", help="Also fit to how much is written; a student can buy a score with it.")
    ] = False,
    continuations: Annotated[
        int, typer.Option(min=0, help="Value each step of a run by letting its student play on so many times.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the choice of the held-out questions.")] = 0,
) -> None:
    """Fit a critic to labelled attempts or to the outcomes of a run, and measure it on questions it has not seen."""
    from ovd_gym.fitting import is_run, measured, run_values, training_attempts
    from ovd_gym.teachers.features import CHECKS, FEATURES
    from ovd_gym.teachers.fit import fit_teacher as fit
    from ovd_gym.teachers.fit import split
    from ovd_gym.teachers.prompting import draw_nonce
    from ovd_gym.teachers.view_reader import ViewReader

    local = None if model == "none" else model
    if reads and not local:
        raise ConfigError("--reads: nothing is read without a --model")
    reader = ViewReader(local, tuple(FEATURES if amounts else CHECKS), draw_nonce(seed), reads or "hidden")
    runs = [path for path in data if is_run(path)]
    if continuations and not runs:
        raise ConfigError("--continuations: none of DATA is a run folder, so there is no environment to play on in")
    attempts = _distinct([attempt for path in data for attempt in training_attempts(path, limit, source)])
    tested = _distinct([attempt for path in test or () for attempt in training_attempts(path, limit)])
    fitted, kept_out = split(attempts, tested or held_out, seed)
    values = {}
    for run in runs if continuations else ():
        with _progress("playing on") as on_episode:
            for each in run_values(run, {attempt.id for attempt in fitted}, continuations, on_episode):
                values[each.trajectory_id] = each.values
    with _progress("reading") as on_batch:
        teacher = fit(
            fitted,
            reader=reader,
            kinds=("step", "trajectory") if kind == "both" else (kind,),
            values=values,
            on_batch=lambda done: on_batch(done, len(fitted)),
        )
    with _progress("measuring") as on_batch:
        measurement = measured(teacher, kept_out, lambda done: on_batch(done, len(kept_out)))
    teacher.save(out, measurement)
    typer.echo(f"fitted to {len(fitted)} attempts, measured on {len(kept_out)} at other questions")
    for line in _lines(measurement) if measurement else ():
        typer.echo(line)
    typer.echo(str(out))


def _distinct(attempts: list[Attempt]) -> list[Attempt]:
    if len({attempt.id for attempt in attempts}) < len(attempts):
        raise DataError("two attempts of DATA have the same id: fit to these data one by one")
    return attempts


def _lines(measurement: Measurement) -> Iterator[str]:
    """What is known of the teacher, one figure a line."""
    errors = measurement.first_errors
    for name, estimate in (
        ("AUROC of attempts", measurement.auroc),
        ("pairs at one question", measurement.pair_accuracy),
        ("calibration error", measurement.calibration_error),
        ("AUROC of steps", measurement.step_auroc),
        ("first error F1", errors.f1 if errors else None),
        ("  errors found", errors.erroneous if errors else None),
        ("  none found where none is", errors.error_free if errors else None),
    ):
        if estimate is not None:
            yield f"{name:28}{_shown(estimate)}"
    for status, share in measurement.invalid.items():
        yield f"{'without a score: ' + status:28}{share:.1%}"


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}] on {estimate.count}"


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
