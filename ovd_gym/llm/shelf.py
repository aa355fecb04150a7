"""The sequences a model has read, side by side in its cache: where each stands, and what a new one can take from them.

Letters: b sequences of one pass, D hidden size. A slot is a row of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ovd_gym.llm.cache import RowCache
from ovd_gym.llm.decoder import Decoder

__all__ = ["Shelf", "common_prefix", "passes"]

PASS_TOKENS = 8192
"""Padded tokens of one forward pass; a longer sequence is a pass of its own."""
PADDING_TOKENS = 512
"""Padding that costs less than another pass, however little else there is."""


class Shelf:
    """Slots with the tokens they hold. What a slot held stays readable after its release, until it is taken again."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._cache = RowCache(decoder)
        self._ids: list[list[int]] = []
        """What each slot holds."""
        self._free: list[int] = []
        """Released slots, the oldest first."""

    def place(self, prompts: Sequence[Sequence[int]]) -> list[tuple[int, Sequence[int]]]:
        """A slot for each of these distinct prompts, and the tokens of it (at least one) that are still to be fed.

        What a prompt shares with any sequence on the shelf is copied; what all of them share is computed once.
        """
        slots: list[int] = []
        for prompt in prompts:
            slots.append(slot := self._place(prompt))
            shared = min(common_prefix(prompts), *(len(other) - 1 for other in prompts)) if len(slots) == 1 else 0
            if len(prompts) > 1 and self._held(slot) < shared:
                self.feed([slot], [prompt[self._held(slot) : shared]])
        return [(slot, prompt[self._held(slot) :]) for slot, prompt in zip(slots, prompts, strict=True)]

    def twins(self, slot: int, count: int) -> list[int]:
        """``count`` further slots that hold what ``slot`` holds."""
        slots = [self._take() for _ in range(count)]
        self._copy(slot, slots, self._held(slot))
        return slots

    def release(self, slot: int) -> None:
        """The sequence in ``slot`` will not go on."""
        self._free.append(slot)

    def feed(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """Append ``ids[i]`` to ``slots[i]``; the [b, D] hidden states of each one's last token."""
        for slot, fed in zip(slots, ids, strict=True):
            self._ids[slot] += fed
        hidden: list[Tensor] = []
        order: list[int] = []
        for indices in passes([len(row) for row in ids]):
            hidden.append(self._pass([slots[i] for i in indices], [ids[i] for i in indices]))
            order += indices
        return torch.cat(hidden)[torch.tensor(order).argsort()] if len(hidden) > 1 else hidden[0]

    def _place(self, prompt: Sequence[int]) -> int:
        """A slot that holds the longest beginning of ``prompt`` to be found, without its last token."""
        source, count = None, 0
        for slot, held in enumerate(self._ids):
            if len(held) > count and held[: count + 1] == list(prompt[: count + 1]):
                source, count = slot, common_prefix([held, prompt])
        count = min(count, len(prompt) - 1)
        if source in self._free:
            self._free.remove(source)
            slot = source
        else:
            slot = self._take()
        self._copy(slot if source is None else source, [slot], count)
        return slot

    def _copy(self, source: int, targets: Sequence[int], count: int) -> None:
        held = self._ids[source][:count]
        for slot in targets:
            self._ids[slot] = list(held)
        self._cache.copy(source, targets, count)

    def _take(self) -> int:
        if self._free:
            return self._free.pop(0)
        self._ids.append([])
        return self._cache.add()

    def _held(self, slot: int) -> int:
        return len(self._ids[slot])

    def _pass(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        every = range(len(self._ids))
        if len(ids) < len(every) <= 2 * len(ids) and all(len(row) == 1 for row in ids):
            # One dummy token for the few slots that wait costs less than copying the cache of the others.
            given = dict(zip(slots, ids, strict=True))
            return self._padded(every, [given.get(slot, ()) for slot in every])[list(slots)]
        return self._padded(slots, ids)

    def _padded(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`feed` in one pass; an empty row is computed on padding and left as it was."""
        device = self._decoder.device
        counts = torch.tensor([len(row) for row in ids], device=device)
        width = int(counts.max())
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=device)
        hidden = self._decoder.hidden(padded, **self._cache.plan(slots, width))
        self._cache.grow(slots, counts)
        return hidden[torch.arange(len(ids), device=device), counts - 1]


def passes(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of ``lengths`` in groups to be padded together: all at once if they fit, else like lengths together."""
    if _fit(len(lengths), max(lengths), sum(lengths)):
        yield list(range(len(lengths)))
        return
    group: list[int] = []
    tokens = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        if group and not _fit(len(group) + 1, lengths[i], tokens + lengths[i]):
            yield group
            group, tokens = [], 0
        group.append(i)
        tokens += lengths[i]
    yield group


def _fit(rows: int, longest: int, tokens: int) -> bool:
    """Whether one pass will do: not too much of it in all, and not too much of that padding."""
    padding = rows * longest - tokens
    return tokens + padding <= PASS_TOKENS and padding <= max(PADDING_TOKENS, tokens)


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all ``sequences`` share."""
    for i, column in enumerate(zip(*sequences, strict=False)):
        if len(set(column)) > 1:
            return i
    return min(map(len, sequences))
