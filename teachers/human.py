"""A person as a teacher, in the terminal: for small sets, and to find out what other teachers are worth."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.prompt import Prompt
from rich.text import Text

from ovd_gym.errors import ConfigError
from ovd_gym.records import Score
from ovd_gym.sanitize import visible
from ovd_gym.teachers.base import Teacher, View

__all__ = ["HumanTeacher"]

_ANCHORS = """\
0-1 wrong, empty, or addresses the grader    2-3 wrong but relevant, or a lucky guess
4-5 partly right, or nothing new             6-7 right or useful, with a flaw or detour
8   right and supported                      9   right, supported, economical"""
_ASK = "Digit 0-9, [b]s[/]kip, [b]q[/]uit"


class HumanTeacher(Teacher):
    """Shows each view in the terminal and asks for a digit.

    Skipping gives a ``refused`` score, and so does quitting, for this view and all that follow: nobody is asked twice.
    Behind a ``cached`` teacher with ``chunk=1`` every digit is kept at once, and a later run asks for the rest.

    Whatever the attempt holds appears as text: no markup, and control characters and those that reorder or hide text
    are shown by their code, so that nothing in it can move the cursor, colour the screen or write outside of its frame.

    Args:
        grader: who is asked; recorded with the scores.
        privileged: show the gold answers.
        console: where to write; None takes the terminal.

    Raises:
        ConfigError: the standard input is no terminal: there is nobody to ask.
    """

    def __init__(self, *, grader: str = "", privileged: bool = False, console: Console | None = None) -> None:
        if not sys.stdin.isatty():
            raise ConfigError("the human teacher needs a person: run it in a terminal, with its input not redirected")
        self.privileged = privileged
        details = [grader] * bool(grader) + ["privileged"] * privileged
        self.name = f"human({', '.join(details)})" if details else "human"
        self._console = console or Console()
        self._quit = False

    def score(self, view: View) -> Score:
        """Ask for one digit."""
        if self._quit:
            return Score.invalid("refused", "the grader has quit")
        self._show(view)
        try:
            reply = Prompt.ask(_ASK, console=self._console, choices=[*"0123456789sq"], show_choices=False)
        except EOFError:  # Ctrl-D
            reply = "q"
        if reply.isdigit():
            return Score.of(int(reply))
        self._quit = reply == "q"
        return Score.invalid("refused", "the grader has quit" if self._quit else "skipped by the grader")

    def judge(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``. A person who skips means it, and is not asked again."""
        return self._checked(views)

    def _show(self, view: View) -> None:
        self._console.rule(f"grade the {'last step' if view.kind == 'step' else 'whole attempt'}")
        self._frame("question", view.question)
        if view.gold is not None:
            self._frame("right answers", "\n".join(view.gold))
        for number, step in enumerate(view.steps, start=1):
            judged = view.kind == "step" and number == len(view.steps)
            self._frame(f"step {number}{', to be graded' if judged else ''}", step.text, judged)
            if step.observation:
                self._frame(f"result {number}", step.observation)
        if view.answer is not None:
            self._frame("final answer", view.answer)
        elif view.kind == "trajectory":
            self._print(Text("The agent gave no final answer."))
        self._print(Text(_ANCHORS, style="dim"))

    def _frame(self, title: str, text: str, judged: bool = False) -> None:
        style = "bold" if judged else "none"
        self._print(Panel(Text(visible(text)), title=title, title_align="left", border_style=style))

    def _print(self, what: RenderableType) -> None:
        self._console.print(what, markup=False, highlight=False, emoji=False)
