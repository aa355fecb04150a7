"""What can be said of the fictional world: entities, facts, and the relations with their wordings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml

from ovd_gym.records import Record

__all__ = ["RELATIONS", "WORDS", "Entity", "Fact", "Kind", "Relation"]

Kind = Literal["person", "work", "town", "organisation", "event", "country"]


class Entity(Record):
    """Something with a page of its own."""

    id: str
    """The page's id; says nothing of what is on the page."""
    kind: Kind
    sort: str
    """What it is in plain words: "botanist", "novel", "university"."""
    name: str
    """What it is called; near-duplicates share it."""
    title: str
    """The page's title, unique in the world."""
    mention: str
    """How a question speaks of it; unique in the world."""
    short: str
    """How its own page speaks of it after the first time: a family name, "the novel"."""
    aliases: tuple[str, ...] = ()
    """Other names, each unique in the world and stated on its page."""


class Fact(Record):
    """``subject`` has ``relation`` to ``text``."""

    subject: str
    """Entity id."""
    relation: str
    """Key of :data:`RELATIONS`."""
    text: str
    """As pages write it; the title, where the object is an entity."""
    target: str | None = None
    """Entity id of the object; None for dates, numbers and plain words."""
    forms: tuple[str, ...]
    """Everything that names the object, the usual form first: the gold answers of a question about it."""


class Relation(Record):
    """One kind of fact, in words; ``words.yaml`` explains the wordings."""

    label: str
    says: tuple[str, ...]
    asks: tuple[str, ...] = ()
    nouns: tuple[str, ...] = ()


WORDS: Mapping[str, Any] = yaml.safe_load((Path(__file__).parent / "words.yaml").read_text(encoding="utf-8"))
"""Parts of names, and the relations' wordings, as they stand in ``words.yaml``."""

RELATIONS: Mapping[str, Relation] = {name: Relation(**words) for name, words in WORDS["relations"].items()}
"""By name, in the order in which a page states them."""
