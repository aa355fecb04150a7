"""Rewards and critiques to one advantage per step. Pure: nothing here knows a model or a tensor.

Notation: trajectory i of a group, step k; E environment reward, u a score on [0, 1].

- return of a trajectory: ``R_i = E_i`` (arm ``grpo``) or ``R_i = (1 - lambda) E_i + lambda u_i`` (``score-reward``)
- its advantage: ``A_i = R_i - mean_group(R)``, divided by the group's standard deviation only when asked (GRPO,
  arXiv 2402.03300; not dividing is Dr. GRPO, arXiv 2503.20783)
- step return, min form: ``G_ik = min_{j >= k} u_ij``. A sum would pay for padding with mediocre steps
  (PURE, arXiv 2504.15275).
- step advantage: ``A_ik = A_i + w (G_ik - mean_group(mean_k G))``, clipped to +-2
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import Field

from ovd_gym.records import Critique, Record, Trajectory

__all__ = ["Arm", "Credit", "CreditConfig", "assign_credit", "min_form"]

Arm = Literal["grpo", "score-reward", "imitation"]


class CreditConfig(Record):
    """Which signal trains the student, and how much of it."""

    arm: Arm = "score-reward"
    """``grpo``: the environment's reward alone. ``score-reward``: the teacher's scores as well. ``imitation``: no
    reinforcement; the demonstrator's right episodes are imitated, to warm-start a student."""
    trajectory_weight: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """lambda, the share of the trajectory score in the return; below 0.5, every right answer stays above every wrong
    one when the environment's reward is 0 or 1. Arm ``score-reward``."""
    step_weight: Annotated[float, Field(ge=0)] = 0.5
    """w, the weight of the step term. Arm ``score-reward``."""
    normalize: bool = False
    """Divide advantages by the standard deviation of the group's returns."""
    clip: Annotated[float, Field(gt=0)] = 2.0
    """Advantages are clipped to +- this."""


class Credit(Record):
    """What one trajectory is trained on."""

    trajectory_id: str
    advantages: tuple[float, ...]
    """[T] one per step, broadcast to the step's tokens."""

    @property
    def informative(self) -> bool:
        """Whether any step has a gradient."""
        return any(self.advantages)


def assign_credit(
    trajectories: Sequence[Trajectory], critiques: Iterable[Critique], config: CreditConfig
) -> list[Credit]:
    """Credits in the order of ``trajectories``, without those that failed (they have no reward).

    A group in which any score is missing is credited by the environment's reward alone: mixing scored and unscored
    members would bias the comparison.

    Args:
        trajectories: any number of groups in any order; ``group_id`` says which belong together.
        critiques: found by ``trajectory_id``; arm ``grpo`` needs none.
    """
    by_id = {critique.trajectory_id: critique for critique in critiques}
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        if trajectory.reward is not None:
            groups[trajectory.group_id].append(trajectory)
    credits: dict[str, Credit] = {}
    for members in groups.values():
        critiqued = [by_id[m.id] for m in members if m.id in by_id and by_id[m.id].valid]
        scored = config.arm == "score-reward" and len(critiqued) == len(members)
        for credit in _group_credit(members, critiqued if scored else None, config):
            credits[credit.trajectory_id] = credit
    return [credits[t.id] for t in trajectories if t.id in credits]


def min_form(scores: Sequence[float]) -> list[float]:
    """``G_k = min_{j >= k} u_j``; appending a step never raises an earlier return.

    >>> min_form([0.5, 0.9, 0.7])
    [0.5, 0.7, 0.7]
    """
    return list(accumulate(reversed(scores), min))[::-1]


def _group_credit(
    members: Sequence[Trajectory], critiques: Sequence[Critique] | None, config: CreditConfig
) -> list[Credit]:
    if len(members) == 1:  # nobody to compare with
        return [Credit(trajectory_id=m.id, advantages=(0.0,) * len(m.steps)) for m in members]
    returns = [float(m.reward or 0.0) for m in members]
    steps: Mapping[int, Sequence[float]] = {i: [0.0] * len(m.steps) for i, m in enumerate(members)}
    if critiques is not None:
        lam, w = config.trajectory_weight, config.step_weight
        returns = [(1 - lam) * e + lam * c.trajectory.u for e, c in zip(returns, critiques, strict=True)]
        g = [min_form([score.u for score in c.steps]) for c in critiques]
        means = [_mean(values) for values in g if values]
        baseline = _mean(means) if means else 0.0
        steps = {i: [w * (value - baseline) for value in values] for i, values in enumerate(g)}
    outcome = _advantages(returns, config.normalize)
    clip = config.clip
    return [
        Credit(
            trajectory_id=m.id,
            advantages=tuple(max(-clip, min(clip, outcome[i] + step)) for step in steps[i]),
        )
        for i, m in enumerate(members)
    ]


def _advantages(returns: Sequence[float], normalize: bool) -> list[float]:
    if max(returns) == min(returns):  # exactly zero, whatever rounding would make of the mean
        return [0.0] * len(returns)
    mean = _mean(returns)
    deviations = [r - mean for r in returns]
    if not normalize:
        return deviations
    std = _mean([d * d for d in deviations]) ** 0.5
    return [d / (std + 1e-6) for d in deviations]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
