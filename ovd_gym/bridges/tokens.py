"""An episode as token ids, for trainers that sample on a server and train on what was sampled.

Legend: ``P`` tokens of the prompt, ``R`` tokens after it, sampled ones and those of observations.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from ovd_gym.agents.chat import Chat
from ovd_gym.bridges.plays import Play
from ovd_gym.errors import ConfigError, InfrastructureError
from ovd_gym.llm.base import Completion, Sampling
from ovd_gym.llm.turn import OpenTurn

__all__ = ["Generated", "TokenEpisode", "play_tokens"]


class Generated(Protocol):
    """What a server sampled in one turn (``TokenOutput`` of verl)."""

    token_ids: list[int]
    log_probs: list[float] | None
    """Nats, one per token."""
    stop_reason: str | None
    """``aborted`` when the server gave the turn up."""


@dataclass
class TokenEpisode:
    """What was read and sampled, token by token; never decoded and encoded again."""

    prompt_ids: list[int]
    """[P]"""
    response_ids: list[int] = field(default_factory=list)
    """[R]"""
    mask: list[int] = field(default_factory=list)
    """[R] 1 where a token was sampled, 0 in observations."""
    logprobs: list[float] | None = None
    """[R] as the server gave them, 0.0 in observations; None if it gives none."""
    turns: int = 0
    """How often the student spoke."""
    generate_s: float = 0.0
    environment_s: float = 0.0

    @property
    def ids(self) -> list[int]:
        """[P + R]"""
        return [*self.prompt_ids, *self.response_ids]

    def sampled(self, turn: Completion, told: bool) -> None:
        """Append the student's turn; ``told``: whether its log-probabilities are known."""
        if told and not self.turns:
            self.logprobs = []
        if told != (self.logprobs is not None):
            raise InfrastructureError("the server gave log-probabilities for some turns and not for others")
        self.turns += 1
        self._append(turn.ids, 1, turn.logprobs)

    def read(self, ids: list[int]) -> None:
        """Append an observation."""
        self._append(ids, 0, [0.0] * len(ids))

    def _append(self, ids: Any, mask: int, logprobs: Any) -> None:
        self.response_ids += ids
        self.mask += [mask] * len(ids)
        if self.logprobs is not None:
            self.logprobs += logprobs


async def play_tokens(
    play: Play,
    index: int,
    chat: Chat,
    tokenizer: PreTrainedTokenizerBase,
    generate: Callable[[list[int], dict[str, Any]], Awaitable[Generated]],
    sampling: Mapping[str, Any],
    *,
    prompt_length: int,
    response_length: int,
) -> TokenEpisode:
    """Play the task number ``index``; the reward is then in ``play``.

    The episode also ends when there is no room for the student to read an observation and speak again.

    Args:
        play: the environment.
        index: number of the task.
        chat: lays out the conversation.
        tokenizer: the student's.
        generate: samples one turn after the given ids, with the given parameters.
        sampling: parameters of every turn; where it ends and how long it may be is added.
        prompt_length: most tokens in P.
        response_length: most tokens in R.

    Raises:
        ConfigError: the prompt is too long: cut, it would be another task.
        InfrastructureError: the environment or the server broke; there is no reward.
    """
    episode = TokenEpisode(chat.opening(await asyncio.to_thread(play.open, index)))
    if len(episode.prompt_ids) > prompt_length:
        raise ConfigError(
            f"task {play.task.id!r} opens with {len(episode.prompt_ids)} tokens, but the prompt may have "
            f"{prompt_length}: raise rollout.prompt_length"
        )
    stop = play.world.action_format.stop
    ends = {"stop": list(stop), "stop_token_ids": list(chat.stop_ids)}
    while (room := response_length - len(episode.response_ids)) > 0:
        began = time.monotonic()
        limits = Sampling(min(room, sampling.get("max_tokens") or room), stop=stop, stop_ids=chat.stop_ids)
        output = await generate(episode.ids, {**sampling, **ends, "max_tokens": limits.max_new_tokens})
        episode.generate_s += time.monotonic() - began
        turn = _turn(output, tokenizer, limits)
        episode.sampled(turn, output.log_probs is not None)
        began = time.monotonic()
        observation = await asyncio.to_thread(play.act, turn.text)
        episode.environment_s += time.monotonic() - began
        if observation is None:
            break
        fed = chat.observation(observation, turn)
        if len(episode.response_ids) + len(fed) >= response_length:
            break
        episode.read(fed)
    return episode


def _turn(output: Generated, tokenizer: PreTrainedTokenizerBase, limits: Sampling) -> Completion:
    """The sampled tokens as a turn; those after its end, on servers that do not stop there, are left out."""
    if output.stop_reason == "aborted" or not output.token_ids:
        raise InfrastructureError(f"the server ended a turn after {len(output.token_ids)} tokens: {output.stop_reason}")
    logprobs = [0.0] * len(output.token_ids) if output.log_probs is None else output.log_probs
    if len(logprobs) != len(output.token_ids):
        raise InfrastructureError(f"{len(logprobs)} log-probabilities came for {len(output.token_ids)} tokens")
    turn = OpenTurn(tokenizer, limits)
    for token, logprob in zip(output.token_ids, logprobs, strict=True):
        if not turn.open:
            break
        turn.add(token, logprob, limits.max_new_tokens)
    return turn.completion()
