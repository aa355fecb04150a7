"""The command line of reports: ``ovd-gym report``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ovd_gym.errors import ConfigError

__all__ = ["app", "report"]

app = typer.Typer(help="Read what runs have left.")

Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN", help="Run folders, finished or still going.", show_default=False)
]


@app.command(epilog="Example: ovd-gym report runs/score-reward runs/grpo --out arms.html")
def report(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option(help="The page; RUN/report.html for one run, report.html for several.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Most episodes in the page: whole steps, evenly spread.")] = 5000,
) -> None:
    """Write one HTML page about runs: curves, calibration of scores, every episode. It opens without a network."""
    from ovd_gym.recorder import Recorder
    from ovd_gym.report.run import report_on

    named = {name: Recorder.resume(path) for name, path in zip(_names(runs), runs, strict=True)}
    if out is None:
        out = runs[0] / "report.html" if len(runs) == 1 else Path("report.html")
    with _progress() as on_section:
        report_on(named, out, episodes, on_section)
    typer.echo(str(out))


def _names(runs: Sequence[Path]) -> list[str]:
    """What the runs are called: the names of their folders, or their paths where two names are the same."""
    paths = [path.resolve() for path in runs]
    if twice := [str(run) for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]:
        raise ConfigError(f"{twice[0]} is given twice: name each run once")
    shared = Counter(path.name for path in paths)
    return [path.name if shared[path.name] == 1 else str(run) for run, path in zip(runs, paths, strict=True)]


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """A live bar on a terminal. Ctrl-C is exit code 130: a page is written whole or not at all."""
    console = Console(stderr=True)
    columns = (TextColumn("reading episodes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)
    except KeyboardInterrupt:
        typer.echo("stopped: no page was written", err=True)
        raise typer.Exit(130) from None
