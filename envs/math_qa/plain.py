r"""The one plain number that an answer is, read by a list of what may be written.

======================  ==============================================================================================
a number                ``7``, ``-7``, ``7.5``, ``.5``, ``1,250`` (``1{,}250``), ``7.5e-3``
a fraction              ``-3/4``, ``\frac{3}{4}``, in lowest terms: ``56/8`` is a division still to be done
before it               ``x =``, ``The answer is``, a currency sign
behind it               one unit, as a word, ``\text{word}``, ``%`` or a degree sign, which does not change the value; a
                        full stop
around it               ``$...$``, ``\(...\)``, ``\[...\]``, ``\boxed{...}``
======================  ==============================================================================================

Anything else is no plain number: a calculation, several numbers, a hedge. The list is of what is allowed, because
there are endless ways to write a calculation.
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["plain_number"]

MAX_CHARS = 400
MAX_WRAPPERS = 4

_LEAD = re.compile(r"(?:(?:the )?(?:final )?answer ?(?:is|:|=)|[a-z](?:_?[0-9])? ?=) ?", re.IGNORECASE)
_WRAPPED = re.compile(r"\$\$?([^$]*)\$\$?|\\\((.*)\\\)|\\\[(.*)\\\]|\\boxed ?\{(.*)\}")
_WHOLE = r"(?:[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+|[0-9]+)"
_WORD = r"[^\W\d_]{1,20}"
_NUMBER = re.compile(
    r"(?P<sign>[-+−–])? ?(?:\\?[$€£¥] ?)?(?P<inner_sign>[-−])?"
    rf"(?:(?P<decimal>{_WHOLE}(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{{1,3}})?|\.[0-9]+)"
    r"|(?P<top>[0-9]+) ?/ ?(?P<bottom>[0-9]+)"
    r"|\\[dt]?frac ?\{ ?(?P<tex_top>-?[0-9]+) ?\} ?\{ ?(?P<tex_bottom>[0-9]+) ?\})"
    rf"(?: ?(?:\\?%|°|\^ ?\\circ|\^ ?\{{ ?\\circ ?\}}|\\(?:text|mathrm) ?\{{ ?{_WORD} ?\}}|(?P<unit>{_WORD})))?"
)
_COUNTS = "dozen half third fourth fifth tenth hundredth thousandth hundred thousand million billion trillion"
_CHANGING = frozenset(
    [word + ending for word in _COUNTS.split() for ending in ("", "s")]
    + "halves squared cubed factorial root pi π tau e i k bn mod times plus minus negative not or and off".split()  # noqa: SIM905
)
"""Words behind a number that change it, or go on about another."""


def plain_number(text: str) -> Fraction | None:
    r"""The number that ``text`` is; None if it is not just one plain number.

    >>> plain_number(r"x = $\frac{1}{2}$"), plain_number("1 + 1"), plain_number("1 or 2")
    (Fraction(1, 2), None, None)
    """
    if len(text) > MAX_CHARS:
        return None
    match = _NUMBER.fullmatch(_unwrap(text))
    if match is None or (match["sign"] and match["inner_sign"]) or (match["unit"] or "").lower() in _CHANGING:
        return None
    sign = -1 if (match["sign"] or match["inner_sign"] or "+") != "+" else 1
    if match["decimal"]:
        return sign * Fraction(match["decimal"].replace("{,}", "").replace(",", ""))
    top, bottom = int(match["top"] or match["tex_top"]), int(match["bottom"] or match["tex_bottom"])
    if bottom < 2 or Fraction(top, bottom).denominator != bottom:
        return None
    return sign * Fraction(top, bottom)


def _unwrap(text: str) -> str:
    """``text`` without what may stand around a number."""
    for _ in range(MAX_WRAPPERS):
        text = " ".join(text.split()).removesuffix(".").rstrip()
        if lead := _LEAD.match(text):
            text = text[lead.end() :]
        elif wrapped := _WRAPPED.fullmatch(text):
            text = wrapped[wrapped.lastindex or 0]
        else:
            break
    return text
