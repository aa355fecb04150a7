"""An agent behind an OpenAI-compatible server: for evaluation, and for demonstrations by a model of others."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import ExitStack
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import openai
from anyio.from_thread import BlockingPortalProvider
from pydantic import Field

from ovd_gym.agents.base import Conversation, Lost, Turn
from ovd_gym.agents.scripted import ByteChat
from ovd_gym.llm.base import TRAINING, Completion, Decoding
from ovd_gym.llm.choice import Usage
from ovd_gym.llm.reliability import Failure
from ovd_gym.llm.served_chat import ServedChat
from ovd_gym.llm.served_options import ChatOptions
from ovd_gym.records import Message, Task

__all__ = ["ServedAgent", "served"]

_POLL_S = 0.1


class _Options(ChatOptions):
    own: ClassVar = ChatOptions.own | {"top_p"}

    max_turn_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longest turn."""


class ServedAgent:
    """An :class:`~ovd_gym.agents.base.Agent` whose turns are chat completions, ``concurrency`` of them at a time.

    Tool results are sent in the role of the user, as text: actions are read from the model's text like any student's. A
    turn ends with the first of the strings that end one, also where the server has written on. No server says exactly
    which tokens it read and sampled: a trajectory's ids are UTF-8 bytes with log-probabilities of 0, and it cannot be
    trained on as it is (:class:`~ovd_gym.agents.retold.Retold` puts a demonstrator's words into a student's tokens).

    A turn that cannot be had (no connection, a refused key, a content filter, a budget that is used up) is lost, and
    its episode fails without a reward. A conversation too long for the model is truncated, like a student's.

    Args:
        options: ``model``, ``base_url``, ``api_key_env``, ``max_turn_tokens``, ``concurrency``, ``timeout_s`` and the
            others of :class:`~ovd_gym.llm.served_options.ChatOptions`.

    Raises:
        ConfigError: an option that cannot work or has no effect, or a key that is not set.
    """

    __signature__ = inspect.signature(_Options)

    def __init__(self, **options: Any) -> None:
        self._options = _Options.checked(**options)
        self._chat = ServedChat(self._options)
        self._portal = BlockingPortalProvider()  # conversations of several threads share one event loop

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        return self._chat.usage()

    def open(self, seeds: Sequence[int], stop: Sequence[str], decoding: Decoding = TRAINING) -> Conversation:
        """See :class:`~ovd_gym.agents.base.Agent`; servers promise no more for a seed than their best effort."""
        drawn = {"temperature": decoding.temperature, **({"top_p": decoding.top_p} if decoding.top_p < 1 else {})}
        body = {
            "model": self._options.model,
            **drawn,
            **self._chat.longest(self._options.max_turn_tokens),
            "extra_body": dict(self._options.extra_body),
        }
        return _Conversation(self._chat, self._portal, body, list(seeds), tuple(stop))


def served(tasks: Sequence[Task], **options: Any) -> ServedAgent:
    """A :class:`ServedAgent`, for ``ovd-gym eval`` and ``demonstrator.policy``; tasks are met when they are asked."""
    return ServedAgent(**options)


class _Conversation:
    def __init__(
        self,
        chat: ServedChat,
        portal: BlockingPortalProvider,
        body: Mapping[str, Any],
        seeds: Sequence[int],
        stop: tuple[str, ...],
    ) -> None:
        self._chat = chat
        self._body = body
        self._seeds = seeds
        self._stop = stop
        self._bytes = ByteChat()
        self._histories: dict[int, list[Message]] = {}
        self._fed: dict[int, list[int]] = {}
        self._last: dict[int, Completion] = {}
        self._turns: dict[int, Future[Completion | Lost]] = {}
        self._open = ExitStack()
        self._portal = self._open.enter_context(portal)
        self._client: openai.AsyncOpenAI = self._open.enter_context(
            self._portal.wrap_async_context_manager(chat.client())
        )

    def begin(self, openings: Mapping[int, Sequence[Message]]) -> None:
        for row, messages in openings.items():
            self._histories[row] = list(messages)
            self._fed[row] = self._bytes.prompt(messages, self._stop)
            self._ask(row)

    def reply(self, observations: Mapping[int, str]) -> None:
        for row, text in observations.items():
            self._histories[row].append(Message(role="tool", content=text))
            self._fed[row] = self._bytes.observation(text, self._last[row])
            self._ask(row)

    def advance(self) -> dict[int, Turn | Lost]:
        done, _ = wait(self._turns.values(), timeout=_POLL_S, return_when=FIRST_COMPLETED)
        return {row: self._turn(row) for row, future in list(self._turns.items()) if future in done}

    def end(self, rows: Iterable[int]) -> None:
        for row in rows:
            if (turn := self._turns.pop(row, None)) is not None:
                turn.cancel()
            for held in (self._histories, self._fed, self._last):
                held.pop(row, None)

    def close(self) -> None:
        self.end(list(self._histories))
        self._open.close()

    def _ask(self, row: int) -> None:
        messages = [
            {"role": "user" if message.role == "tool" else message.role, "content": message.content}
            for message in self._histories[row]
        ]
        told = f"{self._seeds[row]}/{len(messages)}".encode()
        seed = int.from_bytes(hashlib.sha256(told).digest()[:4]) >> 1
        self._turns[row] = self._portal.start_task_soon(
            self._complete, {**self._body, "messages": messages, "seed": seed}
        )

    async def _complete(self, body: Mapping[str, Any]) -> Completion | Lost:
        outcome = await self._chat.ask(self._client, body)
        if isinstance(outcome, Failure):
            if outcome.too_long:
                return Completion((), (), "", (), "context")
            return Lost(f"the model's server: {outcome.status}: {outcome.why}")
        reply = outcome.choices[0]
        text = reply.text or reply.message.refusal or ""
        said = self._bytes.spoken(_cut(text, self._stop), self._stop)
        return replace(said, reason="length") if reply.finish_reason == "length" and said.text == text else said

    def _turn(self, row: int) -> Turn | Lost:
        said = self._turns.pop(row).result()
        if isinstance(said, Lost):
            return said
        self._histories[row].append(Message(role="assistant", content=said.text))
        self._last[row] = said
        return Turn(tuple(self._fed.pop(row)), said)


def _cut(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the end of what ends a turn in it first.

    >>> _cut("look: a</call> result: b</call>", ["</call>"])
    'look: a</call>'
    """
    ends = [text.index(string) + len(string) for string in stop if string in text]
    return text[: min(ends, default=len(text))]
