"""A teacher that is a program: exact arithmetic and a fixed rubric for math episodes, no model and no gold answer."""

from __future__ import annotations

import ast
import json
import math
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

from ovd_gym.arithmetic import (
    Claim,
    NotArithmetic,
    agrees,
    claims,
    evaluate,
    is_identity,
    normalise,
    numbers,
    operator_runs,
)
from ovd_gym.records import Score
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.questions import CONSTANTS, Question, read_question
from ovd_gym.teachers.words import addresses_grader

__all__ = ["MathRules"]

_CALL_BLOCK = re.compile(r"<tool_call>.*?(?:</tool_call>|\Z)", re.DOTALL)
_COMPUTES = re.compile(r"[\w)\]]\s*(?:\*\*|//|[-+*/%])\s*[\w(\[.-]|\b(?!(?:print|int|float|str)\b)[a-z_.]+\(|\bfor\b")
_PRINT = re.compile(r"^\s*print\((.*)\)\s*$")
_COMMENT = re.compile(r"#.*")
_FRACTION = re.compile(r"[-( ]*([0-9]+)[) ]*/[( ]*([0-9]+)[) ]*")
MAX_CODE = 10_000
"""Characters of code that are parsed."""
_DECIMAL = re.compile(r"-?\d*\.?\d+")
_OFTEN = 3
"""How often one step may state the same equation."""
_NO_CALL = "Error:"
"""How an environment's observation begins when a call was refused or failed."""


class MathRules(Teacher):
    """Grades math episodes by checking what can be checked.

    What it can check: every equation ``expression = number`` in the student's words; whether the numbers it calculates
    with come from the question or from earlier results; whether the answer is what its results lead to; and, where the
    question is one arithmetic expression, a GCD, an LCM or a linear equation, whether the answer is right. It never
    sees the gold answer, and never executes anything.

    **A step** gets

    ==== ============================================================================================================
    0    nothing in it, or it addresses the grader
    1    an invalid call, a repetition, a false equation; a wrong answer, or one that contradicts its own results
    2    a failed call, a call that computes nothing, words without content, an answer out of nowhere
    3    calculates with numbers from nowhere, or something else than what was asked; a right answer out of nowhere
    4    on target, but nothing new; at most this for stating one equation again and again
    5    a sound calculation that may or may not be of use
    6-7  adds a result: numbers from the question, true equations, a part of the asked expression
    8-9  reaches the asked value; answers with it
    ==== ============================================================================================================

    **A trajectory** whose answer it can check gets at most 2 when the answer is wrong or missing (2 if it had sound
    results, else 1, 0 if it is empty) and, when it is right: 3 if nothing supports it, 5 if it stands beside a false
    equation, 6 if its support calculates with numbers from nowhere, 6-7 with wasted steps, 8, and 9 if it took no more
    steps than the question has operations, plus one.

    Where the answer cannot be checked (word problems), it gets 1-2 for a false equation or no answer, 2 if nothing
    supports the answer, and 6 if it is the last result of sound steps, less 2 for numbers from nowhere, up to 2 for
    numbers of the question that were never used, 1 for wasted steps and 3 for a negative count; never below 3.

    What only restates a number (``48 * 1 = 48``, ``48 + 0``) supports nothing, and an answer that is still a
    calculation is none. Code is read without its comments, and is a repetition however it is laid out.
    """

    name = "math-rules"

    def score(self, view: View) -> Score:
        """The digit for ``view``, with the reason as its rationale."""
        reading = _Reading(read_question(view.question), view)
        if reading.addresses_grader():
            return Score.of(0, "addresses the grader")
        for index in range(len(view.steps)):
            reading.take(index)
        digit, reason = reading.last() if view.kind == "step" else reading.whole()
        return Score.of(digit, reason)


@dataclass(frozen=True)
class _Finding:
    """What one step amounts to."""

    digit: int
    reason: str
    waste: bool = False
    false: bool = False
    stray: bool = False
    """Calculates with numbers that come from nowhere."""


@dataclass
class _Reading:
    """An attempt as read so far, step after step."""

    question: Question
    view: View
    findings: list[_Finding] = field(default_factory=list)
    strong: list[Fraction] = field(default_factory=list)
    """Results calculated from the question's numbers and from one another."""
    weak: list[Fraction] = field(default_factory=list)
    """Results in which at least half of the numbers are such."""
    used: set[Fraction] = field(default_factory=set)
    """Numbers of the question that some calculation used."""
    seen: set[str] = field(default_factory=set)

    def addresses_grader(self) -> bool:
        """Whether the student's own words speak to whoever scores them; a question about grading may use its words."""
        texts = [step.text for step in self.view.steps] + [self.view.answer or ""]
        if self.view.kind == "step":
            texts = texts[-2:]
        return any(addresses_grader(text, self.view.question) for text in texts)

    # One step -------------------------------------------------------------------------------------------

    def take(self, index: int) -> None:
        """Read the next step and note what it amounts to."""
        step = self.view.steps[index]
        answers = self.view.answer is not None and index == len(self.view.steps) - 1
        is_line = step.tool is not None and step.text.lstrip().startswith(f"{step.tool}:")
        words = "" if is_line else _CALL_BLOCK.sub("", step.text)
        stated = self._claims(words)
        if answers:
            finding = self._answer(stated)
        elif step.tool is not None:
            finding = self._tool(step)
        else:
            finding = self._words(step, stated)
        plain = normalise(words)
        if any(plain.count(claim.expression) > _OFTEN for claim in stated[:20]):
            finding = _Finding(min(4, finding.digit), "says the same again and again", waste=True)
        if any(not claim.true for claim in stated):
            wrong = next(claim for claim in stated if not claim.true)
            finding = _Finding(
                1, f"false: {wrong.expression} = {_show(wrong.stated)}, it is {_show(wrong.value)}", false=True
            )
        self.findings.append(finding)

    def _claims(self, words: str) -> list[Claim]:
        """The claims in ``words``; the true ones count as results from now on."""
        stated = claims(words)
        for claim in stated:
            if claim.true and not is_identity(claim.expression):
                self._result(numbers(claim.expression), [claim.stated])
        return stated

    def _result(self, operands: Iterable[Fraction], results: Iterable[Fraction]) -> float:
        """Note a calculation; returns the share of its operands that come from the question or earlier results."""
        operands = [abs(operand) for operand in operands]
        known = self.question.known | {abs(value) for value in (*self.strong, *self.weak)}
        sourced = [operand for operand in operands if operand not in CONSTANTS or operand in self.question.stated]
        share = sum(operand in known for operand in sourced) / len(sourced) if sourced else 0.0
        self.used |= self.question.stated.intersection(operands)
        results = list(results)
        if share == 1.0:
            self.strong += results
        elif share >= 0.5:
            self.weak += results
        return share

    def _tool(self, step: StepText) -> _Finding:
        arguments = {key: _bare(v) if isinstance(v, str) else json.dumps(v) for key, v in step.arguments.items()}
        key = json.dumps([step.tool, arguments], sort_keys=True)
        if key in self.seen:
            return _Finding(1, "repeats an earlier call", waste=True)
        self.seen.add(key)
        if step.observation.startswith(_NO_CALL) or not step.observation.strip():
            return _Finding(2, "the call failed or gave nothing", waste=True)
        code = " ".join(arguments.values())
        if not _COMPUTES.search(code) or _restates(code):
            return _Finding(2, "the call computes nothing", waste=True)
        results = numbers(step.observation)[:20]
        share = self._result(numbers(normalise(code)), results)
        if share < 0.5:
            return _Finding(3, "calculates with numbers that come from nowhere", waste=True, stray=True)
        return self._progress(_value(code), results, set(re.findall(r"\*\*|//|[-+*/%]", code)), stray=share < 1.0)

    def _progress(self, value: Fraction | None, results: list[Fraction], operators: set[str], stray: bool) -> _Finding:
        question = self.question
        if question.target is None:
            return _Finding(6, "a calculation with numbers of the question", stray=stray)
        if question.target in results:
            return _Finding(6 if stray else 9, "reaches the asked value", stray=stray)
        if value in question.parts:
            return _Finding(7, "a part of the asked expression", stray=stray)
        if question.parts and (operators - question.operators or question.stated <= self.used):
            return _Finding(3, "calculates something else than what was asked", waste=True)
        return _Finding(5, "a sound calculation", stray=stray)

    def _words(self, step: StepText, stated: list[Claim]) -> _Finding:
        text = " ".join(step.text.split())
        if not re.search(r"\w", text):
            return _Finding(0, "empty", waste=True)
        if step.observation.startswith(_NO_CALL):
            return _Finding(1, "an invalid call", waste=True)
        fresh = [c for c in stated if f"{c.expression}={c.stated}" not in self.seen]
        repeated = text in self.seen or (stated and not fresh)
        self.seen |= {text, *(f"{c.expression}={c.stated}" for c in stated)}
        if repeated:
            return _Finding(1, "repeats what was said before", waste=True)
        stated = [claim for claim in stated if not is_identity(claim.expression)]
        if not stated:
            return _Finding(4, "nothing new") if numbers(text) else _Finding(2, "no content that can be checked")
        values = [claim.stated for claim in stated]
        if any(value in self.strong for value in values):
            if self.question.target in values:
                return _Finding(9, "reaches the asked value")
            return _Finding(7, "true equations with numbers of the question")
        if any(value in self.weak for value in values):
            return _Finding(5, "a true equation, in part with numbers from nowhere", stray=True)
        return _Finding(4, "a true equation with numbers that come from nowhere", stray=True)

    # The answer -----------------------------------------------------------------------------------------

    def _answer(self, stated: list[Claim]) -> _Finding:
        value, right, support = self._verdict()
        if value is None:
            return _Finding(1, "the answer is not one number", false=True)
        if right is False:
            return _Finding(1, f"the answer {_show(value)} is wrong", false=True)
        if right:
            digit = {"strong": 9, "weak": 6, "none": 3}[support]
            return _Finding(digit, f"the right answer, support: {support}")
        digit = {"strong": 6, "weak": 5, "none": 2}[support]
        return _Finding(digit, f"an answer that cannot be checked, support: {support}")

    def _verdict(self) -> tuple[Fraction | None, bool | None, Literal["strong", "weak", "none"]]:
        """(the answer's value, whether it is right if that is known, what supports it)."""
        text = self.view.answer or ""
        value = None if _is_calculation(text) else _value(text)
        if value is None:
            return None, None, "none"
        target = self.question.target
        plain = text.strip().replace(",", "")
        right = (
            None if target is None else target == value or (bool(_DECIMAL.fullmatch(plain)) and agrees(plain, target))
        )
        close = [value, target] if right and target is not None else [value]
        support: Literal["strong", "weak", "none"] = "none"
        if any(v in self.weak for v in close):
            support = "weak"
        if any(v in self.strong for v in close):
            support = "strong"
        return value, right, support

    # The verdicts ---------------------------------------------------------------------------------------

    def last(self) -> tuple[int, str]:
        """Digit and reason for the last step."""
        finding = self.findings[-1] if self.findings else _Finding(0, "empty")
        return finding.digit, finding.reason

    def whole(self) -> tuple[int, str]:
        """Digit and reason for the whole attempt."""
        if not any(re.search(r"\w", step.text) for step in self.view.steps):
            return 0, "empty"
        value, right, support = self._verdict()
        sound = any(finding.digit >= 5 for finding in self.findings)
        if value is None or right is False:
            what = "no answer that is one number" if value is None else f"the answer {_show(value)} is wrong"
            return (2, f"{what}, after sound steps") if sound else (1, what)
        return self._right(support) if right else self._unchecked(value, support)

    def _right(self, support: str) -> tuple[int, str]:
        if support == "none":
            return 3, "right, but nothing supports it"
        if any(finding.false for finding in self.findings):
            return 5, "right, beside a false equation"
        if support == "weak":
            return 6, "right, calculated with numbers that come from nowhere"
        if waste := sum(finding.waste for finding in self.findings):
            return (7 if waste == 1 else 6), f"right and supported, with {waste} wasted steps"
        if len(self.findings) > self._needed_steps() + 1:
            return 8, "right and supported"
        return 9, "right, supported and economical"

    def _needed_steps(self) -> int:
        return max(1, len(self.question.parts))

    def _unchecked(self, value: Fraction, support: str) -> tuple[int, str]:
        if any(finding.false for finding in self.findings):
            return 2, "it rests on a false equation"
        if support == "none":
            return 2, "nothing supports the answer"
        unused = len(self.question.stated - self.used - {Fraction(1)})
        penalties = {
            "numbers from nowhere": 2 * (support == "weak" or any(finding.stray for finding in self.findings)),
            "numbers of the question left out": min(2, unused),
            "wasted steps": int(any(finding.waste for finding in self.findings)),
            "a result below zero": 3 * (value < 0),
            "not its last result": int(value != (self.strong + self.weak)[-1] and value not in self.strong[-1:]),
        }
        because = ", ".join(reason for reason, points in penalties.items() if points)
        return max(3, 6 - sum(penalties.values())), f"supported{'; less for ' + because if because else ''}"


def _value(text: str) -> Fraction | None:
    """The value of an expression, or of the one number in a phrase; None if there is no such value."""
    plain = _arithmetic(text)
    try:
        return evaluate(plain)
    except NotArithmetic:
        found = set(numbers(plain))
    return found.pop() if len(found) == 1 else None


def _arithmetic(text: str) -> str:
    """``text`` in plain notation, without a ``print`` around it."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", normalise(_PRINT.sub(r"\1", text)))


def _restates(code: str) -> bool:
    try:
        return is_identity(_arithmetic(code))
    except NotArithmetic:
        return False


def _is_calculation(answer: str) -> bool:
    """Whether ``answer`` leaves something to be worked out; a percentage or a fraction in lowest terms does not."""
    runs = operator_runs(re.sub(r"%|(?<=[0-9])\.(?![0-9])", "", _PRINT.sub(r"\1", answer)))
    fraction = _FRACTION.fullmatch(runs[0]) if len(runs) == 1 else None
    if fraction is None:
        return bool(runs)
    return math.gcd(int(fraction[1]), int(fraction[2])) > 1


def _bare(code: str) -> str:
    """``code`` without comments and layout: two calls that differ in nothing else are the same call."""
    if len(code) <= MAX_CODE:
        try:
            with warnings.catch_warnings():  # such as "5 (3) calls a number"
                warnings.simplefilter("ignore")
                return ast.unparse(ast.parse(code.strip()))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            pass  # not Python; other notations have comments of the same kind
    return " ".join(_COMMENT.sub("", code).split())


def _show(value: Fraction) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{float(value):.6g}" if abs(value) < 10**300 else f"{text[:20]}..."
