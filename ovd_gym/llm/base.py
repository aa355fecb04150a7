"""What a model backend is to the rest of the house: token ids in, token ids with log-probabilities out.

A session holds growing sequences, one row per episode. Whatever is fed or sampled stays part of its row, token by
token, so a prompt is never rendered twice and never re-encoded. Rows join and leave at any time::

    session.submit({0: prompt, 1: prompt})
    while ...:
        for row, completion in session.advance().items():  # the turns that ended, maybe none
            session.submit({row: observation})  # joins the others at the next step
    session.close()
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ovd_gym.errors import ConfigError

__all__ = ["GREEDY", "TRAINING", "Completion", "Decoding", "LanguageModel", "Sampling", "Session"]


@dataclass(frozen=True)
class Decoding:
    """How a token is drawn from the model's distribution. Training takes it as it is; anything else is for evaluation.

    Recorded with every trajectory; the learner refuses those that were not sampled as training assumes.
    """

    temperature: float = 1.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Draw among the likeliest tokens that together have this probability."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf") or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"temperature must be at least 0 and top_p in (0, 1], got {self}")


TRAINING = Decoding()
GREEDY = Decoding(temperature=0.0)


@dataclass(frozen=True)
class Sampling:
    """How to sample one turn."""

    max_new_tokens: int
    decoding: Decoding = TRAINING
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
    """[n] nats at temperature 1 over the whole vocabulary, whatever the decoding."""
    text: str
    offsets: tuple[int, ...]
    """[n] length of ``text`` after each token: where a character belongs, without decoding or encoding again."""
    reason: Literal["stop", "eos", "length", "context"]


class Session(Protocol):
    """Sequences that grow turn by turn, sampled together. Used by one thread."""

    def submit(self, feeds: Mapping[int, Sequence[int]]) -> None:
        """Append ``feeds[row]`` to each row and begin a turn of it; rows are ``0 .. len(seeds) - 1``.

        A row's first feed is its prompt. Raises ValueError for an empty feed, and for a row in the middle of a turn or
        ended.
        """

    def advance(self) -> dict[int, Completion]:
        """Work a little on the turns that have begun; those that ended, maybe none.

        Blocks for about one decoding step, or, where a server does the work, until something arrives or a tenth of a
        second has passed; returns at once when no turn has begun. A row without room for its feed and one more token
        gets an empty completion.
        """

    def end(self, rows: Iterable[int]) -> None:
        """Free what these rows hold; a turn of theirs that has begun is given up. Unknown rows are ignored."""

    def close(self) -> None:
        """End all rows, and the session."""


class LanguageModel(Protocol):
    """A backend."""

    def open(self, seeds: Sequence[int], sampling: Sampling) -> Session:
        """A session with one row per seed. A row's tokens depend on its own seed alone, not on its neighbours'."""
