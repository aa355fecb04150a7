"""A Gymnasium space of Unicode strings, with shared-memory support for ``AsyncVectorEnv``."""

from __future__ import annotations

import multiprocessing as mp
from collections.abc import Sequence
from multiprocessing.sharedctypes import SynchronizedArray
from types import ModuleType
from typing import Any, overload

import numpy as np
from gymnasium import Space
from gymnasium.vector.utils import (
    create_shared_memory,
    read_from_shared_memory,
    write_to_shared_memory,
)
from numpy.typing import NDArray

__all__ = ["UnicodeText"]

_SAMPLE_MAX = 64


class UnicodeText(Space[str]):
    """All strings of at most ``max_length`` Unicode scalar values (lone surrogates are not text).

    ``gymnasium.spaces.Text`` needs every allowed character listed; this space is defined by length alone.
    """

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        self.max_length = max_length
        super().__init__(dtype=str, seed=seed)

    def sample(self, mask: None = None, probability: None = None) -> str:
        """A short random string (at most 64 characters) drawn from all of Unicode."""
        if mask is not None or probability is not None:
            raise ValueError("UnicodeText has no masks: sample() takes no argument")
        length = int(self.np_random.integers(0, min(self.max_length, _SAMPLE_MAX) + 1))
        points = self.np_random.integers(0, 0x110000 - 0x800, size=length)
        return "".join(chr(p if p < 0xD800 else p + 0x800) for p in points.tolist())

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string within the length and free of lone surrogates."""
        return isinstance(x, str) and len(x) <= self.max_length and not any("\ud800" <= c <= "\udfff" for c in x)

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length


class _SharedTexts(Sequence[str]):
    """The texts that stand in shared memory now; a deep copy is a tuple of them.

    ``AsyncVectorEnv`` reads shared memory once, when it is made, and expects a view, of which it copies each step.
    """

    def __init__(self, rows: np.ndarray[Any, Any]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        row = self._rows[index]
        return "".join(map(chr, row[1 : 1 + row[0]].tolist()))

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        return tuple(self)


# Layout in shared memory, per environment: the length, then the code points.


@create_shared_memory.register(UnicodeText)
def _create(space: UnicodeText, n: int = 1, ctx: ModuleType = mp) -> SynchronizedArray[Any]:
    array: SynchronizedArray[Any] = ctx.Array("i", n * (space.max_length + 1))
    return array


@read_from_shared_memory.register(UnicodeText)
def _read(space: UnicodeText, shared_memory: SynchronizedArray[Any], n: int = 1) -> _SharedTexts:
    return _SharedTexts(_rows(space, shared_memory))


@write_to_shared_memory.register(UnicodeText)
def _write(space: UnicodeText, index: int, value: str, shared_memory: SynchronizedArray[Any]) -> None:
    rows = _rows(space, shared_memory)
    rows[index, 0] = len(value)
    rows[index, 1 : 1 + len(value)] = [ord(c) for c in value]


def _rows(space: UnicodeText, shared_memory: SynchronizedArray[Any]) -> NDArray[np.int32]:
    buffer: Any = shared_memory.get_obj()
    rows: NDArray[np.int32] = np.frombuffer(buffer, dtype=np.int32)
    return rows.reshape(-1, space.max_length + 1)
