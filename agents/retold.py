"""Any agent's words in the tokens of a student: a demonstrator may have a tokenizer and a template of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ovd_gym.agents.base import Agent, Conversation, Lost, Turn
from ovd_gym.agents.chat import Chat
from ovd_gym.llm.base import TRAINING, Completion, Decoding
from ovd_gym.records import Message

__all__ = ["Retold"]


class Retold:
    """An :class:`~ovd_gym.agents.base.Agent` that says what ``teller`` says, as the student would have written it.

    Only the text is taken over: its ids are the student's, and its log-probabilities are 0, since nobody sampled it
    from the student. A turn that the teller had no room for stays empty.

    Args:
        teller: who speaks, such as a stronger model.
        chat: the student's layout.
    """

    def __init__(self, teller: Agent, chat: Chat) -> None:
        self.teller = teller
        self.chat = chat

    def open(self, seeds: Sequence[int], stop: Sequence[str], decoding: Decoding = TRAINING) -> Conversation:
        """See :class:`~ovd_gym.agents.base.Agent`."""
        return _Conversation(self.teller.open(seeds, stop, decoding), self.chat, tuple(stop))


class _Conversation:
    def __init__(self, told: Conversation, chat: Chat, stop: tuple[str, ...]) -> None:
        self._told = told
        self._chat = chat
        self._stop = stop
        self._fed: dict[int, Sequence[int]] = {}
        """What the student would have read before the turns under way."""
        self._last: dict[int, Completion] = {}

    def begin(self, openings: Mapping[int, Sequence[Message]]) -> None:
        self._fed |= {row: self._chat.prompt(messages, self._stop) for row, messages in openings.items()}
        self._told.begin(openings)

    def reply(self, observations: Mapping[int, str]) -> None:
        self._fed |= {row: self._chat.observation(text, self._last[row]) for row, text in observations.items()}
        self._told.reply(observations)

    def advance(self) -> dict[int, Turn | Lost]:
        return {
            row: turn if isinstance(turn, Lost) else self._turn(row, turn.completion)
            for row, turn in self._told.advance().items()
        }

    def end(self, rows: Iterable[int]) -> None:
        for row in (rows := list(rows)):
            self._fed.pop(row, None)
            self._last.pop(row, None)
        self._told.end(rows)

    def close(self) -> None:
        self._told.close()

    def _turn(self, row: int, told: Completion) -> Turn:
        self._last[row] = self._chat.spoken(told.text, self._stop) if told.ids else told
        return Turn(tuple(self._fed.pop(row)), self._last[row])
