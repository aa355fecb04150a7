"""What a program can say of a step or an attempt, as numbers with names: the part of a fitted teacher that can be read.

Every number is about one view: in a step view mostly about its last step, in a trajectory view about all of it. None
needs a model or the gold answer. Those of :data:`AMOUNTS` only say how much there is; they are apart because a student
that is trained on them can buy a score by writing more, or less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from functools import cached_property

from ovd_gym.arithmetic import Claim, claims, normalise, numbers
from ovd_gym.errors import ConfigError, unknown
from ovd_gym.teachers.base import View
from ovd_gym.teachers.questions import CONSTANTS, read_question
from ovd_gym.teachers.rules import MathRules
from ovd_gym.teachers.search_rules import SearchRules
from ovd_gym.teachers.words import content_words, evidence, plain_words

__all__ = ["AMOUNTS", "CHECKS", "FEATURES", "check_names", "describe"]

_MATH, _SEARCH = MathRules(), SearchRules()


class _Facts:
    """What the features of one view are made of, each part worked out once."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.texts = [step.text for step in view.steps]
        self.judged = self.texts[-1:] if view.kind == "step" else self.texts
        """What the view is about, in the student's words."""

    @cached_property
    def claims(self) -> list[Claim]:
        return [claim for text in self.judged for claim in claims(text)]

    @cached_property
    def numbers(self) -> list[Fraction]:
        return [number for text in self.judged for number in _numbers(text) if number not in CONSTANTS]

    @cached_property
    def sourced(self) -> set[Fraction]:
        """Numbers that come from the question, from what was said before, or out of a calculation."""
        before = self.texts[: len(self.texts) - len(self.judged)]
        results = {abs(claim.stated) for claim in self.claims}
        return results | read_question(self.view.question).known | {n for text in before for n in _numbers(text)}

    @cached_property
    def asked(self) -> frozenset[Fraction]:
        return read_question(self.view.question).stated - CONSTANTS

    @cached_property
    def used(self) -> set[Fraction]:
        return {number for text in self.texts for number in _numbers(text)}

    @cached_property
    def answer(self) -> list[str]:
        return plain_words(self.view.answer or "")

    @cached_property
    def support(self) -> float | None:
        """See :func:`~ovd_gym.teachers.words.evidence`, of the answer in what was read."""
        if not self.answer:
            return None
        read = [step.observation for step in self.view.steps if step.observation and step.tool != "answer"]
        return evidence(self.answer, read, content_words(self.view.question) - set(self.answer))

    @property
    def new_words(self) -> float:
        before = content_words("\n".join([self.view.question, *self.texts[:-1]]))
        last = content_words(self.texts[-1]) if self.texts else frozenset()
        return _share(word not in before for word in last)

    @property
    def offered(self) -> float:
        """1 where the answer is one that the question offers: yes, no, or words of its own."""
        in_question = bool(self.answer) and evidence(self.answer, [self.view.question]) is not None
        return float(in_question or self.answer in (["yes"], ["no"]))


CHECKS: Mapping[str, Callable[[_Facts], float]] = {
    "math rules": lambda facts: _MATH.score(facts.view).u,
    "search rules": lambda facts: _SEARCH.score(facts.view).u,
    "true equations": lambda facts: math.log1p(sum(claim.true for claim in facts.claims)),
    "false equations": lambda facts: math.log1p(sum(not claim.true for claim in facts.claims)),
    "numbers from nowhere": lambda facts: _share(number not in facts.sourced for number in facts.numbers),
    "broken numbers": lambda facts: _share(number.denominator != 1 for number in facts.numbers),
    "numbers left out": lambda facts: _share(number not in facts.used for number in facts.asked),
    "new words": lambda facts: facts.new_words,
    "no answer": lambda facts: float(not facts.answer),
    "long answer": lambda facts: math.log1p(len(facts.answer)),
    "answer offered": lambda facts: facts.offered,
    "answer read": lambda facts: float(facts.support is not None),
    "answer near the question": lambda facts: facts.support or 0.0,
}
"""What can be checked: the verdicts of the rule teachers, and what they rest on."""
AMOUNTS: Mapping[str, Callable[[_Facts], float]] = {
    "steps": lambda facts: math.log1p(len(facts.texts)),
    "words": lambda facts: math.log1p(sum(len(text.split()) for text in facts.judged)),
    "numbers": lambda facts: math.log1p(len(facts.numbers)),
    "words of the question": lambda facts: math.log1p(len(facts.view.question.split())),
}
"""How much there is."""
FEATURES: Mapping[str, Callable[[_Facts], float]] = {**CHECKS, **AMOUNTS}


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """``names``, if each is one of :data:`FEATURES`. Raises ConfigError."""
    names = tuple(names)
    for name in names:
        if name not in FEATURES:
            raise ConfigError(unknown("feature", name, FEATURES))
    return names


def describe(view: View, names: Sequence[str] = tuple(CHECKS)) -> list[float]:
    """The features of ``view`` called ``names``, in that order.

    >>> view = View(kind="trajectory", question="2 + 3?", steps=(), answer="Yes")
    >>> describe(view, ["answer offered", "answer read"])
    [1.0, 0.0]
    """
    facts = _Facts(view)
    return [FEATURES[name](facts) for name in names]


def _numbers(text: str) -> list[Fraction]:
    return [abs(number) for number in numbers(normalise(text))]


def _share(found: Iterable[bool]) -> float:
    """The share of True; 0 of nothing."""
    flags = list(found)
    return sum(flags) / len(flags) if flags else 0.0
