"""A person as a teacher: what is asked, what is shown, and what hostile text can do to the terminal (nothing)."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from ovd_gym.errors import ConfigError
from ovd_gym.records import Score
from ovd_gym.teachers.base import StepText, View
from ovd_gym.teachers.cache import Cached
from ovd_gym.teachers.human import HumanTeacher
from ovd_gym.teachers.registry import make_teacher

HOSTILE = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\b[bold red]red[/] [link=http://evil.test]x[/link] :bomb: \u202eabc\u2028"


class Terminal(io.StringIO):
    """What a person types, line after line."""

    def isatty(self) -> bool:
        return True


def grading(monkeypatch: pytest.MonkeyPatch, typed: str, privileged: bool = False) -> tuple[HumanTeacher, io.StringIO]:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    screen = io.StringIO()
    return HumanTeacher(grader="ann", privileged=privileged, console=Console(file=screen, width=100)), screen


def view(text: str = "3 + 4 = 7", kind: str = "trajectory", answer: str | None = "7") -> View:
    steps = (StepText(text="first", observation="what came back"), StepText(text=text, observation=""))
    return View(kind=kind, question="What is 3 + 4?", steps=steps, answer=answer, gold=("seven",))  # type: ignore[arg-type]


def test_a_digit_is_the_score_and_anything_else_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, screen = grading(monkeypatch, "10\nnine\n\n7\n")
    assert teacher.judge([view()]) == [Score.of(7)]
    assert screen.getvalue().count("Digit 0-9") == 4


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, screen = grading(monkeypatch, "7\n7\n")
    teacher.judge([view(kind="step"), view(answer=None)])
    step, whole = screen.getvalue().split("grade the whole attempt")
    for text in (
        "What is 3 + 4?",
        "first",
        "what came back",
        "3 + 4 = 7",
        "step 2, to be graded",
        "8   right and supp",
    ):
        assert text in step
    assert "The agent gave no final answer." in whole
    assert "to be graded" not in whole


@pytest.mark.parametrize("privileged", [False, True])
def test_the_gold_answer_is_shown_in_a_view_that_holds_it(monkeypatch: pytest.MonkeyPatch, privileged: bool) -> None:
    teacher, screen = grading(monkeypatch, "7\n", privileged)
    teacher.judge([view() if privileged else view().model_copy(update={"gold": None})])
    assert ("seven" in screen.getvalue()) is privileged
    assert teacher.name == ("human(ann, privileged)" if privileged else "human(ann)")


def test_skipping_and_quitting_refuse_and_nobody_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, screen = grading(monkeypatch, "s\n8\nq\n5\n")
    scores = teacher.judge([view()] * 4)
    assert [score.status for score in scores] == ["refused", "ok", "refused", "refused"]
    assert [score.rationale for score in scores[2:]] == ["the grader has quit"] * 2
    assert screen.getvalue().count("Digit 0-9") == 3
    assert scores[0].rationale == "skipped by the grader"


def test_the_end_of_the_input_is_quitting(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, _ = grading(monkeypatch, "")
    assert teacher.judge([view()])[0].status == "refused"


def test_hostile_text_is_only_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("7\n"))
    screen = io.StringIO()
    console = Console(file=screen, width=300, force_terminal=True, color_system=None)
    hostile = View(
        kind="trajectory",
        question=HOSTILE,
        steps=(StepText(text=HOSTILE, observation=HOSTILE),),
        answer=HOSTILE,
        gold=(HOSTILE,),
    )
    HumanTeacher(privileged=True, console=console).judge([hostile])
    shown = screen.getvalue()
    assert not set(shown) & set("\x1b\x07\x9b\r\b\u202e\u2028")
    assert shown.count("[bold red]red[/] [link=http://evil.test]x[/link] :bomb: \\u202eabc\\u2028") == 5


def test_without_a_terminal_there_is_nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("7\n"))
    with pytest.raises(ConfigError, match="needs a person: run it in a terminal"):
        make_teacher("human")


def test_grading_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    views = [view(text) for text in ("a", "b", "c")]
    first, _ = grading(monkeypatch, "1\nq\n")
    assert [s.value for s in Cached(first, tmp_path / "scores", chunk=1).judge(views)] == [1, None, None]
    second, screen = grading(monkeypatch, "2\n3\n")
    assert [s.value for s in Cached(second, tmp_path / "scores", chunk=1).judge(views)] == [1, 2, 3]
    assert screen.getvalue().count("Digit 0-9") == 2
