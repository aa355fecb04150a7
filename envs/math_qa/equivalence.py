r"""Whether an answer is the gold answer: exact for plain numbers, by Math-Verify for everything else.

Math-Verify and the LaTeX parser below it run in a process that is killed at the deadline, never in the caller's.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Literal, NamedTuple

from ovd_gym.actions import last_boxed
from ovd_gym.envs.math_qa import processes
from ovd_gym.envs.math_qa.plain import plain_number

__all__ = ["Verdict", "compare", "compare_numbers", "compare_plain", "equivalent"]

TIMEOUT_S = 5.0
"""Math-Verify needs about 1 ms for a number and 150 ms for the longest real answers."""

_PLAIN = re.compile(r"([+-]?(?:0|[1-9][0-9]{0,29}))(?:\.([0-9]{1,15})|/([1-9][0-9]{0,14}))?", re.ASCII)

_HEDGE = re.compile(
    r"\b(?:not|but|except|neither|nor|never|unless|excluding)\b|n't\b|\\neq?\b|\\lnot\b|!=|[≠¬]", re.IGNORECASE
)
"""What makes a text say something else than the value in it."""
_CLOSE = Fraction(1, 1000)
"""Relative difference of numbers that rounding may make equal; it must not make tiny ones so."""


class Verdict(NamedTuple):
    """Whether two answers are equal, and how that was found out."""

    equal: bool
    how: Literal["identical", "numbers", "math-verify", "timeout", "crash", "hedged", "no-number"]
    """``timeout`` and ``crash``: the predicted text brought the checker down, which makes it a wrong answer.
    ``hedged``: the predicted text denies a value; ``no-number``: it is not one plain number, where that was asked."""


def equivalent(gold: str, predicted: str, *, timeout_s: float = TIMEOUT_S) -> bool:
    r"""Whether ``predicted`` means the same as ``gold``; both plain ("24", "x+1") or LaTeX ("$\frac{1}{2}$").

    ``predicted`` may be a whole solution: the last ``\boxed{}`` counts, or what follows "the answer is".

    >>> equivalent("0.5", "1/2")
    True

    Raises:
        InfrastructureError: the checker's process could not be started. A text that hangs it is not equal.
    """
    return compare(gold, predicted, timeout_s=timeout_s).equal


def compare(
    gold: str,
    predicted: str,
    *,
    digits: int = 6,
    strict: bool = True,
    allow_set_relation_comp: bool = False,
    tolerance: float | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Verdict:
    """As :func:`equivalent`, saying how.

    Args:
        gold: the right answer.
        predicted: the student's.
        digits: decimals to which floats are rounded before they are compared.
        strict: variables must have the same names, and sets are no tuples.
        allow_set_relation_comp: ``1 < x < 2`` may equal ``(1, 2)``.
        tolerance: largest absolute difference between two numbers that count as equal.
        timeout_s: seconds until the checker is killed.
    """
    if (plain := compare_plain(gold, predicted)) is not None and (plain.equal or tolerance is None):
        return plain
    if _HEDGE.search(_final(predicted)) and not _HEDGE.search(gold):
        return Verdict(False, "hedged")
    arguments = (gold, predicted, digits, strict, allow_set_relation_comp, tolerance)
    for _ in range(2):
        try:
            return Verdict(processes.call("verify", *arguments, timeout_s=timeout_s), "math-verify")
        except processes.WorkTimeout:
            return Verdict(False, "timeout")
        except processes.WorkFailed:
            continue  # a worker may also die of what it did before: only a fresh one convicts the text
    return Verdict(False, "crash")


def compare_plain(gold: str, predicted: str) -> Verdict | None:
    """The verdict that needs no computer algebra: same text, same number, or two unequal fractions; else None."""
    gold, predicted = _undress(gold), _undress(predicted)
    if gold and gold == predicted:
        return Verdict(True, "identical")
    a, b = _number(gold), _number(predicted)
    if a is None or b is None:
        return None
    if a == b:
        return Verdict(True, "numbers")
    # Two unequal numbers may still agree after rounding if one has decimals, which Math-Verify decides.
    if "." in gold + predicted and abs(a - b) <= _CLOSE * max(abs(a), abs(b)):
        return None
    return Verdict(False, "numbers")


def compare_numbers(gold: str, predicted: str, *, tolerance: float | None = None) -> Verdict:
    """The verdict where one plain number was asked for (see :mod:`.plain`): exact, or within ``tolerance``.

    Math-Verify has no part in it: to it "3 + 4" is 7, so a question that states the calculation would answer itself.
    """
    a, b = plain_number(gold), plain_number(predicted)
    if a is None or b is None:
        return Verdict(False, "no-number")
    if gold.strip() == predicted.strip():
        return Verdict(True, "identical")
    return Verdict(abs(a - b) <= Fraction(tolerance or 0), "numbers")


def _final(text: str) -> str:
    """The part of ``text`` that is the answer: the last box; else its last line, from "answer" on if that is there."""
    _, boxed, last = text.rpartition(r"\boxed")
    if boxed:
        return last_boxed(boxed + last) or ""
    line = text.strip().rpartition("\n")[2]
    return line[max(0, line.lower().rfind("answer")) :]


def _undress(text: str) -> str:
    text = text.strip()
    if len(text) > 2 and text[0] == text[-1] == "$" and "$" not in text[1:-1]:
        return text[1:-1].strip()
    return text


def _number(text: str) -> Fraction | None:
    match = _PLAIN.fullmatch(text)
    return None if match is None else Fraction(text)
