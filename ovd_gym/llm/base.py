"""What a model backend is to the rest of the house: token ids in, token ids with log-probabilities out.

A session holds a batch of growing sequences, one row per episode. Whatever is fed or sampled stays part of its
row, token by token, so a prompt is never rendered twice and never re-encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ovd_gym.errors import ConfigError

__all__ = ["Completion", "LanguageModel", "Sampling", "Session"]


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. Training always samples at temperature 1 from the whole vocabulary."""

    max_new_tokens: int
    greedy: bool = False
    stop: tuple[str, ...] = ()
    """A turn ends with the first token whose text completes one of these."""
    stop_ids: tuple[int, ...] = ()
    """A turn ends with one of these tokens; it is kept in ``ids`` and left out of ``text``."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")


@dataclass(frozen=True)
class Completion:
    """What was sampled in one turn. ``n`` tokens; ``n`` is 0 only when there was no room (``context``)."""

    ids: tuple[int, ...]
    """[n]"""
    logprobs: tuple[float, ...]
    """[n] nats at temperature 1, whatever the sampling."""
    text: str
    offsets: tuple[int, ...]
    """[n] length of ``text`` after each token: where a character belongs, without decoding or encoding again."""
    reason: Literal["stop", "eos", "length", "context"]


class Session(Protocol):
    """A batch of sequences that grow turn by turn."""

    def generate(self, feeds: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
        """Append ``feeds[row]`` to each row and sample a completion for it.

        Rows are ``0 .. len(seeds) - 1``. The first call has to feed every row its prompt; afterwards any of them may
        be fed, and the others wait. A row without room for its feed and one more token is closed.
        """


class LanguageModel(Protocol):
    """A backend."""

    def open(self, seeds: Sequence[int], sampling: Sampling) -> Session:
        """A session with one row per seed. A row's tokens depend on its own seed alone, not on its neighbours'."""
