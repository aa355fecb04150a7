"""The arms that filter by the teacher's scores: which trajectories are rejected, and how many are replaced. Pure.

Source: arXiv 2601.21968 (trajectory filter); the prefix form, the cap of
N - 2 a group and the annealing are this project's. Departure: in a group with a missing score nothing is rejected.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from ovd_gym.records import Critique, Record, Trajectory

__all__ = ["SelectionConfig", "cut", "rejected", "replacement_cap", "to_replace"]


class SelectionConfig(Record):
    """When a trajectory is rejected. Arms ``ovd`` and ``ovd-prefix``."""

    theta: Annotated[float, Field(ge=0, le=10)] = 5.0
    """Least mean score, 0-9, of a trajectory (``ovd``) or step (``ovd-prefix``) that is accepted; 0 accepts all,
    10 none."""
    mode: Literal["replace", "append"] = "replace"
    """Whether a demonstration takes the place of what was rejected, or joins the group."""
    max_replaced: Annotated[int, Field(ge=1)] | None = None
    """Most demonstrations in a group; None: its size less 2, so that the student's own attempts are never all gone."""
    anneal_steps: Annotated[int, Field(ge=0)] = 0
    """Training steps over which that number, rounded up, falls linearly to 0; 0: it never falls."""


def rejected(
    trajectories: Sequence[Trajectory], critiques: Sequence[Critique], config: SelectionConfig, arm: str
) -> list[int]:
    """Indices of the trajectories that the teacher does not accept.

    None of a group in which a score is missing: what is rejected would depend on which score that was.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for i, trajectory in enumerate(trajectories):
        if trajectory.status != "failed" and trajectory.steps:
            groups[trajectory.group_id].append(i)
    below = []
    for members in groups.values():
        if all(critiques[i].valid for i in members):
            below += [i for i in members if _lowest(critiques[i], arm) < config.theta]
    return sorted(below)


def cut(trajectory: Trajectory, critique: Critique, theta: float) -> int:
    """Index of the first step below ``theta``, moved back to where its turn begins; 0 if there is none."""
    first = next((k for k, score in enumerate(critique.steps) if score.u * 9 < theta), 0)
    while first > 0 and trajectory.steps[first].start == trajectory.steps[first - 1].end:
        first -= 1
    return first


def replacement_cap(config: SelectionConfig, group_size: int, step: int) -> int:
    """Most demonstrations in a group of ``group_size`` at training step ``step``.

    >>> [replacement_cap(SelectionConfig(anneal_steps=4), 4, step) for step in range(5)]
    [2, 2, 1, 1, 0]
    """
    cap = max(0, group_size - 2) if config.max_replaced is None else min(config.max_replaced, group_size - 1)
    if not config.anneal_steps:
        return cap
    return max(0, -(cap * (step - config.anneal_steps) // config.anneal_steps))


def _lowest(critique: Critique, arm: str) -> float:
    """The mean score, 0-9, by which ``arm`` judges."""
    scores = critique.steps if arm == "ovd-prefix" else (critique.trajectory,)
    return min((score.u * 9 for score in scores), default=9.0)


def to_replace(
    below: Sequence[int],
    trajectories: Sequence[Trajectory],
    critiques: Sequence[Critique],
    config: SelectionConfig,
    step: int,
) -> list[int]:
    """The worst of each group, at most as many as may be replaced."""
    sizes: dict[str, int] = defaultdict(int)
    for trajectory in trajectories:
        sizes[trajectory.group_id] += 1
    groups: dict[str, list[int]] = defaultdict(list)
    for i in sorted(below, key=lambda i: critiques[i].trajectory.u):
        if len(groups[trajectories[i].group_id]) < replacement_cap(config, sizes[trajectories[i].group_id], step):
            groups[trajectories[i].group_id].append(i)
    return sorted(i for members in groups.values() for i in members)
