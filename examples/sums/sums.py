"""A world small enough for learning curves: add four numbers, one equation a turn.

The question ``12+7+5+9`` is answered turn by turn with ``12+7=19;`` ``19+5=24;`` ``24+9=33;`` ``33#``. Here stand the
environment, a teacher that checks every equation, and a demonstrator; ``train.yaml`` names them as ``sums:...``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal
from zlib import crc32

import gymnasium as gym
import numpy as np

from ovd_gym import Score, Task, Teacher, ToolEnv, View, tool
from ovd_gym.actions import ActionFormat, Found
from ovd_gym.agents.scripted import Policy
from ovd_gym.records import Message, ToolCall, ToolSpec

Split = Literal["train", "tune", "test"]

_EQUATION = re.compile(r"(\d+)\+(\d+)=(\d+)", re.ASCII)
_NUMBER = re.compile(r"\d+", re.ASCII)


# Tasks --------------------------------------------------------------------------------------------------


def sums(count: int = 4096, seed: int = 0, split: Split = "train") -> list[Task]:
    """``count`` different questions of ``split``, drawn with ``seed``: four numbers from 1 to 49 each.

    A checksum of the question says which split it belongs to, so that nothing asked in one is ever asked in another:
    eight tenths are for training, one for choosing settings, one for the final figures.
    """
    rng = np.random.default_rng(seed)
    questions: dict[str, None] = {}
    while len(questions) < count:
        question = "+".join(map(str, rng.integers(1, 50, size=4)))
        if split_of(question) == split:
            questions[question] = None
    return [Task(id=q, question=q, answers=(str(sum(map(int, q.split("+")))),)) for q in questions]


def split_of(question: str) -> Split:
    """The split that ``question`` belongs to."""
    part = crc32(question.encode()) % 10
    return "tune" if part == 0 else "test" if part == 1 else "train"


def solution(question: str) -> list[str]:
    """The right turns for ``question``.

    >>> solution("12+7+5+9")
    ['12+7=19;', '19+5=24;', '24+9=33;', '33#']
    """
    first, *rest = map(int, question.split("+"))
    partial = list(accumulate(rest, initial=first))
    return [*(f"{a}+{b}={a + b};" for a, b in zip(partial, rest, strict=False)), f"{partial[-1]}#"]


# The environment ----------------------------------------------------------------------------------------


class Chain(ActionFormat):
    """A turn ends with ``;`` and is an equation to note, or with ``#`` and is the answer."""

    name = "chain"
    stop = (";", "#")

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """Nothing: a model of 16 characters cannot read any."""
        return ""

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:
        """Whatever it is, it is an answer or a note."""
        name = "answer" if text.endswith("#") else "note"
        return [Found(0, ToolCall(name=name, arguments={"text": text.removesuffix("#").removesuffix(";")}))]

    def render(self, call: ToolCall) -> str:
        """The text that makes ``call``."""
        return f"{call.arguments['text']}{'#' if call.name == 'answer' else ';'}"


class Sums(ToolEnv):
    """Reward 1 for the right sum, else 0.

    Args:
        tasks: the questions; None makes them with :func:`sums` from ``task_options``.
        reward: ``exact``; for control runs ``form``, 1 for any three equations and a number, right or wrong; or
            ``none``, always 0.
    """

    def __init__(
        self,
        tasks: Sequence[Task] | None = None,
        *,
        task_options: Mapping[str, Any] | None = None,
        reward: Literal["exact", "form", "none"] = "exact",
        max_turns: int = 6,
        **options: Any,
    ) -> None:
        made = sums(**(task_options or {})) if tasks is None else tasks
        super().__init__(made, action_format=Chain(), max_turns=max_turns, **options)
        self._reward = reward
        self._notes: list[str] = []

    def start_episode(self, task: Task) -> None:
        """With an empty sheet."""
        self._notes = []

    @tool
    def note(self, text: str) -> str:
        """Write an equation down."""
        self._notes.append(text)
        return ""

    def grade(self, task: Task, answer: str) -> float:
        """1.0 if ``answer`` is what ``reward`` asks for, else 0.0."""
        if self._reward == "exact":
            return float(answer in task.answers)
        well_formed = len(self._notes) == 3 and all(map(_EQUATION.fullmatch, self._notes)) and _NUMBER.fullmatch(answer)
        return float(self._reward == "form" and bool(well_formed))


gym.register("Sums-v0", f"{__name__}:Sums")


# Who judges and who shows -------------------------------------------------------------------------------


class SumRules(Teacher):
    """Checks every turn against the question and the turns before it.

    **A turn** gets 9 if it is right in its place: it goes on from the last result with the next number, or answers
    with the last result once all numbers are added. 3: the right equation with a wrong result. 1: another equation.
    0: none. A wrong turn spoils only itself; those after it are judged by what they make of its result.

    **The whole** gets 9 if every turn is right, 3 for a right answer after a wrong turn, and else a point for
    each right turn, 4 at most.
    """

    name = "sum-rules"

    def score(self, view: View) -> Score:
        """The digit for ``view``."""
        terms = view.question.split("+")
        texts = [step.text for step in view.steps]
        if view.kind == "step":
            return Score.of(judge(terms, texts))
        digits = [judge(terms, texts[: k + 1]) for k in range(len(texts))]
        if view.answer == str(sum(map(int, terms))):
            return Score.of(9 if min(digits) == 9 else 3)
        return Score.of(min(4, digits.count(9)))


def judge(terms: Sequence[str], turns: Sequence[str]) -> int:
    """The digit for the last of ``turns``; ``terms`` are the numbers to add."""
    *before, last = turns
    result = _result(before[-1]) if before else terms[0]
    if last.endswith("#"):
        return 9 if len(before) == len(terms) - 1 and last == f"{result}#" else 1
    equation = _EQUATION.fullmatch(last.removesuffix(";"))
    if equation is None:
        return 0
    if len(before) >= len(terms) - 1 or (equation[1], equation[2]) != (result, terms[len(before) + 1]):
        return 1
    return 9 if int(equation[1]) + int(equation[2]) == int(equation[3]) else 3


def _result(turn: str) -> str | None:
    """What stands behind the equals sign."""
    equation = _EQUATION.fullmatch(turn.removesuffix(";"))
    return equation[3] if equation else None


def add_up(tasks: Sequence[Task]) -> Policy:
    """A demonstrator that knows how; what has been noted before it takes over must be right."""

    def policy(messages: Sequence[Message]) -> str:
        said = sum(message.role == "assistant" for message in messages)
        question = next(message.content for message in messages if message.role == "user")
        return solution(question)[said]

    return policy
