"""What a person sees while a run goes on: a live bar, one line a step, and the evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ovd_gym.sanitize import visible

__all__ = ["Display"]

_COLUMNS = {
    "nll": "nll",
    "reward": "reward",
    "em": "EM",
    "score": "score",
    "entropy": "entropy",
    "tokens_per_s": "tok/s",
}


class Display:
    """A context manager around a training run; on a terminal the bar is live, elsewhere only the lines are printed."""

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        self.console = console or Console()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[phase]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=total_steps, phase="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def phase(self, text: str) -> None:
        """What is going on right now."""
        self._progress.update(self._task, phase=text)

    def say(self, text: str) -> None:
        """A line that stays, with nothing in it that acts on the terminal."""
        self.console.print(visible(text), highlight=False, soft_wrap=True, markup=False)

    def step(self, row: Mapping[str, Any]) -> None:
        """One training step is done."""
        self._progress.update(self._task, completed=row["step"])
        cells = [f"{label} {row[key]:.2f}" for key, label in _COLUMNS.items() if row.get(key) is not None]
        self._styled(f"step {row['step']:>4}  " + "  ".join(cells) + f"  [dim]{row['seconds']:.1f} s[/dim]")

    def evaluation(self, row: Mapping[str, Any]) -> None:
        """One evaluation is done."""
        if row["accuracy"] is None:
            self._styled(f"[bold]held out after {row['step']} steps: no episode could be graded[/bold]")
            return
        score = "" if row["score"] is None else f", teacher's score {row['score']:.2f}"
        self._styled(
            f"[bold]held out after {row['step']} steps: accuracy {row['accuracy']:.2f} "
            f"(95 % interval {row['low']:.2f}-{row['high']:.2f}, {row['episodes']} episodes{score})[/bold]"
        )

    def _styled(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)
