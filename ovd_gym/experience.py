"""What one training step learns from: rollout, critique, and what the arm makes of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

import numpy as np

from ovd_gym.build import Parts
from ovd_gym.config import TrainConfig
from ovd_gym.demonstration import select
from ovd_gym.errors import TrainingStopped
from ovd_gym.evaluate import summarize
from ovd_gym.players import OnTurn, Round
from ovd_gym.records import Critique, Task, Trajectory

__all__ = ["Experience", "gather", "task_batch"]


@dataclass
class Experience:
    """One training step's episodes."""

    played: list[Trajectory] = field(default_factory=list)
    """By the student (arm ``imitation``: by the demonstrator), all of them."""
    critiques: list[Critique] = field(default_factory=list)
    """Aligned with ``played``; empty without a teacher."""
    learned: list[Trajectory] = field(default_factory=list)
    """What the learner is given: accepted, replaced and continued trajectories."""
    demonstrations: list[Trajectory] = field(default_factory=list)
    """Those of ``learned`` that are not among ``played``."""
    row: dict[str, Any] = field(default_factory=dict)
    """Metrics: :func:`~ovd_gym.evaluate.summarize`, those of the selection, ``resampled`` (groups asked again)."""
    seconds: float = 0.0
    """It took to gather."""


def gather(config: TrainConfig, parts: Parts, step: int, version: int, on_turn: OnTurn) -> Experience:
    """The experience of training step ``step``, from 0, played with weights that have seen ``version`` updates.

    With ``rollout.resample``, groups whose rewards are all equal are dropped and other tasks are asked in their
    place, at most that many times (dynamic sampling, DAPO, arXiv 2503.14476).

    Raises :class:`TrainingStopped` when there is nothing sound to learn from.
    """
    result, began = Experience(), time.monotonic()
    wanted = config.rollout.tasks_per_step
    attempts: list[tuple[Experience, dict[str, float | None]]] = []
    asked: list[Task] = []
    for attempt in range(1 + config.rollout.resample):
        if attempt:
            tasks = _other_tasks(parts.tasks, wanted, asked, (config.seed, 1, step, attempt))
        else:
            tasks = task_batch(parts.tasks, step, wanted, config.seed)
        asked += tasks
        found, selected = _attempt(config, parts, tasks, step, version, attempt, on_turn)
        attempts.append((found, selected))
        result.played += found.played
        result.critiques += found.critiques
        result.demonstrations += found.demonstrations
        kept = _informative(found.learned) if config.rollout.resample else found.learned
        result.learned += kept
        wanted -= len({t.group_id for t in kept})
        if wanted <= 0 or not config.rollout.resample:
            break
    result.row = {**_checked(result, config), **_mean(attempts)}
    if config.rollout.resample:
        result.row["resampled"] = sum(len(found.played) for found, _ in attempts[1:]) / config.rollout.group_size
    result.seconds = time.monotonic() - began
    return result


def task_batch(tasks: Sequence[Task], step: int, count: int, seed: int) -> list[Task]:
    """The tasks of one training step: pass after pass over all of them, each pass in an order of its own."""
    positions = [divmod(position, len(tasks)) for position in range(step * count, (step + 1) * count)]
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(len(tasks)) for epoch, _ in set(positions)}
    return [tasks[int(orders[epoch][place])] for epoch, place in positions]


def _other_tasks(tasks: Sequence[Task], count: int, asked: Sequence[Task], seed: Sequence[int]) -> list[Task]:
    """``count`` tasks in a random order, none of those that were ``asked`` unless there are no others."""
    known = {task.id for task in asked}
    order = (tasks[int(i)] for i in np.random.default_rng(seed).permutation(len(tasks)))
    others = list(islice((task for task in order if task.id not in known), count))
    return [*others, *islice(cycle(asked), count - len(others))]


def _attempt(
    config: TrainConfig,
    parts: Parts,
    tasks: Sequence[Task],
    step: int,
    version: int,
    attempt: int,
    on_turn: OnTurn,
) -> tuple[Experience, dict[str, float | None]]:
    # A further attempt's last number begins with 2: with a 1 there, it would be the seed of the first's demonstrations.
    seed = (config.seed, 1, step, attempt + 1) if attempt else (config.seed, 1, step)
    asked = Round(
        tasks=tuple(tasks),
        seed=seed,
        label=f"step-{step + 1:05d}" + (f"-{attempt}" if attempt else ""),
        policy_version=version,
        group_size=config.rollout.group_size,
        player="demonstrator" if config.credit.arm == "imitation" else "student",
    )
    played = parts.players.play(asked, on_turn)
    critiques = parts.teacher.critique(played) if parts.teacher else []
    result = Experience(played, critiques, played)
    if config.credit.arm not in ("ovd", "ovd-prefix"):
        return result, {}
    selection = select(
        played, critiques, config.selection, arm=config.credit.arm, players=parts.players,
        seed=seed, step=step, on_turn=on_turn,
    )  # fmt: skip
    result.learned, result.demonstrations = selection.trajectories, selection.demonstrations
    return result, selection.metrics


def _informative(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Those of groups in which rewards differ."""
    rewards: dict[str, set[float]] = defaultdict(set)
    for trajectory in trajectories:
        if trajectory.reward is not None:
            rewards[trajectory.group_id].add(trajectory.reward)
    return [t for t in trajectories if len(rewards[t.group_id]) > 1]


def _checked(found: Experience, config: TrainConfig) -> dict[str, Any]:
    """The step's summary. Raises :class:`TrainingStopped` when there is nothing sound to learn from."""
    row = summarize(found.played, found.critiques)
    if row["failed"] == 1.0:
        raise TrainingStopped(f"every episode failed: {found.played[0].reason}")
    invalid, limit = row["invalid_share"] or 0.0, config.teacher.max_invalid_share if config.teacher else 1.0
    if config.credit.arm in ("score-reward", "ovd", "ovd-prefix") and invalid > limit:
        why = next(s for c in found.critiques for s in (*c.steps, c.trajectory) if not s.valid)
        raise TrainingStopped(
            f"{invalid:.0%} of the teacher's scores are missing, more than teacher.max_invalid_share = {limit:.0%}; "
            f"the first: {why.status} ({why.rationale})"
        )
    return dict(row)


def _mean(attempts: Sequence[tuple[Experience, dict[str, float | None]]]) -> dict[str, float | None]:
    """Means of the attempts' metrics, weighted by the numbers of trajectories that they are shares of."""
    merged: dict[str, float | None] = {}
    for name in attempts[0][1]:
        weighted = [
            (len(found.demonstrations if name == "demonstrator_em" else found.played), row[name])
            for found, row in attempts
        ]
        known = [(count, value) for count, value in weighted if value is not None]
        total = sum(count for count, _ in known)
        merged[name] = sum(count * value for count, value in known) / total if total else None
    return merged
