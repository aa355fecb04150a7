"""An agent that follows a Python function: for tests, baselines and demonstrations. Needs no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ovd_gym.agents.base import Conversation, Turn
from ovd_gym.llm.base import Completion
from ovd_gym.records import Message

if TYPE_CHECKING:
    from ovd_gym.agents.chat import Chat

__all__ = ["Policy", "ScriptedAgent"]

Policy = Callable[[Sequence[Message]], str]
"""From the conversation so far to the next turn's text."""


class ScriptedAgent:
    """An :class:`~ovd_gym.agents.base.Agent` that says what ``policy`` says.

    Its log-probabilities are 0: it is certain of every token.

    Args:
        policy: the function.
        chat: a student's layout; with it the episodes are demonstrations in that student's own tokens. Without it
            the ids are UTF-8 bytes.

    >>> agent = ScriptedAgent(lambda messages: "answer: 42")
    """

    def __init__(self, policy: Policy, chat: Chat | None = None) -> None:
        self.policy = policy
        self.chat = chat

    def open(
        self, openings: Sequence[Sequence[Message]], seeds: Sequence[int], stop: Sequence[str], greedy: bool = False
    ) -> Conversation:
        """See :class:`~ovd_gym.agents.base.Agent`; seeds and greediness change nothing here."""
        return _Conversation(self.policy, self.chat or _Bytes(), openings, tuple(stop))


class _Conversation:
    def __init__(
        self, policy: Policy, chat: Chat | _Bytes, openings: Sequence[Sequence[Message]], stop: tuple[str, ...]
    ) -> None:
        self._policy = policy
        self._chat = chat
        self._stop = stop
        self._histories = [list(messages) for messages in openings]
        self._last: dict[int, Completion] = {}

    def begin(self) -> dict[int, Turn]:
        prompts = [self._chat.prompt(messages, self._stop) for messages in self._histories]
        return {row: self._turn(row, ids) for row, ids in enumerate(prompts)}

    def reply(self, observations: Mapping[int, str]) -> dict[int, Turn]:
        for row, text in observations.items():
            self._histories[row].append(Message(role="tool", content=text))
        fed = {row: self._chat.observation(text, self._last[row]) for row, text in observations.items()}
        return {row: self._turn(row, ids) for row, ids in fed.items()}

    def _turn(self, row: int, fed: list[int]) -> Turn:
        text = self._policy(self._histories[row])
        self._histories[row].append(Message(role="assistant", content=text))
        self._last[row] = self._chat.spoken(text, self._stop)
        return Turn(tuple(fed), self._last[row])


class _Bytes:
    """A layout without a tokenizer: UTF-8 bytes, one message a line."""

    def prompt(self, messages: Sequence[Message], stop: Sequence[str]) -> list[int]:
        return list("".join(f"{message.content}\n" for message in messages).encode())

    def observation(self, text: str, after: Completion) -> list[int]:
        return list(f"{text}\n".encode())

    def spoken(self, text: str, stop: Sequence[str]) -> Completion:
        data = text.encode()
        offsets = tuple(len(data[: i + 1].decode(errors="ignore")) for i in range(len(data)))
        return Completion(tuple(data), (0.0,) * len(data), text, offsets, "stop")
