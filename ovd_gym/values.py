"""What a step is worth, from the environment alone: how often the episode succeeds when an agent plays on from it.

No teacher and no label is needed: the environment is brought back to where it stood after the step, an agent plays
the episode to its end several times, and the mean of the rewards is the value of the step.

Source: "Math-Shepherd: Verify and Reinforce LLMs Step-by-step without Human Annotations", Wang et al.,
arXiv 2312.08935 (soft estimation).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from ovd_gym.agents.base import Agent
from ovd_gym.errors import ConfigError
from ovd_gym.records import Probability, Record, Trajectory
from ovd_gym.rollout import Env, Prefix, rollout

__all__ = ["StepValues", "step_values"]


class StepValues(Record):
    """The values of one trajectory's steps."""

    trajectory_id: str
    values: tuple[Probability | None, ...]
    """[T] mean reward of the continuations. None where there is none: the step ends inside a turn, where the
    environment has no state, or no continuation came to an end (see ``reason``)."""
    continuations: tuple[int, ...]
    """[T] what each value is the mean of; 0 for the last step, whose value is the episode's own reward."""
    reason: str = ""
    """Why a continuation failed; empty if none did."""


def step_values(
    trajectories: Sequence[Trajectory],
    envs: Sequence[Env],
    agent: Agent,
    *,
    continuations: int = 8,
    seed: Sequence[int] = (0,),
    env_seeds: Sequence[int] | None = None,
    on_episode: Callable[[int, int], None] = lambda done, total: None,
) -> list[StepValues]:
    """The value of every step of ``trajectories``, by playing on from it.

    Args:
        trajectories: [N] episodes of the environments' own kind, such as those of a stored run.
        envs: instances of one environment; as many continuations are played at a time.
        agent: who plays on; the values are those of its policy.
        continuations: episodes from each step.
        seed: entropy of this call; every continuation's own seed is derived from it and from its place.
        env_seeds: [N] what each episode's environment was reset with; None where its tools draw nothing at random.
        on_episode: called with the number of continuations done, and of all.

    Returns:
        One record per trajectory, in order. A continuation that failed (the environment broke, or did not unfold as
        it was recorded) is left out of the mean: it is not a zero.

    Raises:
        ConfigError: no environment, or fewer than one continuation.
    """
    if continuations < 1 or not envs:
        raise ConfigError(f"step values need an environment and a continuation, got {len(envs)} and {continuations}")
    seeds = [0] * len(trajectories) if env_seeds is None else env_seeds
    places = [
        (i, k, Prefix(trajectory, k + 1, env_seed))
        for i, (trajectory, env_seed) in enumerate(zip(trajectories, seeds, strict=True))
        for k in _ends_of_turns(trajectory)
        for _ in range(continuations)
    ]
    rewards: dict[tuple[int, int], list[float]] = defaultdict(list)
    reasons: dict[int, str] = {}
    for first in range(0, len(places), len(envs)):
        batch = places[first : first + len(envs)]
        played = _play_on([prefix for _, _, prefix in batch], envs, agent, (*seed, first))
        for (i, k, _), episode in zip(batch, played, strict=True):
            if episode.reward is None:
                reasons[i] = episode.reason
            else:
                rewards[i, k].append(episode.reward)
        on_episode(first + len(batch), len(places))
    return [
        _record(trajectory, [rewards.get((i, k), []) for k in range(len(trajectory.steps))], reasons.get(i, ""))
        for i, trajectory in enumerate(trajectories)
    ]


def _play_on(prefixes: Sequence[Prefix], envs: Sequence[Env], agent: Agent, seed: Sequence[int]) -> list[Trajectory]:
    tasks = [prefix.trajectory.task for prefix in prefixes]
    return rollout(tasks, envs, agent, seed=seed, label="values", prefixes=prefixes)


def _ends_of_turns(trajectory: Trajectory) -> list[int]:
    """Indices of the steps after which a turn follows. The steps of one turn follow each other without a gap."""
    if trajectory.status == "failed":
        return []
    starts = [step.start for step in trajectory.steps[1:]]
    return [k for k, start in enumerate(starts) if start > trajectory.steps[k].end]


def _record(trajectory: Trajectory, rewards: Sequence[Sequence[float]], reason: str) -> StepValues:
    values = [sum(found) / len(found) if found else None for found in rewards]
    if values:
        values[-1] = trajectory.reward  # nothing follows it
    return StepValues(
        trajectory_id=trajectory.id,
        values=tuple(values),
        continuations=tuple(map(len, rewards)),
        reason=trajectory.reason if trajectory.status == "failed" else reason,
    )
