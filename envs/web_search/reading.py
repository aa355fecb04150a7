"""Reading a long text piece by piece: pages that end where a sentence ends, and passages around a phrase."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from itertools import accumulate
from typing import Annotated

from pydantic import Field

from ovd_gym.errors import ConfigError, ToolError
from ovd_gym.records import Record, Text

__all__ = ["Findings", "Match", "find_in_text", "paginate"]

MAX_NEEDLE = 500
_ENDS = tuple(map(re.compile, (r"\n\s*\n\s*", r"\n\s*", r"[.!?。！？]['\"”’)\]]*\s+|[。！？]", r"\s+")))
"""Where a page may end, best first: paragraph, line, sentence, word."""


class Match(Record):
    """One place where a phrase stands."""

    start: Annotated[int, Field(ge=0)]
    end: int
    """``text[start:end]`` is the phrase as the text writes it."""
    passage: Text
    passage_start: Annotated[int, Field(ge=0)]
    """``text[passage_start:]`` begins with ``passage``, which holds the phrase and what is around it."""


class Findings(Record):
    """The places where a phrase stands, in order."""

    matches: tuple[Match, ...]
    total: Annotated[int, Field(ge=0)]
    """How many there are, also beyond those in ``matches``."""


def paginate(text: str, page_chars: int) -> tuple[str, ...]:
    """``text`` in pages of at most ``page_chars`` characters; joined they are ``text``, and there is at least one.

    A page ends with a paragraph, else a line, a sentence, a word, provided that leaves it at least half full.
    Raises :class:`~ovd_gym.errors.ConfigError` unless ``page_chars`` is positive.

    >>> paginate("One. Two is longer. Three.", 12)
    ('One. Two is ', 'longer. ', 'Three.')
    """
    if page_chars < 1:
        raise ConfigError(f"page_chars must be at least 1, got {page_chars}")
    pages = []
    start = 0
    while len(text) - start > page_chars:
        end = _page_end(text, start, start + page_chars)
        pages.append(text[start:end])
        start = end
    return (*pages, text[start:])


def find_in_text(text: str, needle: str, context: int = 200, limit: int = 5) -> Findings:
    """Where ``needle`` stands in ``text``, whatever the case, the accents and the blanks between its words.

    Args:
        text: where to look.
        needle: the phrase; at most 500 characters.
        context: characters to show on each side, fewer where a word would be cut.
        limit: matches to return. One that the passage before it already shows is counted, but not returned.

    Raises:
        ToolError: an empty or overlong phrase.

    >>> find_in_text("Im Café\\nMÜLLER saß er.", "cafe muller").matches[0].start
    3
    """
    words = _fold(needle).split()
    if not words or len(needle) > MAX_NEEDLE:
        raise ToolError(f"the text to find must have 1 to {MAX_NEEDLE} characters, got {needle[:50]!r}")
    pieces = list(map(_folds(text).__getitem__, text))
    offsets = list(accumulate(map(len, pieces), initial=0))
    matches: list[Match] = []
    total = shown = 0
    for found in re.finditer(r"\s+".join(map(re.escape, words)), "".join(pieces)):
        total += 1
        # The character that a folded position comes from: the last one whose folding starts at or before it.
        start, end = bisect_right(offsets, found.start()) - 1, bisect_right(offsets, found.end() - 1)
        if len(matches) < limit and end > shown:
            matches.append(_match(text, start, end, context))
            shown = matches[-1].passage_start + len(matches[-1].passage)
    return Findings(matches=tuple(matches), total=total)


def _page_end(text: str, start: int, limit: int) -> int:
    half = (start + limit + 1) // 2
    for pattern in _ENDS:
        ends = [found.end() for found in pattern.finditer(text, half, limit)]
        if ends:
            return max(ends)
    return limit


def _match(text: str, start: int, end: int, context: int) -> Match:
    first, last = max(0, start - context), min(len(text), end + context)
    if first and (space := re.search(r"\s", text[first - 1 : start])):
        first += space.start()
    if last < len(text) and (space := re.search(r"\s\S*$", text[end : last + 1])):
        last = end + space.start()
    return Match(start=start, end=end, passage=text[first:last], passage_start=first)


def _folds(text: str) -> dict[str, str]:
    """What each character of ``text`` counts as."""
    return {character: _fold(character) for character in set(text)}


def _fold(text: str) -> str:
    """Without case, accents and compatibility forms; character by character the same as all at once."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in decomposed if not unicodedata.combining(c)).casefold()
