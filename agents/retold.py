"""Any agent's words in the tokens of a student: a demonstrator may have a tokenizer and a template of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ovd_gym.agents.base import Agent, Conversation, Turn
from ovd_gym.agents.chat import Chat
from ovd_gym.llm.base import Completion
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

    def open(
        self, openings: Sequence[Sequence[Message]], seeds: Sequence[int], stop: Sequence[str], greedy: bool = False
    ) -> Conversation:
        """See :class:`~ovd_gym.agents.base.Agent`."""
        prompts = [self.chat.prompt(messages, stop) for messages in openings]
        return _Conversation(self.teller.open(openings, seeds, stop, greedy), self.chat, prompts, tuple(stop))


class _Conversation:
    def __init__(self, told: Conversation, chat: Chat, prompts: Sequence[Sequence[int]], stop: tuple[str, ...]) -> None:
        self._told = told
        self._chat = chat
        self._prompts = prompts
        self._stop = stop
        self._last: dict[int, Completion] = {}

    def begin(self) -> dict[int, Turn]:
        return {row: self._turn(row, self._prompts[row], turn) for row, turn in self._told.begin().items()}

    def reply(self, observations: Mapping[int, str]) -> dict[int, Turn]:
        fed = {row: self._chat.observation(text, self._last[row]) for row, text in observations.items()}
        return {row: self._turn(row, fed[row], turn) for row, turn in self._told.reply(observations).items()}

    def _turn(self, row: int, fed: Sequence[int], turn: Turn) -> Turn:
        if not turn.completion.ids:
            return Turn(tuple(fed), turn.completion)
        self._last[row] = self._chat.spoken(turn.completion.text, self._stop)
        return Turn(tuple(fed), self._last[row])
