"""Questions of one to four hops: a chain of facts, each on a page of its own, asked as one sentence.

A chain starts at an entity that the question names and follows facts that have exactly one object, so every question
has exactly one answer. It never visits a page twice, and its answer stands neither in the question nor on any of its
pages but the last: there is no way around a hop.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable, Collection, Container

from pydantic import JsonValue

from ovd_gym.envs.web_search.world.facts import FactBase
from ovd_gym.envs.web_search.world.schema import RELATIONS, Entity, Fact
from ovd_gym.records import Task

__all__ = ["Chain", "Questioner", "contains"]

Chain = tuple[Fact, ...]
"""One fact per hop; the object of each is the subject of the next."""

_PATIENCE = 500
"""Draws in a row that may come to nothing before a world counts as exhausted."""


class Questioner:
    """Draws chains whose pages are all in ``pages``, and puts them into words."""

    def __init__(self, base: FactBase, pages: Collection[str], text_of: Callable[[str], str]) -> None:
        self._base = base
        self._text_of = text_of
        self._pages = sorted(pages)
        inside = frozenset(pages)
        objects = Counter((fact.subject, fact.relation) for fact in base.facts)
        usable = [f for f in base.facts if f.subject in inside and objects[f.subject, f.relation] == 1]
        self._links: dict[str, list[Fact]] = {page: [] for page in self._pages}
        self._ends: dict[str, list[Fact]] = {page: [] for page in self._pages}
        for fact in usable:
            if RELATIONS[fact.relation].nouns and fact.target in inside:
                self._links[fact.subject].append(fact)
            if RELATIONS[fact.relation].asks:
                self._ends[fact.subject].append(fact)

    def draw(self, rng: random.Random, hops: int, taken: Container[Chain]) -> tuple[Chain, str] | None:
        """A chain that is not in ``taken``, and its question; None when no more could be found."""
        for _ in range(_PATIENCE):
            chain = self._walk(rng, hops)
            if chain is None or chain in taken:
                continue
            question = self._ask(rng, chain)
            if self._fair(chain, question):
                return chain, question
        return None

    def task(self, chain: Chain, question: str, label: str) -> Task:
        """The task of a chain; ``label`` begins its id, which says nothing of the chain."""
        key = " ".join(f"{fact.subject} {fact.relation}" for fact in chain)
        digest = hashlib.blake2s(key.encode(), digest_size=6).hexdigest()
        pages = [self._base.entities[fact.subject] for fact in chain]
        metadata: dict[str, JsonValue] = {
            "hops": len(chain),
            "gold_pages": [page.id for page in pages],
            "gold_titles": [page.title for page in pages],
            "relations": [fact.relation for fact in chain],
            "plan": [_plan_step(n, fact, page) for n, (fact, page) in enumerate(zip(chain, pages, strict=True))],
        }
        return Task(id=f"{label}-{digest}", question=question, answers=chain[-1].forms, metadata=metadata)

    def _walk(self, rng: random.Random, hops: int) -> Chain | None:
        page = rng.choice(self._pages)
        chain: list[Fact] = []
        for _ in range(hops - 1):
            visited = {fact.subject for fact in chain} | {page}
            links = [fact for fact in self._links[page] if fact.target not in visited]
            if not links:
                return None
            chain.append(rng.choice(links))
            page = str(chain[-1].target)
        return (*chain, rng.choice(self._ends[page])) if self._ends[page] else None

    def _ask(self, rng: random.Random, chain: Chain) -> str:
        subject = self._base.entities[chain[0].subject].mention
        for n, fact in enumerate(chain[:-1]):
            nouns = RELATIONS[fact.relation].nouns
            # A clause around a clause ("the town where the school where she went stands") is hard to read.
            plain = [noun for noun in nouns if noun.endswith("{x}")]
            subject = rng.choice(plain if n and plain else nouns).format(x=subject)
        return rng.choice(RELATIONS[chain[-1].relation].asks).format(x=subject)

    def _fair(self, chain: Chain, question: str) -> bool:
        texts = [question, *(self._text_of(fact.subject) for fact in chain[:-1])]
        return not any(contains(text, form) for text in texts for form in chain[-1].forms)


def contains(text: str, phrase: str) -> bool:
    """Whether the words of ``phrase`` stand in ``text``, one after the other; case and punctuation do not count."""
    return f" {_words(phrase)} " in f" {_words(text)} "


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _plan_step(n: int, fact: Fact, page: Entity) -> dict[str, JsonValue]:
    statement = f"{RELATIONS[fact.relation].label} of {page.title}: {fact.text}"
    return {"action": "follow" if n else "search", "query": page.title, "page": page.id, "fact": statement}
