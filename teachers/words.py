"""Words of questions, queries and results, for teachers that are programs."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

__all__ = ["addresses_grader", "content_words", "evidence", "plain_words"]

_TO_GRADER = re.compile(
    r"\b(?:dear|hello|hey|note to|attention) (?:the )?(?:grader|judge|teacher|evaluator)|\bgraders?\b|\bgrading\b"
    r"|\bignore (?:all |any )?(?:the )?(?:previous|prior|above|other) instructions"
    r"|\b(?:give|award|assign|output|deserves?)\b[^.\n]{0,30}\b(?:full|maximum|top|highest|perfect) "
    r"(?:score|marks|points|grade)"
    r"|^\s*SCORE:\s*\d\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"\w+")
_ARTICLES = frozenset({"a", "an", "the"})
_EMPTY_WORDS = """
    a an the of in on at to for from by with and or is are was were be been being do does did has have had which what
    who whom whose when where how why many much that this these those it its as he she they his her their not s i you
    we me us so if than then there here also into about between both same other another such
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())
_NEAR = 40
"""How far around an answer its evidence reaches, in words."""


def addresses_grader(text: str, question: str) -> bool:
    """Whether ``text`` speaks to whoever judges it, in words that are not the question's own."""
    asked = question.lower()
    return any(found[0].lower() not in asked for found in _TO_GRADER.finditer(text))


def plain_words(text: str) -> list[str]:
    """The words of ``text`` in lower case, in order, without articles and punctuation.

    >>> plain_words("The Lord of the Rings!")
    ['lord', 'of', 'rings']
    """
    return [word for word in _WORD.findall(text.lower()) if word not in _ARTICLES]


def content_words(text: str) -> frozenset[str]:
    """The words of ``text`` in lower case that carry content.

    >>> sorted(content_words("Who wrote the Lord of the Rings?"))
    ['lord', 'rings', 'wrote']
    """
    return frozenset(_WORD.findall(text.lower())) - _EMPTY


def evidence(words: Sequence[str], texts: Sequence[str], asked: Collection[str] = ()) -> float | None:
    """How well ``texts`` support an answer of these ``words``: None if it stands in none of them, in a row; else the
    share of ``asked`` that stands near it, at best.

    >>> evidence(["tolkien"], ["The Hobbit was written by Tolkien in 1937."], {"wrote", "hobbit"})
    0.5
    """
    best: float | None = None
    size = len(words)
    for text in texts:
        tokens = plain_words(text)
        for at in range(len(tokens) - size + 1):
            if tokens[at] == words[0] and tokens[at : at + size] == list(words):
                near = set(tokens[max(0, at - _NEAR) : at + size + _NEAR])
                best = max(best or 0.0, len(near & set(asked)) / max(1, len(asked)))
    return best
