"""The command line of teachers: ``ovd-gym critique``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ovd_gym.errors import ConfigError, DataError, TeacherError

if TYPE_CHECKING:
    from ovd_gym.critique import Judged
    from ovd_gym.report.critique import Chapter
    from ovd_gym.report.critique import Table as Numbers
    from ovd_gym.teachers.base import Teacher
    from ovd_gym.teachers.labelled import Attempt

__all__ = ["app", "critique"]

_SHOWN = 5
"""Attempts that are printed; the page holds more, with transcripts."""

app = typer.Typer(help="Measure and compare teachers.")

Data = Annotated[
    list[Path],
    typer.Argument(
        metavar="DATA",
        help="Run folders; .jsonl or .jsonl.gz files of trajectories or of labelled attempts.",
        show_default=False,
    ),
]
Teachers = Annotated[
    list[str],
    typer.Option(
        "--teacher",
        help="Name of a teacher, with its options after it: 'digits model=MODEL'. Give several to compare them.",
        show_default=False,
    ),
]


@app.command(
    epilog="Example: ovd-gym critique runs/demo --teacher 'digits model=SmolLM2-135M-Instruct' --out judged\n\n"
    "Example: ovd-gym critique labelled.jsonl.gz --teacher math-rules --limit 200 --calibrate math-rules.json"
)
def critique(
    data: Data,
    teacher: Teachers,
    out: Annotated[Path, typer.Option(help="Folder for scores, numbers and page; scores in it are kept.")] = Path(
        "critique"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Take a fixed random choice of so many attempts.")] = None,
    source: Annotated[str, typer.Option(help="Take attempts of sources that match, such as 'mr-ben/*'.")] = "*",
    options: Annotated[list[str] | None, typer.Option(help="key=value, an option of every teacher.")] = None,
    privileged: Annotated[bool, typer.Option("--privileged", help="Show the gold answers to the teachers.")] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0, max=9, help="A step below is wrong; chosen by halves without.")
    ] = None,
    twice: Annotated[bool, typer.Option("--twice", help="Score again: how far does it agree with itself?")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Ask once more where a score has no number.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Attempts asked at once; Ctrl-C loses no more.")] = 16,
    calibrate: Annotated[Path | None, typer.Option(help="Write the teacher's calibration on DATA here.")] = None,
) -> None:
    """Score stored or labelled trajectories, measure the teachers and compare them.

    The same command goes on where it was stopped; nothing is asked twice.
    """
    from ovd_gym.critique import CritiqueFolder, judge, stored_critiques
    from ovd_gym.findings import compare, most_different, tables, write_findings

    if calibrate is not None and len(teacher) > 1:
        raise ConfigError(f"--calibrate is for one teacher, got {len(teacher)}")
    teachers = _teachers(teacher, options or [], privileged)
    attempts = _attempts(data, limit, source)
    folder = CritiqueFolder(out, attempts)
    judged: list[Judged] = []
    for made in teachers:
        for again in (False, True) if twice else (False,):
            with _progress(made.name, len(attempts)) as on_batch:
                judged.append(judge(made, attempts, folder, again=again, retry=retry, batch=batch, on_batch=on_batch))
    judged += stored_critiques(data, attempts)
    findings = compare(attempts, judged, threshold)
    written = write_findings(out, findings, attempts, judged, f"Teachers on {', '.join(path.name for path in data)}")
    for table in tables(findings):
        _print_table(table)
    if len(teachers) > 1:
        once = [one for one in judged if not one.again]
        _print_chapter(most_different(attempts, once), [one.label for one in once])
    if calibrate is not None:
        written.append(_calibrated(calibrate, attempts, judged[0]))
    for path in written:
        typer.echo(str(path))
    _insist_on_numbers(judged)


def _teachers(names: list[str], options: list[str], privileged: bool) -> list[Teacher]:
    """The teachers that ``names`` stand for; options beside a name go before those for all."""
    from ovd_gym.config_files import parse_setting, parse_spec
    from ovd_gym.teachers.registry import make_teacher

    shared: dict[str, Any] = dict(map(parse_setting, options))
    more = {"privileged": True} if privileged else {}
    specs = [parse_spec(text, "teacher") for text in names]
    made = [make_teacher(name, **shared | more | own) for name, own in specs]
    if len({(teacher.name, teacher.privileged) for teacher in made}) < len(made):
        raise ConfigError(f"two of the teachers are the same: {', '.join(teacher.name for teacher in made)}")
    return made


def _attempts(data: list[Path], limit: int | None, source: str) -> list[Attempt]:
    from ovd_gym.teachers.labelled import load_attempts, sample_groups

    attempts = [attempt for path in data for attempt in load_attempts(path, source=source)]
    if twice := [name for name, count in Counter(attempt.id for attempt in attempts).items() if count > 1]:
        raise DataError(f"two attempts have the id {twice[0]!r}: critique these data one by one")
    return attempts if limit is None else sample_groups(attempts, limit)


def _calibrated(path: Path, attempts: list[Attempt], judged: Judged) -> Path:
    from ovd_gym.teachers.calibration import fit_calibration

    fit_calibration(*judged.of(attempts)).save(path)
    return path


def _insist_on_numbers(judged: list[Judged]) -> None:
    """A teacher that could not score anything is an error, however neat its table looks."""
    for one in judged:
        scores = [score for critique in one.critiques.values() for score in (*critique.steps, critique.trajectory)]
        if not any(score.valid for score in scores):
            first = scores[0]
            raise TeacherError(_plain(f"{one.label} gave no score at all: {first.status}, {first.rationale}"))


# What is printed -------------------------------------------------------------------------------------------


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A live bar on a terminal. Ctrl-C becomes one line and exit code 130: what was scored is kept."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[invalid]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    done = 0
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(what, total=total, invalid="")

            def on_batch(scored: int, invalid: int) -> None:
                nonlocal done
                done = scored
                progress.update(task, completed=scored, invalid=f"{invalid} incomplete" if invalid else "")

            yield on_batch
    except KeyboardInterrupt:
        typer.echo(f"stopped: {what} has scored {done} of {total} attempts; the same command goes on", err=True)
        raise typer.Exit(130) from None


def _print_table(table: Numbers) -> None:
    shown = Table(title=table.title, title_justify="left", title_style="bold")
    for number, name in enumerate(table.head):
        shown.add_column(Text(_plain(name)), overflow="fold", justify="left" if number == 0 else "right")
    for row in table.rows:
        shown.add_row(*(Text(_plain(cell).replace(" [", "\n[")) for cell in row))
    Console().print(shown)


def _print_chapter(chapter: Chapter, labels: list[str]) -> None:
    typer.echo(_plain(f"{chapter.title}: scores of {', '.join(labels)}"))
    for case in chapter.cases[:_SHOWN]:
        scores = " ".join("?" if score.mean is None else f"{score.mean:.1f}" for score in case.scores)
        outcome = {True: "right", False: "wrong", None: "-"}[case.right]
        typer.echo(_plain(f"  {scores}  {outcome:5}  {case.id}  {case.question[:60]}"))
    if not chapter.cases:
        typer.echo("  nowhere by a whole digit")


def _plain(text: str) -> str:
    """One line without control characters: ids, questions and reasons are not trusted."""
    return "".join(c if c.isprintable() else " " for c in text)
