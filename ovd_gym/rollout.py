"""Episodes to trajectories: the student acts, the environments answer, and nobody waits who need not.

One loop in one thread moves every episode through its phases; environment calls run in threads beside it::

    waits for an environment -> opens -> agent speaks <-> environment acts -> over
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

from ovd_gym.agents.base import Agent, Conversation, Lost
from ovd_gym.calls import Calls, occupied
from ovd_gym.envs.base import ToolEnv
from ovd_gym.episode import Env, Episode, Prefix, episode_seed, step_spans, turns_of
from ovd_gym.llm.base import TRAINING, Decoding
from ovd_gym.records import Message, Task, Trajectory
from ovd_gym.schedule import FREE_RUNNING, LOCK_STEP, Schedule

__all__ = [
    "FREE_RUNNING",
    "LOCK_STEP",
    "Env",
    "Prefix",
    "Schedule",
    "episode_seed",
    "rollout",
    "step_spans",
    "turns_of",
]

_PATIENCE_S = 0.1
"""Longest wait for a tool before deadlines and Ctrl-C are looked at again."""


def rollout(
    tasks: Sequence[Task],
    envs: Sequence[Env],
    agent: Agent,
    *,
    group_size: int = 1,
    seed: Sequence[int] = (0,),
    label: str = "rollout",
    policy_version: int = 0,
    decoding: Decoding = TRAINING,
    source: Literal["student", "teacher"] = "student",
    prefixes: Sequence[Prefix] | None = None,
    first: int = 0,
    max_context: int | None = None,
    schedule: Schedule = LOCK_STEP,
    on_turn: Callable[[int, int], None] = lambda done, tokens: None,
) -> list[Trajectory]:
    """One episode per task and group member.

    Args:
        tasks: the questions; each is asked ``group_size`` times.
        envs: instances of one environment (wrappers around a ToolEnv are welcome). Where there are fewer than
            episodes, an episode begins when another has ended.
        seed: entropy of this call; every episode's own seed is derived from it and the episode's index.
        label: prefix of trajectory and group ids, unique in a run.
        policy_version: recorded with each trajectory.
        decoding: how the agent draws its tokens; recorded with each trajectory.
        source: recorded with every step.
        prefixes: one per episode: it is played up to there as it was, and the agent goes on. An environment that
            unfolds in another way fails the episode.
        first: number of the first group, if this is a part of a round: seeds and ids are those of the whole round.
        max_context: tokens an episode may hold before it is truncated, for an agent that keeps no count of its own: a
            demonstrator speaks in the student's tokens, and the student's model will read them. None: no limit.
        schedule: how episodes wait for each other, and for how long at most.
        on_turn: called whenever the work has moved on, at least every tenth of a second, with the number of finished
            episodes and of sampled tokens so far. What it raises ends the rollout.

    Returns:
        The trajectories in task order, group after group. An episode whose environment broke or that ran into a
        deadline is there too, with status ``failed`` and no reward.
    """
    if not envs:
        raise ValueError("a rollout needs at least one environment")
    stops = {cast(ToolEnv, env.unwrapped).action_format.stop for env in envs}
    if len(stops) != 1:
        raise ValueError("the environments of one rollout must share one action format")
    episodes = [
        Episode(
            task=tasks[i // group_size],
            id=f"{label}/{first + i // group_size}/{i % group_size}",
            group_id=f"{label}/{first + i // group_size}",
            seed=episode_seed(seed, first * group_size + i),
            source=source,
            prefix=prefixes[i] if prefixes else None,
            max_context=max_context,
        )
        for i in range(len(tasks) * group_size)
    ]
    if episodes:
        conversation = agent.open([episode.seed for episode in episodes], stops.pop(), decoding)
        _Rollout(episodes, envs, conversation, schedule).run(on_turn)
    return [episode.trajectory(policy_version, decoding) for episode in episodes]


class _Rollout:
    """Which episode is where: waiting, with the agent (``speaking``), in a call, or ready for the agent."""

    def __init__(
        self, episodes: Sequence[Episode], envs: Sequence[Env], conversation: Conversation, schedule: Schedule
    ) -> None:
        self._episodes = episodes
        self._conversation = conversation
        self._schedule = schedule
        self._free = deque(env for env in envs if not occupied(env.unwrapped))
        self._waiting = deque(range(len(episodes)))
        self._envs: dict[int, Env] = {}
        """Of the episodes under way."""
        self._began: dict[int, float] = {}
        """When they began, on the monotonic clock."""
        self._openings: dict[int, list[Message]] = {}
        self._observations: dict[int, str] = {}
        self._speaking: dict[int, float] = {}
        """When the turns under way began."""
        self._calls = Calls(schedule.tool_threads)
        self._finished = self._tokens = 0

    def run(self, on_turn: Callable[[int, int], None]) -> None:
        """Play all episodes to their ends."""
        try:
            while self._finished < len(self._episodes):
                self._begin()
                self._give()
                self._listen()
                self._collect()
                self._enforce()
                on_turn(self._finished, self._tokens)
        finally:
            self._calls.close()
            self._conversation.close()

    def _begin(self) -> None:
        """Open as many episodes as there is room for."""
        while self._waiting and self._free and len(self._envs) < self._schedule.max_rows:
            row, env = self._waiting.popleft(), self._free.popleft()
            self._envs[row], self._began[row] = env, time.monotonic()
            episode = self._episodes[row]
            self._call(row, partial(episode.open, env), episode.calls)
        while self._waiting and not self._envs:
            self._episodes[self._waiting.popleft()].fail("no environment is left: each of them hangs in a call")
            self._finished += 1

    def _give(self) -> None:
        """Let the agent speak to those that are ready; in lock-step, once all are."""
        if self._schedule.schedule == "lock-step" and (self._speaking or len(self._calls)):
            return
        ready = [*self._openings, *self._observations]
        if self._openings:
            self._conversation.begin(dict(sorted(self._openings.items())))
        if self._observations:
            self._conversation.reply(dict(sorted(self._observations.items())))
        self._openings, self._observations = {}, {}
        self._speaking |= dict.fromkeys(ready, time.monotonic())

    def _listen(self) -> None:
        """Let the agent work on its turns, and act on those that ended."""
        if not self._speaking:
            return
        for row, turn in sorted(self._conversation.advance().items()):
            del self._speaking[row]
            if isinstance(turn, Lost):
                self._episodes[row].fail(turn.reason)
                self._end(row)
                continue
            self._tokens += len(turn.completion.ids)
            if self._episodes[row].say(turn):
                self._call(row, self._episodes[row].act)
            else:
                self._end(row)

    def _collect(self) -> None:
        """Take what environments have answered; wait for it if the agent has nothing to do."""
        for call in self._calls.finished(0.0 if self._speaking else _PATIENCE_S):
            episode = self._episodes[call.row]
            if call.error is not None:
                episode.fail_with(call.error)
                self._end(call.row)
            elif not episode.acting:
                self._openings[call.row] = call.result
            elif (observation := episode.hear(call.result)) is not None:
                self._observations[call.row] = observation
            else:
                self._end(call.row)

    def _enforce(self) -> None:
        """Fail the episodes that have run into a deadline."""
        limits, now = self._schedule, time.monotonic()
        for row in self._calls.overdue():
            self._give_up(row, f"an environment call took longer than tool_timeout_s = {limits.tool_timeout_s:g} s")
        for since, what, limit_s in (
            (self._speaking, "a turn took longer than turn_timeout_s", limits.turn_timeout_s),
            (self._began, "it took longer than episode_timeout_s", limits.episode_timeout_s),
        ):
            if limit_s is not None:
                for row in [row for row, began in since.items() if now - began > limit_s]:
                    self._give_up(row, f"{what} = {limit_s:g} s")

    def _give_up(self, row: int, reason: str) -> None:
        self._calls.leave(row)
        self._episodes[row].fail(f"deadline: {reason}")
        self._end(row)

    def _call(self, row: int, function: Callable[[], Any], count: int = 1) -> None:
        """Have the environment of ``row`` do something, which takes up to ``count`` tool calls."""
        limit_s = self._schedule.tool_timeout_s
        self._calls.start(row, self._envs[row].unwrapped, function, None if limit_s is None else count * limit_s)

    def _end(self, row: int) -> None:
        """The episode is over: free what it holds. An environment that hangs stays away."""
        self._conversation.end([row])
        env = self._envs.pop(row)
        if not occupied(env.unwrapped):
            self._free.append(env)
        for held in (self._began, self._speaking, self._openings, self._observations):
            held.pop(row, None)
        self._finished += 1
