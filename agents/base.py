"""What acts: the ``Agent`` protocol, spoken in messages on one side and exact token ids on the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ovd_gym.llm.base import Completion
from ovd_gym.records import Message

__all__ = ["Agent", "Conversation", "Turn"]


@dataclass(frozen=True)
class Turn:
    """One agent turn: the ids fed before it, and what was sampled."""

    fed: tuple[int, ...]
    """Ids of the prompt or the observation (with the template's marks around it), exactly as the model read them."""
    completion: Completion


class Conversation(Protocol):
    """A batch of conversations, one row per episode, in step with each other."""

    def begin(self) -> dict[int, Turn]:
        """Every row's first turn."""

    def reply(self, observations: Mapping[int, str]) -> dict[int, Turn]:
        """The next turn of each row in ``observations``; the others wait, or are over."""


class Agent(Protocol):
    """Something that can hold conversations: the student, a scripted policy, a demonstrator."""

    def open(
        self, openings: Sequence[Sequence[Message]], seeds: Sequence[int], stop: Sequence[str], greedy: bool = False
    ) -> Conversation:
        """Conversations that start from ``openings``.

        Args:
            openings: one list of messages per row.
            seeds: one per row; a row's turns depend on its own seed alone.
            stop: a turn ends once its text contains one of these.
            greedy: take the likeliest token instead of sampling.
        """
