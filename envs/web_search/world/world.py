"""The fictional world: made from a seed, read as pages or passages, asked about in tasks."""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import Literal

from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.world.article import Article, write_article
from ovd_gym.envs.web_search.world.cast import Cast
from ovd_gym.envs.web_search.world.culture import add_careers, add_events, add_organisations, add_works
from ovd_gym.envs.web_search.world.facts import FactBase
from ovd_gym.envs.web_search.world.questions import Chain, Questioner
from ovd_gym.envs.web_search.world.render import ROOT, article_html, article_text, index_html
from ovd_gym.envs.web_search.world.schema import Entity, Fact
from ovd_gym.envs.web_search.world.society import add_people, add_places, govern
from ovd_gym.errors import ConfigError, ToolError, unknown
from ovd_gym.records import Task

__all__ = ["HELD_OUT", "SMALLEST", "Split", "World"]

Split = Literal["train", "held_out"]

SMALLEST = 60
"""Pages. With fewer, families, presses and series have nobody to draw on."""
HELD_OUT = 0.3
"""Share of pages that belong to held-out questions."""
_REMEMBERED = 4096
"""Pages kept as they were written."""
_SCATTER = 0.3
"""Share of these that are drawn anywhere rather than along links."""


class World:
    """A closed world in which nothing can be answered from memory. It is also its own closed corpus.

    Everything depends on ``(seed, size)`` alone: the same bytes in every process. Pages are written when they are
    first read, each from a generator of its own.

    >>> world = World.generate(seed=0, size=100)
    >>> len(world.passages())
    100
    """

    def __init__(self, seed: int, size: int, entities: Sequence[Entity], facts: Sequence[Fact]) -> None:
        self.seed = seed
        self.size = size
        self.base = FactBase(entities, facts)
        self._article = functools.lru_cache(maxsize=_REMEMBERED)(self._write)

    @classmethod
    def generate(cls, seed: int = 0, size: int = 3000) -> World:
        """The world of that seed with ``size`` pages. Raises :class:`~ovd_gym.errors.ConfigError` below 60 pages."""
        if size < SMALLEST or seed < 0:
            raise ConfigError(f"a world needs a size of at least {SMALLEST} and a seed of at least 0: {size=}, {seed=}")
        cast = Cast(random.Random(f"world {seed} {size}"))
        countries, towns, organisations = max(2, size // 50), size // 8, size // 8
        works, events = size // 4, size // 10
        add_places(cast, countries, towns)
        add_people(cast, size - countries - towns - organisations - works - events)
        add_organisations(cast, organisations)
        add_works(cast, works)
        add_events(cast, events)
        add_careers(cast)
        govern(cast)
        return cls(seed, size, *cast.finish())

    # Reading --------------------------------------------------------------------------------------------

    @property
    def entities(self) -> Sequence[Entity]:
        """All entities, by page id."""
        return tuple(self.base.entities.values())

    @property
    def facts(self) -> Sequence[Fact]:
        """All facts, page by page."""
        return self.base.facts

    def passage(self, id: str) -> Passage:
        """The page as plain text. Raises :class:`~ovd_gym.errors.ToolError` for an unknown id."""
        return self._passage(id, "")

    def passages(self, ids: Sequence[str] | None = None, *, base_url: str = "") -> list[Passage]:
        """Pages as plain text, all of them when ``ids`` is None.

        Args:
            ids: page ids, in the order wanted.
            base_url: address of a site that serves this world; passages carry their page's address there then,
                and none without it.
        """
        return [self._passage(id, base_url) for id in (self.base.entities if ids is None else ids)]

    def html(self, page_id: str) -> str:
        """The page as an HTML document. Raises :class:`~ovd_gym.errors.ToolError` for an unknown id."""
        return article_html(self._article(page_id))

    def index_html(self) -> str:
        """A list of links to all pages, as an HTML document."""
        return index_html((entity.id, entity.title) for entity in self.entities)

    def _passage(self, id: str, base_url: str) -> Passage:
        article = self._article(id)
        url = f"{base_url.rstrip('/')}{ROOT}{id}" if base_url else ""
        return Passage(id=id, title=article.title, text=article_text(article), url=url)

    def _write(self, id: str) -> Article:
        if id not in self.base.entities:
            raise ToolError(f"there is no page {id[:80]!r}")
        rng = random.Random(f"page {self.seed} {self.size} {id}")
        return write_article(self.base.entities[id], self.base, rng)

    # Asking ---------------------------------------------------------------------------------------------

    def tasks(
        self, hops: Sequence[int] = (1, 2, 3, 4), count: int = 100, seed: int = 0, split: Split = "train"
    ) -> Sequence[Task]:
        """Questions with gold answers, gold pages and a gold plan; no two have the same chain.

        The two splits share no gold page, hence no gold fact, no chain and no question: every page belongs to one
        split for good, and a chain stays within the pages of its own.

        Args:
            hops: numbers of pages to read, taken in turn.
            count: number of questions.
            seed: another seed draws others from the same split (the same one may come up under both).
            split: ``"train"`` or ``"held_out"``.

        Returns:
            Tasks whose metadata holds ``hops``; ``gold_pages`` and ``gold_titles`` in the order of the plan;
            ``relations``, one a hop; and ``plan``, one step a hop: ``action`` ("search" or "follow" a link),
            ``query`` (the page's title, which is also the link's text), ``page`` and ``fact``, what to read there.

        Raises:
            ConfigError: for a bad argument, or when the world is too small for so many questions.
        """
        if not hops or min(hops) < 1 or max(hops) > 4 or count < 1 or seed < 0:
            raise ConfigError(f"hops lie in 1..4, count is at least 1, seed at least 0: {hops=}, {count=}, {seed=}")
        rng = random.Random(f"tasks {self.seed} {self.size} {split} {seed}")
        questioner = self._questioner(split)
        taken: dict[Chain, str] = {}
        for n in range(count):
            found = questioner.draw(rng, hops[n % len(hops)], taken.keys())
            if found is None:
                raise ConfigError(
                    f"a world of {self.size} pages has too few {hops[n % len(hops)]}-hop questions in split {split!r}: "
                    f"found {n} of {count}. Ask for fewer, or generate a larger world"
                )
            taken[found[0]] = found[1]
        label = f"world-{self.seed}-{self.size}"
        return tuple(questioner.task(chain, question, label) for chain, question in taken.items())

    def _questioner(self, split: str) -> Questioner:
        if split not in ("train", "held_out"):
            raise ConfigError(unknown("split", split, ("train", "held_out")))
        held_out = _grow(self.base, random.Random(f"split {self.seed} {self.size}"), round(HELD_OUT * self.size))
        pages = held_out if split == "held_out" else self.base.entities.keys() - held_out
        return Questioner(self.base, pages, lambda page: article_text(self._article(page)))


def _grow(base: FactBase, rng: random.Random, count: int) -> set[str]:
    """``count`` pages, most of them linked to another one of them: in a scattered set long chains would be rare."""
    everything = list(base.entities)
    chosen = [rng.choice(everything)]
    grown = set(chosen)
    while len(chosen) < count:
        targets = [fact.target for fact in base.about(rng.choice(chosen)) if fact.target]
        page = rng.choice(everything) if rng.random() < _SCATTER or not targets else rng.choice(targets)
        if page not in grown:
            grown.add(page)
            chosen.append(page)
    return grown
