"""How an answer compares with the gold answers: exact match, F1 and cover exact match, after SQuAD's normalisation.

The normalisation is that of the official SQuAD 1.1 evaluation script, as HotpotQA, NQ-open and Search-R1 use it: lower
case, ASCII punctuation deleted (not replaced by a blank), the articles "a", "an", "the" taken out, blanks collapsed.
Published figures rest on it, so nothing is added to it. What that means beyond ASCII:

- quotes and dashes other than ASCII stay: "1914–1918" is not "1914-1918" (which becomes "19141918"), “x” is not "x";
- accents stay, and the two ways to write them differ: "é" (one code point) is not "é" (two);
- full-width forms and ligatures stay: "Ａ" is not "A";
- lower case is :meth:`str.lower`: "ß" is not "ss", and "İ" becomes two code points;
- blanks are whatever :meth:`str.split` splits at, the no-break and the ideographic space included;
- a word is what stands between blanks: for Chinese or Japanese that is a whole phrase, and F1 is all or nothing.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

__all__ = ["cover_exact_match", "exact_match", "f1", "normalise"]

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_CLOSED = {"yes", "no", "noanswer"}
"""Answers of which no part is partly right (HotpotQA's script)."""


def normalise(text: str) -> str:
    """``text`` in lower case, without ASCII punctuation, articles and extra blanks.

    >>> normalise("The Lord of the Rings!")
    'lord of rings'
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1.0 if the normalised ``answer`` is one of the normalised ``golds``, else 0.0.

    >>> exact_match("an Ada Lovelace.", ["Ada Lovelace"])
    1.0
    """
    return _best(lambda gold, given: float(gold == given), answer, golds)


def f1(answer: str, golds: Sequence[str]) -> float:
    """The best F1 of the words of ``answer`` against those of a gold answer, in [0, 1].

    Words count as often as they occur. "yes" and "no" are right or wrong as a whole, as in HotpotQA's script, and so
    is an answer of which normalisation leaves nothing.

    >>> f1("Ada Lovelace of London", ["Ada Lovelace"])
    0.6666666666666666
    """
    return _best(_f1, answer, golds)


def cover_exact_match(answer: str, golds: Sequence[str]) -> float:
    """1.0 if the words of one of the ``golds`` stand in ``answer`` in a row, else 0.0. Long answers win by it.

    >>> cover_exact_match("I believe it was Ada Lovelace of London", ["Ada Lovelace"])
    1.0
    """
    return _best(_covers, answer, golds)


def _best(measure: Callable[[str, str], float], answer: str, golds: Sequence[str]) -> float:
    if not golds:
        raise ValueError("no gold answers: a task has at least one")
    given = normalise(answer)
    return max(measure(normalise(gold), given) for gold in golds)


def _f1(gold: str, given: str) -> float:
    if gold == given:
        return 1.0
    if gold in _CLOSED or given in _CLOSED:
        return 0.0
    wanted, words = gold.split(), given.split()
    common = sum((Counter(wanted) & Counter(words)).values())
    return 2 * common / (len(wanted) + len(words)) if common else 0.0


def _covers(gold: str, given: str) -> float:
    # A gold answer of which nothing is left ("The") would stand in every text.
    return float(f" {gold} " in f" {given} " if gold else gold == given)
