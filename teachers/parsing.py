"""Reading a score out of the words of a teacher that can only write text."""

from __future__ import annotations

import re

from ovd_gym.records import Score

__all__ = ["parse_score"]

_LINE = re.compile(r"SCORE: ([0-9])")


def parse_score(text: str) -> Score:
    """The digit on the last line of ``text``, which must be exactly ``SCORE: d``; else a ``malformed`` score.

    Nothing is guessed: a verdict in any other form is no verdict.

    >>> parse_score("The product is right.\\nSCORE: 8").value
    8
    >>> parse_score("SCORE: 7/9").status
    'malformed'
    """
    before, _, last = text.rstrip().rpartition("\n")
    match = _LINE.fullmatch(last)
    if match is None:
        return Score.invalid("malformed", f"expected the last line to be `SCORE: d`, d one digit, got {last[-80:]!r}")
    return Score.of(int(match[1]), rationale=before.strip())
