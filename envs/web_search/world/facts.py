"""The fact base: entities and facts by every way a writer or a questioner looks them up."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence

from ovd_gym.envs.web_search.world.schema import Entity, Fact

__all__ = ["FactBase"]


class FactBase:
    """All there is to know, indexed. Never changed after it is made."""

    def __init__(self, entities: Sequence[Entity], facts: Sequence[Fact]) -> None:
        self.entities: Mapping[str, Entity] = {entity.id: entity for entity in entities}
        """By page id, in the order of ids."""
        self.facts = tuple(facts)
        self._about: dict[str, list[Fact]] = defaultdict(list)
        self._named: dict[str, list[Entity]] = defaultdict(list)
        self._lookalikes: dict[str, list[Entity]] = defaultdict(list)
        self._kinds: dict[str, list[Entity]] = defaultdict(list)
        self._linking: dict[str, dict[str, Entity]] = defaultdict(dict)
        for entity in entities:
            self._named[entity.name].append(entity)
            self._lookalikes[_family(entity)].append(entity)
            self._kinds[entity.kind].append(entity)
        for fact in facts:
            self._about[fact.subject].append(fact)
            if fact.target:
                self._linking[fact.target][fact.subject] = self.entities[fact.subject]

    def about(self, page: str) -> Sequence[Fact]:
        """The facts whose subject is ``page``, in the order of relations."""
        return self._about[page]

    def namesakes(self, entity: Entity) -> list[Entity]:
        """Others of the same name."""
        return [other for other in self._named[entity.name] if other is not entity]

    def lookalikes(self, entity: Entity) -> list[Entity]:
        """Others of the same family name, first word or series."""
        return [other for other in self._lookalikes[_family(entity)] if other is not entity]

    def random_peer(self, entity: Entity, rng: random.Random) -> Entity:
        """Some other entity of the same kind."""
        peers = self._kinds[entity.kind]
        return rng.choice([peer for peer in rng.sample(peers, 2) if peer is not entity])

    def linking_to(self, page: str) -> list[Entity]:
        """The entities with a fact about ``page``."""
        return list(self._linking[page].values())


def _family(entity: Entity) -> str:
    """What near-duplicates have in common."""
    words = entity.name.split()
    if entity.kind == "person":
        return f"person {words[-1]}"
    if entity.kind == "event":
        return f"event {' '.join(words[1:])}"
    return f"{entity.kind} {words[0]}" if entity.kind == "organisation" else f"{entity.kind} {entity.name}"
