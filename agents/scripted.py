"""An agent that follows a Python function: for tests, baselines and demonstrations. Needs no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ovd_gym.agents.base import Conversation, Turn
from ovd_gym.llm.base import Completion
from ovd_gym.records import Message

__all__ = ["Policy", "ScriptedAgent"]

Policy = Callable[[Sequence[Message]], str]
"""From the conversation so far to the next turn's text."""


class ScriptedAgent:
    """An :class:`~ovd_gym.agents.base.Agent` that says what ``policy`` says.

    Its token ids are UTF-8 bytes and its log-probabilities 0: it is certain of every one of them.

    >>> agent = ScriptedAgent(lambda messages: "answer: 42")
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def open(
        self, openings: Sequence[Sequence[Message]], seeds: Sequence[int], stop: Sequence[str], greedy: bool = False
    ) -> Conversation:
        """See :class:`~ovd_gym.agents.base.Agent`; seeds, stop strings and greediness change nothing here."""
        return _Conversation(self.policy, openings)


class _Conversation:
    def __init__(self, policy: Policy, openings: Sequence[Sequence[Message]]) -> None:
        self._policy = policy
        self._histories = [list(messages) for messages in openings]

    def begin(self) -> dict[int, Turn]:
        prompts = ("\n".join(message.content for message in history) for history in self._histories)
        return {row: self._turn(row, prompt + "\n") for row, prompt in enumerate(prompts)}

    def reply(self, observations: Mapping[int, str]) -> dict[int, Turn]:
        for row, text in observations.items():
            self._histories[row].append(Message(role="tool", content=text))
        return {row: self._turn(row, text + "\n") for row, text in observations.items()}

    def _turn(self, row: int, fed: str) -> Turn:
        text = self._policy(self._histories[row])
        self._histories[row].append(Message(role="assistant", content=text))
        ids = tuple(text.encode())
        offsets = tuple(len(text.encode()[: i + 1].decode(errors="ignore")) for i in range(len(ids)))
        return Turn(tuple(fed.encode()), Completion(ids, (0.0,) * len(ids), text, offsets, "eos"))
