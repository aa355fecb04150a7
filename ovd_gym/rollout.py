"""Episodes to trajectories: the student acts, the environment answers, and every token id is kept as it was."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np

from ovd_gym.agents.base import Agent, Conversation, Turn
from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError, InfrastructureError, OvdGymError, ReplayMismatch
from ovd_gym.llm.base import Completion
from ovd_gym.records import Message, Step, Task, ToolCall, Trajectory

__all__ = ["LOCK_STEP", "Env", "Prefix", "Schedule", "episode_seed", "rollout", "step_spans", "turns_of"]

Env = gym.Env[str, str]


@dataclass(frozen=True)
class Schedule:
    """How the episodes of one rollout wait for each other; tools of different episodes always run side by side."""

    ready_share: float = 1.0
    """Share of the unfinished episodes that must be ready before the agent speaks to them. 1: lock-step, and the same
    numbers every time. Near 0: nobody waits for a slow tool, but what is batched together then depends on timing, and
    with it the last bits of the log-probabilities."""
    tool_threads: int = 32

    def __post_init__(self) -> None:
        if not 0.0 <= self.ready_share <= 1.0 or self.tool_threads < 1:
            raise ConfigError(f"ready_share must be in [0, 1] and tool_threads at least 1, got {self}")


LOCK_STEP = Schedule()


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


def rollout(
    tasks: Sequence[Task],
    envs: Sequence[Env],
    agent: Agent,
    *,
    group_size: int = 1,
    seed: Sequence[int] = (0,),
    label: str = "rollout",
    policy_version: int = 0,
    greedy: bool = False,
    source: Literal["student", "teacher"] = "student",
    prefixes: Sequence[Prefix] | None = None,
    schedule: Schedule = LOCK_STEP,
    on_turn: Callable[[int, int], None] = lambda done, tokens: None,
) -> list[Trajectory]:
    """One episode per task and group member.

    Args:
        tasks: the questions; each is asked ``group_size`` times.
        envs: ``len(tasks) * group_size`` instances of one environment (wrappers around a ToolEnv are welcome).
        seed: entropy of this call; every episode's own seed is derived from it and the episode's index.
        label: prefix of trajectory and group ids, unique in a run.
        policy_version: recorded with each trajectory.
        source: recorded with every step.
        prefixes: one per episode: it is played up to there as it was, and the agent goes on. An environment that
            unfolds in another way fails the episode.
        schedule: how episodes wait for each other.
        on_turn: called whenever a turn ends, with the number of finished episodes and of sampled tokens so far.

    Returns:
        The trajectories in task order, group after group. An episode whose environment broke is there too, with
        status ``failed`` and no reward.
    """
    if len(envs) != len(tasks) * group_size:
        raise ValueError(f"{len(tasks)} tasks x {group_size} need {len(tasks) * group_size} envs, got {len(envs)}")
    episodes = [
        _Episode(
            env, tasks[i // group_size], episode_seed(seed, i), f"{label}/{i // group_size}", i % group_size, source
        )
        for i, env in enumerate(envs)
    ]
    for i, episode in enumerate(episodes):
        episode.begin(prefixes[i] if prefixes else None)
    formats = {episode.env.action_format.stop for episode in episodes}
    if len(formats) != 1:
        raise ValueError("the environments of one rollout must share one action format")
    begun = [episode for episode in episodes if episode.status is None]
    if begun:
        openings = [episode.messages() for episode in begun]
        conversation = agent.open(openings, [episode.seed for episode in begun], formats.pop(), greedy)
        _play(begun, conversation, on_turn, schedule)
    return [episode.trajectory(policy_version) for episode in episodes]


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


def _play(
    episodes: list[_Episode],
    conversation: Conversation,
    on_turn: Callable[[int, int], None],
    schedule: Schedule,
) -> None:
    running: dict[Future[str | None], int] = {}
    arrived: SimpleQueue[Future[str | None]] = SimpleQueue()
    ready: dict[int, str] = {}
    finished = tokens = 0
    pool = ThreadPoolExecutor(schedule.tool_threads, thread_name_prefix="tools")
    try:
        turns = conversation.begin()
        while True:
            for row, turn in turns.items():
                future = pool.submit(episodes[row].take, turn)
                running[future] = row
                future.add_done_callback(arrived.put)
                tokens += len(turn.completion.ids)
            while running and (not ready or len(ready) < schedule.ready_share * (len(running) + len(ready))):
                for future in _drained(arrived):
                    row, observation = running.pop(future), future.result()
                    if observation is None:
                        finished += 1
                    else:
                        ready[row] = observation
                on_turn(finished, tokens)
            if not ready:
                return
            turns, ready = conversation.reply(dict(sorted(ready.items()))), {}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _drained(queue: SimpleQueue[Future[str | None]]) -> Iterator[Future[str | None]]:
    """Wait for one, then take all that are there."""
    yield queue.get()
    while not queue.empty():
        yield queue.get()


class _Episode:
    """One environment and what has been recorded of its episode."""

    def __init__(self, env: Env, task: Task, seed: int, group_id: str, member: int, source: str) -> None:
        self.env = cast(ToolEnv, env.unwrapped)
        self.seed = seed
        self.status: str | None = None
        self._wrapped = env
        self._task = task
        self._group_id = group_id
        self._member = member
        self._steps: list[Step] = []
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self._reward: float | None = 0.0
        self._answer: str | None = None
        self._reason = ""
        self._source = source
        self._kept = False
        """Whether the ids before the next turn are there already."""

    def begin(self, prefix: Prefix | None) -> None:
        """Reset the environment, and bring it to where ``prefix`` ends."""
        try:
            self._wrapped.reset(seed=prefix.seed if prefix else self.seed, options={"task": self._task})
            if prefix is not None:
                self._replay(prefix)
        except (InfrastructureError, ReplayMismatch) as error:
            self._fail(error)

    def messages(self) -> list[Message]:
        """The conversation up to now."""
        messages = list(self.env.opening())
        for action, observation in turns_of(self._steps):
            messages += [Message(role="assistant", content=action), Message(role="tool", content=observation)]
        return messages

    def take(self, turn: Turn) -> str | None:
        """Record the agent's turn and act on it; the observation, or None when the episode is over."""
        if not turn.completion.ids:  # no room: nobody has read this turn's observation
            self.status, self._reason = "truncated", "context"
            return None
        start = self._append(turn)
        try:
            observation, reward, terminated, truncated, info = self._wrapped.step(turn.completion.text)
        except InfrastructureError as error:
            self._record(turn.completion, start, "", {"error": None, "call": None})
            self._fail(error)
            return None
        self._record(turn.completion, start, observation, info)
        assert self._reward is not None
        self._reward += float(reward)
        self._answer = info["answer"]
        if terminated or truncated:
            self.status = "terminated" if terminated else "truncated"
            self._reason = info["truncation"] or ""
            return None
        return observation

    def trajectory(self, policy_version: int) -> Trajectory:
        return Trajectory(
            id=f"{self._group_id}/{self._member}",
            group_id=self._group_id,
            task=self._task,
            steps=tuple(self._steps),
            token_ids=tuple(self._ids),
            logprobs=tuple(self._logprobs),
            reward=self._reward,
            answer=self._answer,
            status=self.status,  # type: ignore[arg-type]  # checked by the record
            reason=self._reason,
            policy_version=policy_version,
        )

    def _replay(self, prefix: Prefix) -> None:
        """Play the turns that are kept. Raises ReplayMismatch when the environment answers differently."""
        kept = prefix.trajectory.steps[: prefix.steps]
        for turn, (action, recorded) in enumerate(turns_of(kept)):
            observation = self._wrapped.step(action)[0]
            if observation != recorded:
                raise ReplayMismatch(f"turn {turn}: recorded {recorded[:80]!r}, replayed {observation[:80]!r}")
        self._steps = list(kept)
        self._ids = list(prefix.trajectory.token_ids[: prefix.ids])
        self._logprobs = list(prefix.trajectory.logprobs[: prefix.ids])
        self._kept = True

    def _fail(self, error: OvdGymError) -> None:
        self.status, self._reward, self._reason = "failed", None, str(error)

    def _append(self, turn: Turn) -> int:
        """Add the turn's ids; where its sampled tokens start."""
        fed = () if self._kept else turn.fed
        self._kept = False
        start = len(self._ids) + len(fed)
        self._ids += [*fed, *turn.completion.ids]
        self._logprobs += [*([0.0] * len(fed)), *turn.completion.logprobs]
        return start

    def _record(self, completion: Completion, start: int, observation: str, info: dict[str, Any]) -> None:
        ends = self.env.action_format.step_ends(completion.text)
        feedback = info.get("feedback", "")  # only there under a TeacherFeedback
        spans = step_spans(completion.text, completion.offsets, ends)
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
                    source=self._source,  # type: ignore[arg-type]  # checked by the record
                )
            )
