"""Rows that begin alike, planned so that what they share is computed once. Pure.

A row is a *lead*, everything before its first trained token, and the rest. Trajectories of a task have their lead in
common, and all tasks often begin with the same instructions::

    I I I t t | a a a          I I I        common: computed once
    I I I t t | b b       ->         t t    distinct leads: computed once each
    I I I u | c c c                  u
                                         a a a   the rest, row by row
                                         b b
                                         c c c

Where that would cost more than it saves, because of padding, less is shared, or nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ovd_gym.batch import Batch

__all__ = ["Sharing", "micro_batches"]

Shared = Literal["nothing", "common", "leads"]


@dataclass
class Sharing:
    """What rows that are computed together have in common."""

    common: int = 0
    """Tokens that all rows begin with."""
    leads: dict[tuple[int, ...], int] = field(default_factory=dict)
    """The distinct leads, each with its place among them, in order."""
    sources: list[int] = field(default_factory=list)
    """[B] place of each row's lead."""
    longest: int = 0
    """Tokens of the longest row."""
    rest: int = 0
    """Tokens of the longest rest."""

    @classmethod
    def of(cls, batch: Batch) -> Sharing:
        """The rows of ``batch``."""
        sharing = cls()
        for lead, length in zip(_leads(batch), batch.lengths_B.tolist(), strict=True):
            sharing.add(lead, length)
        return sharing

    def add(self, lead: tuple[int, ...], length: int) -> None:
        """One more row, of ``length`` tokens."""
        self.common = _alike(next(iter(self.leads)), lead, self.common) if self.leads else len(lead)
        self.sources.append(self.leads.setdefault(lead, len(self.leads)))
        self.longest = max(self.longest, length)
        self.rest = max(self.rest, length - len(lead))

    @property
    def costs(self) -> dict[Shared, int]:
        """Tokens to compute, padding included, by what is shared."""
        rows, common = len(self.sources), self.common
        ahead = max(map(len, self.leads)) - common
        return {
            "nothing": rows * self.longest,
            "common": common + rows * (self.longest - common),
            "leads": common + len(self.leads) * ahead + rows * self.rest,
        }

    @property
    def tokens(self) -> int:
        """The least of the costs."""
        return min(self.costs.values())

    @property
    def best(self) -> Shared:
        """What costs least when it is shared."""
        return min(self.costs, key=self.costs.__getitem__)


def micro_batches(batch: Batch, max_tokens: int) -> Iterator[Batch]:
    """Split ``batch`` into pieces that compute at most ``max_tokens`` tokens each, padding included.

    Rows of like length go together, or rows with the same lead: whichever computes less. A row longer than the budget
    is a piece of its own.
    """
    leads, lengths = _leads(batch), batch.lengths_B.tolist()
    orders = (
        sorted(range(len(batch)), key=lambda i: lengths[i]),
        sorted(range(len(batch)), key=lambda i: (leads[i], lengths[i])),
    )
    ways = [list(_cut(order, leads, lengths, max_tokens)) for order in orders]
    for _, rows in min(ways, key=lambda way: sum(tokens for tokens, _ in way)):
        yield batch.rows(rows)


def _cut(
    order: Sequence[int], leads: Sequence[tuple[int, ...]], lengths: Sequence[int], max_tokens: int
) -> Iterator[tuple[int, list[int]]]:
    """Consecutive rows of ``order``, as many as fit: (tokens, rows)."""
    sharing, tokens = Sharing(), 0
    rows: list[int] = []
    for i in order:
        sharing.add(leads[i], lengths[i])
        if rows and sharing.tokens > max_tokens:
            yield tokens, rows
            sharing, rows = Sharing(), []
            sharing.add(leads[i], lengths[i])
        rows.append(i)
        tokens = sharing.tokens
    yield tokens, rows


def _alike(left: Sequence[int], right: Sequence[int], most: int) -> int:
    """How many leading tokens are the same, up to ``most``."""
    most = min(most, len(left), len(right))
    return next((i for i in range(most) if left[i] != right[i]), most)


def _leads(batch: Batch) -> list[tuple[int, ...]]:
    """All that stands before the first trained token of each row, but for the token that predicts it."""
    ends = (batch.mask_BT.int().argmax(dim=1) - 1).clamp(min=0).tolist()
    return [tuple(ids[:end]) for ids, end in zip(batch.token_ids_BT.tolist(), ends, strict=True)]
