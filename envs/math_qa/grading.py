"""Math-Verify on untrusted text. Imported by the worker process only: its parsers may hang, crash or evaluate."""

from __future__ import annotations

import logging
import re
from typing import Any

import sympy
from math_verify import parse
from math_verify import verify as math_verify

__all__ = ["verify"]

logging.getLogger("math_verify").setLevel(logging.ERROR)

_DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:or|and)\b)[A-Za-z]{2,}")
_FORMULA = re.compile(r"\$([^$]+)\$")
_NUMBER = re.compile(r"[0-9]+(?:[.,][0-9]+)*")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{[^{}]*\}|[0-9])\s*(?:\{[^{}]*\}|[0-9])")
_SPACED = re.compile(r"[0-9]{1,3}(?: [0-9]{3})+")
_DECIMAL_COMMA = re.compile(r"[0-9]+,[0-9]{2}")
_ANSWER = re.compile(r"\banswer\b", re.IGNORECASE)
_TINY = 1e-3
"""Below this, rounding to decimals makes numbers equal that are not; there they may differ by this share at most."""


def verify(
    gold: str, predicted: str, digits: int, strict: bool, allow_set_relation_comp: bool, tolerance: float | None
) -> bool:
    """Whether Math-Verify finds ``predicted`` equal to ``gold``; see :func:`..equivalence.compare`."""
    if _DECIMAL_COMMA.fullmatch(gold) and "." in predicted:
        gold = gold.replace(",", ".")
    golds, predictions = _read(gold), _read(predicted)
    if tolerance is not None and _close(golds, predictions, tolerance):
        return True
    if not golds or not predictions or _unlike(golds[0], predictions[0]):
        return False
    if not _WORD.search(predicted) and _contradictory(predictions[0]):
        return False
    # No timeouts of its own: they are signals, and the caller kills this process instead.
    relations = allow_set_relation_comp
    return bool(math_verify(golds, predictions, digits, 15, strict, relations, timeout_seconds=0))


def _read(text: str) -> list[Any]:
    """The value of ``text``, and its text as Math-Verify cleans it.

    Text without LaTeX delimiters is a formula; a sentence is searched for its number instead. Never both: the last
    number of ``x + y = 0`` is 0 whatever stands before it, and each further reading is one more guess.
    """
    formulas = _FORMULA.findall(text)
    if len(formulas) > 1 and not re.sub(r"[\s,;.]|\b(?:or|and)\b", "", _FORMULA.sub("", text)):
        text = ", ".join(formulas)  # nothing but formulas: all of them are the answer, not the last
    elif _DELIMITED.search(text):
        return list(parse(text, parsing_timeout=0))
    if _SPACED.fullmatch(text.strip()):
        text = "".join(text.split())
    if not _WORD.search(text):
        return list(parse(f"${text}$", parsing_timeout=0))
    if len(set(_NUMBER.findall(_FRACTION.sub("1", text)))) > 1 and not _ANSWER.search(text):
        return []  # "5 hours 20 minutes": which one?
    return list(parse(text, parsing_timeout=0)) or list(parse(f"${text}$", parsing_timeout=0))


def _contradictory(value: Any) -> bool:
    """Whether ``value`` is a chain such as ``5 = 6 = 7``, some of whose sides are different numbers."""
    links = sympy.And.make_args(value) if isinstance(value, sympy.And | sympy.Eq) else ()
    return any(isinstance(e, sympy.Eq) and e.lhs.is_number and e.rhs.is_number and e.lhs != e.rhs for e in links)


def _unlike(gold: Any, predicted: Any) -> bool:
    """What Math-Verify takes to be equal and is not: an equation and its right side, numbers that round to the same."""
    if isinstance(gold, sympy.Eq) and isinstance(predicted, sympy.Expr) and predicted.is_number:
        left = gold.lhs
        return bool(left.is_Add or left.is_Pow or left.as_coeff_Mul()[0] != 1)
    if not all(isinstance(v, sympy.Expr) and v.is_number and v.is_real for v in (gold, predicted)):
        return False
    if gold.is_Integer and predicted.is_Integer:
        return bool(gold != predicted)
    a, b = sympy.N(gold), sympy.N(predicted)
    largest = max(abs(a), abs(b))
    return bool(largest < _TINY and abs(a - b) > _TINY * largest)


def _close(golds: list[Any], predictions: list[Any], tolerance: float) -> bool:
    def numbers(values: list[Any]) -> list[float]:
        return [float(v) for v in values if isinstance(v, sympy.Expr) and v.is_number and v.is_real]

    return any(abs(g - p) <= tolerance * (1 + 1e-9) for g in numbers(golds) for p in numbers(predictions))
