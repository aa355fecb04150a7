"""From text to terms, from a question to a query, from a hit to its snippet.

Questions come from a model: they are cut into terms and nothing in them is syntax. What was chosen here was measured
by ``benchmarks/search.py``; see there before changing it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ovd_gym.envs.web_search.services import optional

if TYPE_CHECKING:
    import tantivy

__all__ = ["ANALYSER", "TITLE_WEIGHT", "Analyser", "make_schema", "snippet"]

ANALYSER = "en_stem_fold"
"""Alphanumeric words in lower case, accents folded, English Snowball stems, words over 40 bytes left out."""

TITLE_WEIGHT = 0.7
"""Of a term in the title. The body holds the title too, so that a term found there alone counts 1.7 times."""

MOST_OCCURRENCES = 8
"""Of one term that a snippet's place is chosen from."""

_FUNCTION_WORDS = (  # Lucene's English stop words
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
_QUESTION_WORDS = (  # what else makes a sentence a question
    "who what when where which how why whom whose did do does has have had were been being am"
)
STOP_WORDS = frozenset(f"{_FUNCTION_WORDS} {_QUESTION_WORDS}".split())
"""Left out of queries, not of the index: where a query holds nothing else ("The Who"), they are searched for."""


def make_schema() -> tantivy.Schema:
    """Fields: ``id``, ``title``, ``body`` (title and text) to search, ``record`` (the passage as JSON) to read."""
    builder = optional("tantivy").SchemaBuilder()
    builder.add_text_field("id", tokenizer_name="raw", index_option="basic")
    builder.add_text_field("title", tokenizer_name=ANALYSER, index_option="freq")
    builder.add_text_field("body", tokenizer_name=ANALYSER, index_option="freq")
    builder.add_bytes_field("record", stored=True)
    schema: tantivy.Schema = builder.build()
    return schema


class Analyser:
    """Terms of passages and of queries."""

    def __init__(self) -> None:
        self._tantivy = tv = optional("tantivy")
        filters = (
            tv.Filter.remove_long(40),
            tv.Filter.lowercase(),
            tv.Filter.ascii_fold(),
            tv.Filter.stemmer("english"),
        )
        builder = tv.TextAnalyzerBuilder(tv.Tokenizer.simple())
        for step in filters:
            builder = builder.filter(step)
        self._analyser: tantivy.TextAnalyzer = builder.build()
        self._stop = frozenset(stem for word in STOP_WORDS for stem in self._analyser.analyze(word))

    def register(self, index: tantivy.Index) -> None:
        """Make ``index`` use it; needed whenever one is created or opened."""
        index.register_tokenizer(ANALYSER, self._analyser)

    def terms(self, query: str) -> list[str]:
        """The terms of ``query``, each once; stop words only where there is nothing else. Empty: no word in it."""
        terms = dict.fromkeys(self._analyser.analyze(query))
        return [term for term in terms if term not in self._stop] or list(terms)

    def query(self, schema: tantivy.Schema, terms: Sequence[str]) -> tantivy.Query:
        """BM25 over body and title, any of ``terms``."""
        tv = self._tantivy
        parts = []
        for term in terms:
            in_title = tv.Query.term_query(schema, "title", term, "freq")
            parts.append((tv.Occur.Should, tv.Query.boost_query(in_title, TITLE_WEIGHT)))
            parts.append((tv.Occur.Should, tv.Query.term_query(schema, "body", term, "freq")))
        query: tantivy.Query = tv.Query.boolean_query(parts)
        return query


def snippet(text: str, terms: Sequence[str], chars: int = 300) -> str:
    """The part of ``text`` with the most different ``terms``: one line of about ``chars`` characters, cuts marked.

    Searches for the beginnings of words, not for stems: three times as fast as tantivy's generator on passages, and
    it does not analyse a long page anew for each query.

    >>> snippet("Far out in the uncharted backwaters lies a small unregarded yellow sun.", ["yellow", "sun"], chars=30)
    '... unregarded yellow sun.'
    """
    if len(text) <= chars:
        return " ".join(text.split())
    lead = chars // 6  # characters shown before the first match
    start = max(0, _densest(text, [_beginning(term) for term in terms], chars - lead) - lead)
    start = max(0, min(start, len(text) - chars))
    end = start + chars
    if start > 0:
        start = next((i for i in range(start, end) if text[i - 1].isspace()), start)
    if end < len(text):
        end = next((i for i in range(end, start, -1) if text[i].isspace()), end)
    cut = " ".join(text[start:end].split())
    return f"{'... ' if start > 0 else ''}{cut}{' ...' if end < len(text) else ''}"


def _densest(text: str, beginnings: Sequence[str], width: int) -> int:
    """Where the ``width`` characters with the most different ``beginnings`` of words start; 0 without any."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few capitals become two characters; offsets must stay those of the text
        lowered = text
    found = []
    for bit, beginning in enumerate(beginnings):
        at, left = lowered.find(beginning), MOST_OCCURRENCES
        while at >= 0 and left:
            if at == 0 or not lowered[at - 1].isalnum():
                found.append((at, 1 << bit))
                left -= 1
            at = lowered.find(beginning, at + len(beginning))
    found.sort()
    best, most = 0, 0
    for i, (start, terms) in enumerate(found):
        for at, bit in found[i + 1 :]:
            if at >= start + width:
                break
            terms |= bit
        if (count := terms.bit_count()) > most:
            best, most = start, count
    return best


def _beginning(stem: str) -> str:
    """What words with that stem begin with: the stemmer turns a last y into i and may add an e."""
    return stem[:-1] if len(stem) > 3 and stem[-1] in "ie" else stem
