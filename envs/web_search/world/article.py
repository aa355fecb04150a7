"""A page as a writer would compose it: table, prose, distractors, links. Both renderings are made from this one."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ovd_gym.envs.web_search.world.facts import FactBase
from ovd_gym.envs.web_search.world.schema import RELATIONS, Entity, Fact

__all__ = ["Article", "Section", "Span", "write_article"]

_IN_TABLE_ONLY, _IN_PROSE_ONLY = 0.2, 0.3
"""Shares of facts; the others stand in both, so that neither a table reader nor a prose reader finds everything."""
_SENTENCES = 4
"""In one paragraph, at most."""
_LIST_LENGTH = 4
_HEADINGS = {
    "person": ("Life", "Career", "Legacy"),
    "work": ("Origin", "Contents", "Reception"),
    "town": ("Geography", "History", "Administration"),
    "country": ("Geography", "State", "Culture"),
    "organisation": ("History", "Structure", "Activities"),
    "event": ("Course", "Result", "Organisation"),
}
_OPENERS = ("By contrast, ", "For comparison: ", "Elsewhere, ", "As other pages have it, ")


class Span(NamedTuple):
    """A piece of text, perhaps a link."""

    text: str
    target: str | None = None
    """Page id."""


Line = tuple[Span, ...]


class Section(NamedTuple):
    """A heading with its paragraph."""

    heading: str
    lines: Line


class Article(NamedTuple):
    """Everything on a page, in the order of reading."""

    title: str
    hatnote: Line
    """Which page a reader may have meant instead; empty where there is no namesake."""
    intro: Line
    table: tuple[tuple[str, Line], ...]
    sections: tuple[Section, ...]
    related: Line


def write_article(entity: Entity, base: FactBase, rng: random.Random) -> Article:
    """The page of ``entity``. The same ``rng`` state gives the same words."""
    facts = base.about(entity.id)
    places = [rng.random() for _ in facts]
    told = [fact for fact, place in zip(facts, places, strict=True) if place >= _IN_TABLE_ONLY]
    rng.shuffle(told)
    listed = [fact for fact, place in zip(facts, places, strict=True) if place < 1 - _IN_PROSE_ONLY]
    paragraphs = [told[i : i + _SENTENCES] for i in range(0, len(told), _SENTENCES)]
    headings = _HEADINGS[entity.kind]
    sections = [
        Section(headings[min(n, len(headings) - 1)], _tell(entity, paragraph, rng))
        for n, paragraph in enumerate(paragraphs)
    ]
    return Article(
        title=entity.title,
        hatnote=_hatnote(entity, base),
        intro=_intro(entity),
        table=tuple(_table(listed)),
        sections=(*sections, Section("Context", _distract(entity, base, rng))),
        related=_links(entity, base, rng),
    )


def _hatnote(entity: Entity, base: FactBase) -> Line:
    spans = [span for other in base.namesakes(entity) for span in (Span(", "), Span(other.title, other.id))]
    return (Span("Not to be confused with "), *spans[1:], Span(".")) if spans else ()


def _intro(entity: Entity) -> Line:
    article = "an" if entity.sort[0] in "aeio" else "a"
    verb = "was" if entity.kind in ("person", "event") else "is"
    return (Span(f"{_first_mention(entity)} {verb} {article} {entity.sort}."),)


def _first_mention(entity: Entity) -> str:
    return f"The {entity.title}" if entity.kind == "event" else entity.title


def _table(facts: Sequence[Fact]) -> Iterator[tuple[str, Line]]:
    """One row per relation; several objects of one relation share it."""
    rows: dict[str, list[Span]] = {}
    for fact in facts:
        row = rows.setdefault(RELATIONS[fact.relation].label, [])
        row += [Span("; "), Span(fact.text, fact.target)] if row else [Span(fact.text, fact.target)]
    return ((label, tuple(spans)) for label, spans in rows.items())


def _tell(entity: Entity, facts: Sequence[Fact], rng: random.Random) -> Line:
    spans: list[Span] = []
    for n, fact in enumerate(facts):
        subject = Span(entity.short if n else _first_mention(entity))
        spans += _sentence(fact, subject, rng, " " if n else "")
    return tuple(spans)


def _distract(entity: Entity, base: FactBase, rng: random.Random) -> Line:
    """True sentences about other pages, near-duplicates first."""
    others = [*base.namesakes(entity)[:1], *base.lookalikes(entity)[:1], base.random_peer(entity, rng)]
    spans: list[Span] = []
    for other in dict.fromkeys(others):
        fact = rng.choice(base.about(other.id))
        opener = rng.choice(_OPENERS)
        spans += _sentence(fact, Span(other.title, other.id), rng, f" {opener}" if spans else opener, capital=False)
    return tuple(spans)


def _sentence(fact: Fact, subject: Span, rng: random.Random, lead: str, capital: bool = True) -> list[Span]:
    spans = [Span(lead)] if lead else []
    for piece in _pieces(rng.choice(RELATIONS[fact.relation].says)):
        spans.append(subject if piece == "{s}" else Span(fact.text, fact.target) if piece == "{o}" else Span(piece))
    spans = [span for span in (*spans, Span(".")) if span.text]
    if capital:
        first = 1 if lead else 0
        spans[first] = Span(spans[first].text[0].upper() + spans[first].text[1:], spans[first].target)
    return spans


@functools.cache
def _pieces(wording: str) -> tuple[str, ...]:
    return tuple(re.split(r"(\{[so]\})", wording))


def _links(entity: Entity, base: FactBase, rng: random.Random) -> Line:
    """Some of the pages that speak of this one."""
    sources = base.linking_to(entity.id)
    chosen = rng.sample(sources, min(_LIST_LENGTH, len(sources)))
    spans = [span for other in chosen for span in (Span("; "), Span(other.title, other.id))]
    return tuple(spans[1:])
