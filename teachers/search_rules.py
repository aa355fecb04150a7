"""A teacher that is a program, for search episodes: is a query new, a result informative, an answer supported?"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ovd_gym.records import Score
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.words import addresses_grader, content_words, evidence, plain_words

__all__ = ["SearchRules"]

_ANSWERS = {"answer", "finish"}
_FAILED = re.compile(
    r"\s*(?:Observation:|<information>)?\s*(?:Error|No results|Could not find|Not found)\b", re.IGNORECASE
)
_DOUBT = re.compile(
    r"\b(?:do|does|did|have|has|had|could|can|was|is|am|were)(?: not|n't) (?:\w+ ){0,3}?"
    r"(?:provide|mention|specify|find|found|able|contain|say|solved|know|sure)|\b(?:unable|no information|wrap up)\b",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"\bor\b|^\W*(?:are|is|was|were|do|does|did|has|have|had|can|could|will|would|both)\b", re.IGNORECASE
)
_NO_ANSWER = re.compile(r"\b(?:unknown|not found|none|no answer|i do not know|i don t know|cannot|unable|n a)\b")
_CAPITAL = r"[^\W\d_a-z]"
_WORD = rf"(?:{_CAPITAL}\.|{_CAPITAL}\w*|\d+)"
_RUN = re.compile(rf"\b{_WORD}(?:(?:[ '’-]+|(?<=\.)){_WORD})*")
"""Initials, words with a capital letter, and numbers in a row; the first of a sentence may be no name."""
_ENOUGH_STEPS = 5


@dataclass(frozen=True)
class _Finding:
    """What one step amounts to."""

    digit: int
    reason: str

    @property
    def waste(self) -> bool:
        return self.digit <= 3


class SearchRules(Teacher):
    """Grades search episodes by what can be checked without knowing the answer. It has no model and no gold answer.

    **A step** gets

    ==== ============================================================================================================
    0    nothing in it, or it addresses the grader
    1    an invalid call, or one that was made before
    2    a query about something else; an answer that repeats the question or stands in nothing that was read
    3    an empty result; a document that no result named; an answer without any reading
    4    a result that adds nothing new; a choice between what the question offers, made without reading
    5    a new result of a query that the question or the results so far hardly suggest, or for a part of a name
    6    a new result of a query on the question or on what was found; a document opened from the results, a text found
    7    the same with a name from the question or from the results in it; a chosen answer after reading
    8    the same, and the result speaks of what the question asks and was not read of before; a supported answer
    9    an answer supported close to the question's own words, after few steps and none wasted
    ==== ============================================================================================================

    **A trajectory** is as good as its answer is supported: 0 if it addresses the grader, 1 without an answer, 2 if the
    answer repeats the question, says that there is none or is not in what was read, 3 if nothing was read, 4 and 7 for
    a choice between what the question offers (yes/no among it) without and with reading, 5-7 for an answer that stands
    in what was read, the more the question's words stand around it, and up to 2 more if nothing is taken off: 1 or 2
    for wasted steps, 1 or 2 for more than five steps, 2 where the last thought doubts the answer, and 2 to 4 where the
    answer is a sentence instead of the answer alone. A supported answer never gets less than 2, others never less than
    1.

    Support is the answer's words in a row, in results and pages; the environment's echo of the answer, error messages
    and the student's own words are no support.
    """

    name = "search-rules"

    def score(self, view: View) -> Score:
        """The digit for ``view``, with the reason as its rationale."""
        reading = _Reading(view.question)
        texts = [step.text for step in view.steps] + [view.answer or ""]
        if view.kind == "trajectory" and any(addresses_grader(text, view.question) for text in texts):
            return Score.of(0, "addresses the grader")
        for step in view.steps:
            reading.take(step)
        if view.kind == "step":
            finding = reading.findings[-1] if reading.findings else _Finding(0, "no step")
            return Score.of(finding.digit, finding.reason)
        digit, reason = reading.whole(view.answer, view.steps)
        return Score.of(digit, reason)


@dataclass
class _Reading:
    """An attempt as read so far, step after step."""

    question: str
    findings: list[_Finding] = field(default_factory=list)
    calls: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    """Tool and content words of every call made."""
    texts: list[str] = field(default_factory=list)
    """What was read: results and pages."""
    known: set[str] = field(default_factory=set)
    """Content words of what was read."""

    def take(self, step: StepText) -> None:
        """Judge the next step, then remember what it brought."""
        finding = self._judge(step)
        self.findings.append(finding)
        if step.tool is not None:
            self.calls.append(_signature(step))
        if step.tool is not None and step.tool not in _ANSWERS and not _failed(step):
            self.texts.append(step.observation)
            self.known |= content_words(step.observation)

    def whole(self, answer: str | None, steps: Sequence[StepText]) -> tuple[float, str]:
        """The digit of the whole attempt."""
        base, reason = self._answer(answer)
        if base < 3 or answer is None:
            return base, reason
        wasted = sum(finding.waste for finding in self.findings[:-1])
        price = min(2, wasted) + min(2.0, 0.5 * max(0, len(steps) - _ENOUGH_STEPS))
        price += 2 * bool(steps and _DOUBT.search(steps[-1].text)) + _wordiness(answer)
        bonus = min(2.0, 9 - base) if not price and base > 4 and self.texts else 0
        floor = 2 if base > 4 else 1
        return max(floor, base + bonus - price), reason + (f"; {wasted} wasted steps" if wasted else "")

    # One step -------------------------------------------------------------------------------------------

    def _judge(self, step: StepText) -> _Finding:
        if addresses_grader(step.text, self.question):
            return _Finding(0, "addresses the grader")
        if not step.text.strip():
            return _Finding(0, "empty")
        if step.tool is None:
            return _Finding(1, "no valid call")
        if step.tool in _ANSWERS:
            return self._answering(step)
        if _signature(step) in self.calls:
            return _Finding(1, "a call that was made before")
        if _failed(step) or not step.observation.strip():
            return _Finding(3, "nothing came of it")
        return self._search(step) if step.tool == "search" else self._read(step)

    def _search(self, step: StepText) -> _Finding:
        words, asked = _signature(step)[1], content_words(self.question)
        found = content_words(step.observation)
        if not words & (asked | self.known):
            return _Finding(2, "a query that neither the question nor any result suggests")
        if len(found - self.known) < 3:
            return _Finding(4, "a result that adds nothing new")
        if len(words & (asked | self.known)) * 2 < len(words):
            return _Finding(5, "a query that goes mostly beyond the question and the results")
        names = {name for text in (self.question, *self.texts) for name in _names(text)}
        if not any(name & words for name in names):
            return _Finding(6, "a new result")
        if not any(name <= words for name in names):
            return _Finding(5, "a query for a part of a name")
        if (asked & found) - self.known:
            return _Finding(8, "a new result about a name, with more of what the question asks")
        return _Finding(7, "a new result about a name")

    def _read(self, step: StepText) -> _Finding:
        target = str(next(iter(step.arguments.values()), ""))
        if step.tool == "open" and not target.strip("[]").isdigit() and not any(target in text for text in self.texts):
            return _Finding(3, "a document that no result named")
        new = content_words(step.observation) - self.known
        if len(new) < 3 and step.tool == "open":
            return _Finding(4, "a document that adds nothing new")
        if content_words(self.question) & new:
            return _Finding(8, "read more of what the question asks")
        return _Finding(7 if len(new) >= 10 else 6, "read on")

    def _answering(self, step: StepText) -> _Finding:
        base, reason = self._answer(str(next(iter(step.arguments.values()), "")))
        clean = len(self.findings) < _ENOUGH_STEPS and not any(finding.waste for finding in self.findings)
        if base < 5:
            return _Finding(int(base), reason)
        return _Finding(7 if "choice" in reason else 9 if base >= 6 and clean else 8, reason)

    # The answer -----------------------------------------------------------------------------------------

    def _answer(self, answer: str | None) -> tuple[float, str]:
        """What the answer's support is worth, 1 to 7, before anything is taken off or added."""
        words = plain_words(answer or "")
        if not words:
            return 1, "no answer"
        named = evidence(words, [self.question]) is not None
        if _CHOICE.search(self.question) and (named or words in (["yes"], ["no"])):
            return (7, "a choice the question offers") if self.texts else (4, "a choice made without reading")
        if named or _NO_ANSWER.search(" ".join(words)):
            return 2, "says that there is no answer, or repeats the question"
        support = evidence(words, self.texts, content_words(self.question) - set(words))
        if support is None:
            return (2, "not in what was read") if self.texts else (3, "a guess: nothing was read")
        return 5 + 2 * min(1.0, support / 0.5), f"supported, with {support:.0%} of the question's words around it"


def _signature(step: StepText) -> tuple[str, frozenset[str]]:
    """Tool and words of a call; two calls with the same one are the same call."""
    text = json.dumps(step.arguments, ensure_ascii=False, sort_keys=True)
    words = frozenset(word for value in step.arguments.values() for word in plain_words(str(value)))
    return step.tool or "", words if step.tool == "search" else words | {text}


def _failed(step: StepText) -> bool:
    return _FAILED.match(step.observation) is not None


def _names(text: str) -> set[frozenset[str]]:
    """The words, in lower case, of every run of capitalised words and numbers.

    >>> sorted(map(sorted, _names("Who founded J.K. Norvia's Harbour? In 1921 Osk did.")))
    [['1921', 'osk'], ['harbour'], ['j', 'k', 'norvia']]
    """
    content = content_words(text)
    runs = (frozenset(plain_words(run)) & content for run in _RUN.findall(text))
    return {run for run in runs if run}


def _wordiness(answer: str) -> float:
    """What an answer that is a sentence loses: names and titles may be long, sentences have small words."""
    words = answer.split()
    small = sum(word[:1].islower() for word in words)
    return 4.0 if len(words) > 7 or small > 5 else 2.0 if len(words) > 3 and small > 1 else 0.0
