"""What a programmatic teacher can find out about a math question by itself: its numbers and, at times, its answer."""

from __future__ import annotations

import ast
import functools
import math
import re
from dataclasses import dataclass
from fractions import Fraction

from ovd_gym.arithmetic import NotArithmetic, evaluate, normalise, numbers, operator_runs

__all__ = ["CONSTANTS", "Question", "read_question"]

_ASKS = re.compile(
    r"\b(calculate|compute|evaluate|arithmetic|multiplication|division|addition|subtraction|multiply|what is|result of"
    r"|solve|sum of|product of)\b",
    re.IGNORECASE,
)
_LIST = re.compile(r":\s*((?:-?\d+\s*,?\s*(?:and\s+)?){2,})", re.IGNORECASE)
_EQUATION = re.compile(
    r"\b(?:solve|determine|find|value)\b[^:\n]*\b([a-z])\b[^:\n]*:\s*([^=\n]{1,100})=([^=\n]{1,100}?)\.?\s*$"
)
_NUMBER_WORDS = {
    "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
    "eleven": 11, "twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "hundred": 100,
    "thousand": 1000, "dozen": 12, "half": 2, "twice": 2, "double": 2, "pair": 2, "third": 3, "triple": 3, "thrice": 3,
    "quarter": 4, "quarters": 4, "fourth": 4, "fifth": 5, "week": 7, "weeks": 7, "weekly": 7, "year": 12, "years": 12,
    "hour": 60, "hours": 60, "minute": 60, "minutes": 60, "day": 24, "days": 24, "month": 12, "months": 12,
    "foot": 12, "feet": 12, "%": 100, "percent": 100, "cents": 100, "meter": 100, "meters": 100,
}  # fmt: skip
"""What a word may stand for in a sum about it."""
CONSTANTS = frozenset(map(Fraction, (0, 1, 2, 10, 100)))
"""Numbers that need no source, and are none."""


@dataclass(frozen=True)
class Question:
    """A question as far as arithmetic goes."""

    stated: frozenset[Fraction]
    """The numbers written in it with digits, without their signs."""
    known: frozenset[Fraction]
    """``stated``, what its words stand for, a few constants, and the place values of long numbers (270 of 274)."""
    target: Fraction | None
    """The answer, if the question is one expression, a GCD, an LCM or a linear equation."""
    parts: frozenset[Fraction]
    """Values of the sub-expressions on the way to the target."""
    operators: frozenset[str]
    """The operators of its expression."""


@functools.lru_cache(maxsize=4096)
def read_question(text: str) -> Question:
    """Analyse a question. Never raises: what cannot be read is left out."""
    stated = frozenset(abs(number) for number in numbers(normalise(text)))
    words = {Fraction(_NUMBER_WORDS[w]) for w in re.findall(r"[a-z]+|%", text.lower()) if w in _NUMBER_WORDS}
    places = {part for number in stated for part in _place_values(number)}
    expression = _expression(text)
    target = evaluate(expression) if expression else _special_target(text[:2000])
    return Question(
        stated=stated,
        known=stated | words | places | CONSTANTS,
        target=target,
        parts=_parts(expression) if expression else frozenset(),
        operators=frozenset(re.findall(r"\*\*|//|[-+*/%]", expression or "")),
    )


def _expression(text: str) -> str | None:
    """The one expression that ``text`` asks the value of; None if there is none, or anything else has a number."""
    runs = operator_runs(text)
    if len(runs) != 1 or not _ASKS.search(text) or "simplif" in text.lower():
        return None
    if len(numbers(normalise(text))) != len(numbers(runs[0])) or re.search(r"\b(round|digits|places)\b", text.lower()):
        return None
    try:
        evaluate(runs[0])
    except NotArithmetic:
        return None
    return runs[0]


def _special_target(text: str) -> Fraction | None:
    kind = re.search(r"greatest common divisor|least common multiple|\bgcd\b|\blcm\b", text.lower())
    if kind is not None and (listed := _LIST.search(text)):
        values = [int(digits) for digits in re.findall(r"-?\d{1,100}", listed[1])]
        return Fraction(math.gcd(*values) if kind[0].startswith("g") else math.lcm(*values))
    equation = _EQUATION.search(text.lower().strip())
    return _solve_linear(*equation.groups()) if equation else None


def _solve_linear(name: str, left: str, right: str) -> Fraction | None:
    """The one solution of ``left = right`` for ``name``; None if the equation is not linear."""
    source = re.sub(rf"(?<=[0-9)])\s*(?={name}\b)", "*", f"({normalise(left)}) - ({normalise(right)})")
    try:
        at = [evaluate(source, {name: Fraction(x)}) for x in (0, 1, 2, 3)]
    except NotArithmetic:
        return None
    slope = at[1] - at[0]
    if slope == 0 or at[2] - at[1] != slope or at[3] - at[2] != slope:
        return None
    return -at[0] / slope


def _parts(expression: str) -> frozenset[Fraction]:
    """Values of all operations inside ``expression``, its own among them."""
    source = expression.replace("^", "**")
    segments = (
        ast.get_source_segment(source, node)
        for node in ast.walk(ast.parse(source, mode="eval"))
        if isinstance(node, ast.BinOp)
    )
    return frozenset(evaluate(segment) for segment in segments if segment)


def _place_values(number: Fraction) -> set[Fraction]:
    """What a written number is split into when one calculates by hand: 274 -> 200, 70, 270, 74, 4."""
    if number.denominator != 1 or not 10 < number < 10**12:
        return set()
    value, parts = int(number), set()
    for k in range(1, len(str(value))):
        high, low = divmod(value, 10**k)
        parts |= {high * 10**k, low, high % 10 * 10**k}
    return {Fraction(part) for part in parts if part}
