"""An agent that follows a Python function: for tests, baselines and demonstrations. Needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from ovd_gym.agents.base import Conversation, Turn
from ovd_gym.llm.base import TRAINING, Completion, Decoding
from ovd_gym.records import Message

if TYPE_CHECKING:
    from ovd_gym.agents.chat import Chat

__all__ = ["ByteChat", "Policy", "ScriptedAgent"]

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

    def open(self, seeds: Sequence[int], stop: Sequence[str], decoding: Decoding = TRAINING) -> Conversation:
        """See :class:`~ovd_gym.agents.base.Agent`; seeds and decoding change nothing here."""
        return _Conversation(self.policy, self.chat or ByteChat(), tuple(stop))


class _Conversation:
    def __init__(self, policy: Policy, chat: Chat | ByteChat, stop: tuple[str, ...]) -> None:
        self._policy = policy
        self._chat = chat
        self._stop = stop
        self._fed: dict[int, Sequence[int]] = {}
        """What the rows that are to speak were given to read."""
        self._histories: dict[int, list[Message]] = {}
        self._last: dict[int, Completion] = {}

    def begin(self, openings: Mapping[int, Sequence[Message]]) -> None:
        for row, messages in openings.items():
            self._histories[row] = list(messages)
            self._fed[row] = self._chat.prompt(messages, self._stop)

    def reply(self, observations: Mapping[int, str]) -> None:
        for row, text in observations.items():
            self._histories[row].append(Message(role="tool", content=text))
            self._fed[row] = self._chat.observation(text, self._last[row])

    def advance(self) -> dict[int, Turn]:
        fed, self._fed = self._fed, {}
        return {row: self._turn(row, ids) for row, ids in fed.items()}

    def end(self, rows: Iterable[int]) -> None:
        for row in rows:
            for held in (self._fed, self._histories, self._last):
                held.pop(row, None)

    def close(self) -> None:
        self.end(list(self._histories))

    def _turn(self, row: int, fed: Sequence[int]) -> Turn:
        text = self._policy(self._histories[row])
        self._histories[row].append(Message(role="assistant", content=text))
        self._last[row] = self._chat.spoken(text, self._stop)
        return Turn(tuple(fed), self._last[row])


class ByteChat:
    """A layout without a tokenizer: UTF-8 bytes, one message a line."""

    def prompt(self, messages: Sequence[Message], stop: Sequence[str]) -> list[int]:
        """Ids of a conversation."""
        return list("".join(f"{message.content}\n" for message in messages).encode())

    def observation(self, text: str, after: Completion) -> list[int]:
        """Ids of what a turn is told."""
        return list(f"{text}\n".encode())

    def spoken(self, text: str, stop: Sequence[str]) -> Completion:
        """A turn that says ``text``; to say nothing is a turn as well."""
        if not text:
            return Completion((0,), (0.0,), "", (0,), "eos")
        data = text.encode()
        # A character is there once the byte after it begins another one.
        offsets = accumulate(int(byte & 0xC0 != 0x80) for byte in (data + b"\0")[1:])
        return Completion(tuple(data), (0.0,) * len(data), text, tuple(offsets), "stop")
