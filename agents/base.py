"""What acts: the ``Agent`` protocol, spoken in messages on one side and exact token ids on the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ovd_gym.llm.base import TRAINING, Completion, Decoding
from ovd_gym.records import Message

__all__ = ["Agent", "Conversation", "Lost", "Turn"]


@dataclass(frozen=True)
class Turn:
    """One agent turn: the ids fed before it, and what was sampled."""

    fed: tuple[int, ...]
    """Ids of the prompt or the observation (with the template's marks around it), exactly as the model read them."""
    completion: Completion


@dataclass(frozen=True)
class Lost:
    """A turn that could not be had, for a reason outside the agent's power: its episode fails, without a reward."""

    reason: str


class Conversation(Protocol):
    """Conversations, one row per episode, each at its own pace. Used by one thread."""

    def begin(self, openings: Mapping[int, Sequence[Message]]) -> None:
        """These rows start from these messages; the agent is to speak. Rows are ``0 .. len(seeds) - 1``."""

    def reply(self, observations: Mapping[int, str]) -> None:
        """What these rows, whose turns have ended, are told; the agent is to speak again."""

    def advance(self) -> Mapping[int, Turn | Lost]:
        """Work a little; the turns that ended, maybe none. See :meth:`~ovd_gym.llm.base.Session.advance`."""

    def end(self, rows: Iterable[int]) -> None:
        """These rows are over: what they hold is freed, and a turn that has begun is given up."""

    def close(self) -> None:
        """All rows are over."""


class Agent(Protocol):
    """Something that can hold conversations: the student, a scripted policy, a demonstrator."""

    def open(self, seeds: Sequence[int], stop: Sequence[str], decoding: Decoding = TRAINING) -> Conversation:
        """Conversations, none of which has begun.

        Args:
            seeds: one per row; a row's turns depend on its own seed alone.
            stop: a turn ends once its text contains one of these.
            decoding: how tokens are drawn.
        """
