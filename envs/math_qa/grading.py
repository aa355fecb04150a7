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
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_LETTER_OR_EQUALS = re.compile(r"[A-Za-z=\\]")


def verify(
    gold: str, predicted: str, digits: int, strict: bool, allow_set_relation_comp: bool, tolerance: float | None
) -> bool:
    """Whether Math-Verify finds ``predicted`` equal to ``gold``; see :func:`..equivalence.compare`."""
    golds, predictions = _read(gold), _read(predicted)
    if tolerance is not None and _close(golds, predictions, tolerance):
        return True
    # No timeouts of its own: they are signals, and the caller kills this process instead.
    relations = allow_set_relation_comp
    return bool(math_verify(golds, predictions, digits, 15, strict, relations, timeout_seconds=0))


def _read(text: str) -> list[Any]:
    """The values ``text`` may mean.

    Text without LaTeX delimiters is read as a formula. Sentences and numbers are also searched for a number, which
    a formula must not be: the last number of ``x + y = 0`` is 0 whatever stands before it.
    """
    if _DELIMITED.search(text):
        return list(parse(text, parsing_timeout=0))
    values = list(parse(f"${text}$", parsing_timeout=0))
    if _WORD.search(text) or not _LETTER_OR_EQUALS.search(text):
        values += parse(text, parsing_timeout=0)
    return values


def _close(golds: list[Any], predictions: list[Any], tolerance: float) -> bool:
    def numbers(values: list[Any]) -> list[float]:
        return [float(v) for v in values if isinstance(v, sympy.Expr) and v.is_number and v.is_real]

    return any(abs(g - p) <= tolerance * (1 + 1e-9) for g in numbers(golds) for p in numbers(predictions))
