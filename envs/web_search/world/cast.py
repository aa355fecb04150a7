"""What the makers of the world share: drafts of entities, and the lists they stand in while the world is made."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from ovd_gym.envs.web_search.world.names import NameMaker, date_forms, number_forms
from ovd_gym.envs.web_search.world.schema import RELATIONS, Entity, Fact, Kind

__all__ = ["Cast", "Draft"]

_ORDER = {name: place for place, name in enumerate(RELATIONS)}


@dataclass(eq=False)
class Draft:
    """An entity that is still being made: a person by years of life, anything else by its year."""

    kind: Kind
    sort: str
    name: str
    qualifier: str = ""
    """Tells it from others of the same name: it stands in brackets in the title then."""
    year: int = 0
    end: int = 0
    aliases: list[str] = field(default_factory=list)
    facts: list[tuple[str, Draft | tuple[str, ...]]] = field(default_factory=list)
    """(relation, entity or forms of a literal)"""

    def state(self, relation: str, *objects: Draft | str | None) -> None:
        """State ``relation`` to an entity, or to a literal in all its forms; None states nothing."""
        first = objects[0]
        if isinstance(first, Draft):
            self.facts.append((relation, first))
        elif first is not None:
            self.facts.append((relation, tuple(str(form) for form in objects)))

    def call_also(self, alias: str) -> None:
        """Give it another name, and state so."""
        self.aliases.append(alias)
        self.state("also_known_as", alias)

    def year_at(self, rng: random.Random, low: int, high: int) -> int:
        """A year of a person's life between the ages ``low`` and ``high``."""
        return min(self.year + rng.randint(low, high), self.end)


class Cast:
    """Everything that has been made so far, with the one random generator that makes it."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names = NameMaker(rng)
        self.countries: list[Draft] = []
        self.towns: list[Draft] = []
        self.people: list[Draft] = []
        """By year of birth."""
        self.organisations: dict[str, list[Draft]] = defaultdict(list)
        """By sort, all of them under ``""``; by year once they are complete."""
        self.works: list[Draft] = []
        self.events: list[Draft] = []

    def chance(self, probability: float) -> bool:
        """True with ``probability``."""
        return self.rng.random() < probability

    def person(self, born_from: int = 0, born_to: int = 9999, *others: Draft) -> Draft | None:
        """Somebody born in these years who is none of ``others``; None where there is nobody."""
        first, last = (bisect_left(self.people, year, key=_year) for year in (born_from, born_to + 1))
        drawn = self.rng.sample(range(first, last), min(len(others) + 1, last - first))
        return next((self.people[n] for n in drawn if self.people[n] not in others), None)

    def peer(self, person: Draft, *others: Draft) -> Draft | None:
        """Somebody else born within 15 years of ``person``."""
        return self.person(person.year - 15, person.year + 15, person, *others)

    def organisation(self, sort: str, until: int = 9999) -> Draft | None:
        """An organisation of that sort (``""``: of any) that was there in the year ``until``."""
        there = bisect_left(self.organisations[sort], until + 1, key=_year)
        return self.organisations[sort][self.rng.randrange(there)] if there else None

    def date(self, year: int) -> tuple[str, ...]:
        """A day of ``year`` in all its forms."""
        return date_forms(self.rng.randint(1, 28), self.rng.randint(1, 12), year)

    def number(self, low: int, high: int) -> tuple[str, ...]:
        """A number in all its forms."""
        return number_forms(self.rng.randint(low, high))

    def finish(self) -> tuple[tuple[Entity, ...], tuple[Fact, ...]]:
        """All entities by id, and all facts in the order of entities and relations. Ids are dealt at random."""
        drafts = [*self.countries, *self.towns, *self.people, *self.organisations[""], *self.works, *self.events]
        self.rng.shuffle(drafts)
        namesakes: dict[str, list[Draft]] = defaultdict(list)
        for draft in drafts:
            namesakes[draft.name].append(draft)
        entities = {d: _entity(d, f"p{n:05}", namesakes[d.name]) for n, d in enumerate(drafts)}
        return tuple(entities.values()), tuple(fact for draft in drafts for fact in _facts(draft, entities))


def _year(draft: Draft) -> int:
    return draft.year


def _entity(draft: Draft, page: str, namesakes: list[Draft]) -> Entity:
    unique = len(namesakes) == 1
    return Entity(
        id=page,
        kind=draft.kind,
        sort=draft.sort,
        name=draft.name,
        title=draft.name if unique else f"{draft.name} ({draft.qualifier})",
        mention=_mention(draft, namesakes),
        short=draft.name.split()[-1] if draft.kind == "person" else f"the {draft.sort}",
        aliases=tuple(draft.aliases),
    )


def _mention(draft: Draft, namesakes: list[Draft]) -> str:
    if draft.kind == "work":
        year = f"{draft.year} " if sum(n.sort == draft.sort for n in namesakes) > 1 else ""
        return f'the {year}{draft.sort} "{draft.name}"'
    if draft.kind == "event":
        return f"the {draft.name}"
    if len(namesakes) == 1:
        return draft.name
    return f"the {draft.sort} {draft.name}" if draft.kind == "person" else f"{draft.name} in {draft.qualifier}"


def _facts(draft: Draft, entities: dict[Draft, Entity]) -> Iterator[Fact]:
    page = entities[draft].id
    for relation, value in sorted(draft.facts, key=lambda fact: _ORDER[fact[0]]):
        if isinstance(value, Draft):
            to = entities[value]
            forms = tuple(dict.fromkeys((to.name, to.title, *to.aliases)))
            yield Fact(subject=page, relation=relation, text=to.title, target=to.id, forms=forms)
        else:
            yield Fact(subject=page, relation=relation, text=value[0], forms=value)
