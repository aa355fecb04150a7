"""One episode: an environment, an agent's turns in it, and the record of every token id as it was."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np

from ovd_gym.agents.base import Turn
from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import InfrastructureError, OvdGymError, ReplayMismatch
from ovd_gym.llm.base import Decoding
from ovd_gym.records import Message, Step, Task, ToolCall, Trajectory

__all__ = ["Env", "Episode", "Outcome", "Prefix", "episode_seed", "step_spans", "turns_of"]

log = logging.getLogger(__name__)

Env = gym.Env[str, str]
Outcome = tuple[str, float, bool, bool, dict[str, Any]]
"""What ``step`` of an environment returns: observation, reward, terminated, truncated, info."""


@dataclass(frozen=True)
class Prefix:
    """The beginning of an episode, which another agent takes over; its token ids are kept as they are."""

    trajectory: Trajectory
    steps: int
    """Steps to keep: whole turns, so the next one begins a turn."""
    seed: int
    """What the episode's environment was reset with."""

    @property
    def ids(self) -> int:
        """Tokens to keep: all that was read before the first step that is not kept."""
        return self.trajectory.steps[self.steps].start

    @property
    def kept(self) -> tuple[Step, ...]:
        """The steps to keep."""
        return self.trajectory.steps[: self.steps]


class Episode:
    """What has been recorded of one episode. ``open`` and ``act`` run in a thread and touch the environment alone.

    Args:
        task: what is asked.
        id, group_id: of the trajectory.
        seed: of the environment and the agent.
        source: whose steps these are.
        prefix: the beginning, which is played as it was.
        max_context: tokens it may hold; None leaves that to the agent.
    """

    def __init__(
        self,
        task: Task,
        id: str,
        group_id: str,
        seed: int,
        source: Literal["student", "teacher"],
        prefix: Prefix | None = None,
        max_context: int | None = None,
    ) -> None:
        self.seed = seed
        self.status: Literal["terminated", "truncated", "failed"] | None = None
        """None until the episode is over."""
        self.calls = 1 + (sum(1 for _ in turns_of(prefix.kept)) if prefix else 0)
        """Environment calls that opening it takes."""
        self._id, self._group_id = id, group_id
        self._task = task
        self._source = source
        self._prefix = prefix
        self._max_context = max_context
        self._env: Env | None = None
        self._steps: list[Step] = list(prefix.kept) if prefix else []
        self._ids: list[int] = list(prefix.trajectory.token_ids[: prefix.ids]) if prefix else []
        self._logprobs: list[float] = list(prefix.trajectory.logprobs[: prefix.ids]) if prefix else []
        self._kept = prefix is not None
        """Whether the ids before the next turn are there already."""
        self._turn: Turn | None = None
        """What the agent said and the environment has not answered yet."""
        self._reward = 0.0
        self._answer: str | None = None
        self._refused: tuple[str | None, float] | None = None
        """An answer that a TeacherFeedback did not accept, and its reward: it stands if no other is given."""
        self._reason = ""

    @property
    def acting(self) -> bool:
        """Whether the agent has spoken and the environment has not answered yet."""
        return self._turn is not None

    def open(self, env: Env) -> list[Message]:
        """Reset ``env`` and bring it to where the prefix ends; the conversation up to there.

        Raises ReplayMismatch when the environment does not unfold as it was recorded.
        """
        self._env, prefix = env, self._prefix
        env.reset(seed=prefix.seed if prefix else self.seed, options={"task": self._task})
        messages = list(self._world.opening())
        for turn, (action, recorded) in enumerate(turns_of(prefix.kept if prefix else ())):
            observation = env.step(action)[0]
            if observation != recorded:
                raise ReplayMismatch(f"turn {turn}: recorded {recorded[:80]!r}, replayed {observation[:80]!r}")
            messages += [Message(role="assistant", content=action), Message(role="tool", content=recorded)]
        return messages

    def act(self) -> Outcome:
        """Carry out the agent's last turn."""
        assert self._env is not None
        assert self._turn is not None
        return cast(Outcome, self._env.step(self._turn.completion.text))

    def say(self, turn: Turn) -> bool:
        """Take the agent's turn; False when the episode ends here because there was no room to speak."""
        held = len(self._ids) + len(self._fed(turn)) + len(turn.completion.ids)
        if turn.completion.ids and (self._max_context is None or held <= self._max_context):
            self._turn = turn
            return True
        self.status, self._reason = "truncated", "context"  # nobody has read this turn's observation
        if self._refused is not None:
            self._answer, self._reward = self._refused
        return False

    def hear(self, outcome: Outcome) -> str | None:
        """Take what came of the last turn; the observation, or None when the episode is over."""
        observation, reward, terminated, truncated, info = outcome
        self._record(observation, info)
        self._reward += float(reward)
        self._answer = info["answer"]
        self._refused = info.get("refused", self._refused)
        if not (terminated or truncated):
            return observation
        self.status, self._reason = "terminated" if terminated else "truncated", info["truncation"] or ""
        return None

    def fail(self, reason: str) -> None:
        """The episode ends without a reward, for a reason outside the agent's power."""
        if self._turn is not None:
            self._record("", {"error": None, "call": None})
        self.status, self._reason = "failed", reason

    def fail_with(self, error: BaseException) -> None:
        """The environment raised ``error``: the episode fails. A mistake in its use is raised again."""
        if isinstance(error, InfrastructureError | ReplayMismatch):
            self.fail(str(error))
        elif isinstance(error, OvdGymError) or not isinstance(error, Exception):
            raise error
        else:  # a bug in one world is no reason to lose the other episodes
            log.warning("episode %s: its environment raised %r", self._id, error, exc_info=error)
            self.fail(f"the environment raised {type(error).__name__}: {error}")

    def trajectory(self, policy_version: int, decoding: Decoding) -> Trajectory:
        """The record of the episode, once it is over."""
        assert self.status is not None
        return Trajectory(
            id=self._id,
            group_id=self._group_id,
            task=self._task,
            steps=tuple(self._steps),
            token_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            reward=None if self.status == "failed" else self._reward,
            answer=self._answer,
            status=self.status,
            reason=self._reason,
            policy_version=policy_version,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
        )

    @property
    def _world(self) -> ToolEnv:
        assert self._env is not None
        return cast(ToolEnv, self._env.unwrapped)

    def _record(self, observation: str, info: dict[str, Any]) -> None:
        """Add the last turn's ids and steps; ``observation`` belongs to its last step."""
        assert self._turn is not None
        completion = self._turn.completion
        start = self._append(self._turn)
        self._turn = None
        feedback = info.get("feedback", "")  # only there under a TeacherFeedback
        spans = step_spans(completion.text, completion.offsets, self._world.action_format.step_ends(completion.text))
        for i, (text, first, end) in enumerate(spans):
            last = i == len(spans) - 1
            self._steps.append(
                Step(
                    text=text,
                    start=start + first,
                    end=start + end,
                    call=ToolCall.model_validate(info["call"]) if last and info["call"] else None,
                    observation=observation.removesuffix(feedback) if last else "",
                    feedback=feedback if last else "",
                    error=info["error"] if last else None,
                    source=self._source,
                )
            )

    def _append(self, turn: Turn) -> int:
        """Add the turn's ids; where its sampled tokens start."""
        fed = self._fed(turn)
        self._kept = False
        start = len(self._ids) + len(fed)
        self._ids += [*fed, *turn.completion.ids]
        self._logprobs += [*([0.0] * len(fed)), *turn.completion.logprobs]
        return start

    def _fed(self, turn: Turn) -> tuple[int, ...]:
        """Those of the turn's ids before what was said that are not there already."""
        return () if self._kept else turn.fed


def episode_seed(seed: Sequence[int], index: int) -> int:
    """A seed for one episode, independent of all others and of how the work is scheduled."""
    return int(np.random.SeedSequence([*seed, index]).generate_state(1, np.uint64)[0] >> 1)


def step_spans(text: str, offsets: Sequence[int], ends: Sequence[int]) -> list[tuple[str, int, int]]:
    """Split one turn into steps ``(text, start, end)`` with token indices; together they cover the whole turn.

    Args:
        text: the turn.
        offsets: [n] length of ``text`` after each token.
        ends: where steps end in ``text``, in characters; the last is its length. A token that lies across an end
            belongs to the earlier step, and a step that would be left without a token is merged into the next.
    """
    spans: list[tuple[str, int, int]] = []
    char = token = 0
    for end in ends[:-1]:
        stop = bisect_left(offsets, end) + 1
        if token < stop < len(offsets):
            spans.append((text[char : offsets[stop - 1]], token, stop))
            char, token = offsets[stop - 1], stop
    return [*spans, (text[char:], token, len(offsets))]


def turns_of(steps: Iterable[Step]) -> Iterator[tuple[str, str]]:
    """(action, what was read after it) of every turn; the steps of one turn follow each other without a gap."""
    text, end, heard = "", None, ""
    for step in steps:
        if end is not None and step.start > end:
            yield text, heard
            text = ""
        text, end, heard = text + step.text, step.end, step.observation + step.feedback
    if end is not None:
        yield text, heard
