"""The command line of evaluations: ``ovd-gym eval``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ovd_gym.errors import ConfigError, DataError, InfrastructureError

if TYPE_CHECKING:
    from ovd_gym.eval_results import Figures, Sheet
    from ovd_gym.eval_setup import Contest, Entrant, Plan
    from ovd_gym.evals import Episode

__all__ = ["app", "evaluate"]

_SOME_FAILED = 3
"""Exit code of an evaluation in which episodes failed."""

app = typer.Typer(help="Evaluate agents.")


@app.command(
    "eval",
    epilog="Example: ovd-gym eval runs/demo\n\n"
    "Example: ovd-gym eval Qwen/Qwen2.5-1.5B-Instruct --data gsm8k --data math500 --samples 8 --out evals/qwen\n\n"
    "Example: ovd-gym eval 'ovd_gym.agents.searchers:follow_titles open_top=1' --data 'world count=200'\n\n"
    "Example: ovd-gym eval --compare evals/before evals/after",
)
def evaluate(
    agent: Annotated[
        str | None,
        typer.Argument(
            metavar="AGENT",
            help="A run folder, a model, or package.module:function; options after it: 'MODEL key=value'.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Questions by name or file, options after it. Give several for several.")
    ] = None,
    env: Annotated[str | None, typer.Option(help="Environment id, options after it.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Episodes per question.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of sampling; 0 without --samples, 1 with them.", show_default=False)
    ] = None,
    top_p: Annotated[float, typer.Option(help="Draw among the likeliest tokens of this share.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Take a fixed random choice of so many questions.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn at random.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Episodes at once; a kill loses no more.")] = 64,
    out: Annotated[Path, typer.Option(help="Folder for episodes and figures; episodes in it are kept.")] = Path("eval"),
    retry: Annotated[bool, typer.Option("--retry", help="Play the batches again in which an episode failed.")] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Compare two evaluations, question by question.")
    ] = None,
) -> None:
    """Have an agent answer questions, greedily or several times each, and say how well it does.

    The same command goes on where it was stopped, and gives the same figures again. Exit code 3: episodes failed.
    """
    if compare is not None:
        if agent is not None:
            raise ConfigError("--compare reads two evaluations: give no agent")
        _compare(*compare)
        return
    if agent is None:
        raise ConfigError("give an agent: a run folder, a model or package.module:function; or --compare A B")
    from ovd_gym.eval_setup import Plan, contests, entrant, training_of

    heat = float(samples > 1) if temperature is None else temperature
    plan = Plan(samples=samples, temperature=heat, top_p=top_p, seed=seed, batch=batch, limit=limit)
    asked = contests(data or [], env, training_of(agent))  # before the agent: a model may take minutes to load
    _finish(out, _evaluate_all(entrant(agent), asked, plan, out, retry))


def _evaluate_all(player: Entrant, asked: Sequence[Contest], plan: Plan, out: Path, retry: bool) -> list[Figures]:
    from ovd_gym.eval_results import figures
    from ovd_gym.eval_setup import open_contest
    from ovd_gym.evals import EvalFolder, evaluate_tasks

    found: list[Figures] = []
    for contest in asked:
        envs, tasks, settings = open_contest(contest, player, plan)
        try:
            folder = EvalFolder(out / contest.label, settings)
            if retry:
                folder.forget_failed()
            with _live(found, contest.label, len(tasks) * plan.samples) as on_turn:
                episodes = evaluate_tasks(player.play(tasks), envs, tasks, plan, folder, on_turn)
            found.append(figures(contest.label, episodes, folder.batches()))
        finally:
            for env in envs:
                env.close()
    return found


def _finish(out: Path, found: Sequence[Figures]) -> None:
    """Print and write the figures. Exit code 3 if episodes failed; all of a set is an error."""
    from ovd_gym.eval_results import markdown, sheet
    from ovd_gym.folders import refuse_links

    results, table = out / "results.jsonl", out / "results.md"
    refuse_links(results, table)
    shown = sheet(found)
    try:
        results.write_text("".join(one.model_dump_json() + "\n" for one in found), encoding="utf-8")
        table.write_text(markdown(shown), encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write to {out}: {error.strerror}") from None
    _print(shown)
    for path in (results, table):
        typer.echo(str(path))
    if dead := [one for one in found if one.failed == one.episodes]:
        raise InfrastructureError(f"no episode of {dead[0].data} could be played: its reasons are in {out}")
    if failed := sum(one.failed for one in found):
        typer.echo(
            f"{failed} episodes failed and are left out; the same command with --retry plays them again", err=True
        )
        raise typer.Exit(_SOME_FAILED)


def _compare(first: Path, second: Path) -> None:
    from ovd_gym.eval_results import compare, sheet_of_pairs

    typer.echo(f"A: {first}    B: {second}")
    for pair in compare(first, second):
        _print(sheet_of_pairs(pair))
        for name, (there, here) in pair.differing.items():
            typer.echo(_plain(f"  not the same: {name}: {there!r:.60} / {here!r:.60}"))


# What is printed -------------------------------------------------------------------------------------------


class _Watch:
    """A live table: what is finished, and what is being played."""

    def __init__(self, found: Sequence[Figures], label: str, total: int) -> None:
        self._rows = [(one.data, one.episodes, one.episodes, one.shares.get("accuracy"), 0) for one in found]
        self._label = label
        self._total = total
        self._finished: Sequence[Episode] = ()
        self._playing = self._tokens = 0

    @property
    def done(self) -> int:
        """Episodes on disk."""
        return len(self._finished)

    def __call__(self, finished: Sequence[Episode], playing: int, tokens: int) -> None:
        self._finished, self._playing, self._tokens = finished, playing, tokens

    def __rich__(self) -> Table:
        table = Table("", "episodes", "accuracy so far", "failed", "turns", "tokens of this batch")
        for name, done, total, accuracy, _ in self._rows:
            table.add_row(_plain(name), f"{done} / {total}", "" if accuracy is None else f"{accuracy.value:.3f}")
        graded = [episode for episode in self._finished if episode.reward is not None]
        accuracy_now = f"{sum(e.right for e in graded) / len(graded):.3f}" if graded else ""
        turns = f"{sum(e.turns for e in graded) / len(graded):.1f}" if graded else ""
        counts = f"{self.done + self._playing} / {self._total}"
        failed = str(self.done - len(graded))
        table.add_row(_plain(self._label), counts, accuracy_now, failed, turns, f"{self._tokens:,}")
        return table


@contextmanager
def _live(found: Sequence[Figures], label: str, total: int) -> Iterator[_Watch]:
    """Show the table on a terminal. Ctrl-C becomes one line and exit code 130: what was played is kept."""
    console = Console(stderr=True)
    watch = _Watch(found, label, total)
    try:
        if not console.is_terminal:
            yield watch
            return
        with Live(watch, console=console, refresh_per_second=4, transient=True):
            yield watch
    except KeyboardInterrupt:
        typer.echo(f"stopped: {label} has {watch.done} of {total} episodes; the same command goes on", err=True)
        raise typer.Exit(130) from None


def _print(sheet: Sheet) -> None:
    typer.echo(_plain(sheet.title))
    shown = Table()
    for number, name in enumerate(sheet.head):
        shown.add_column(Text(_plain(name)), overflow="fold", justify="left" if number == 0 else "right")
    for row in sheet.rows:
        shown.add_row(*(Text(re.sub(r" \[", "\n[", _plain(cell))) for cell in row))
    Console().print(shown)


def _plain(text: str) -> str:
    """One line without control characters: names and reasons are not trusted."""
    return "".join(c if c.isprintable() else " " for c in text)
