"""Rewards and critiques to one advantage or one reward per step. Pure: nothing here knows a model or a tensor.

Notation: trajectory i of a group, step k; E environment reward, u a score on [0, 1].

- return of a trajectory: ``R_i = E_i``, or ``R_i = (1 - lambda) E_i + lambda u_i`` (arm ``score-reward``), less DAPO's
  penalty for running long when that is switched on
- its advantage: ``A_i = R_i - b`` with the baseline b of :data:`Baseline`, divided by the standard deviation only when
  asked (GRPO, arXiv 2402.03300; not dividing is Dr. GRPO, arXiv 2503.20783)
- step advantage: ``A_ik = A_i + w s_ik`` with the step term s of :data:`STEP_TERMS`, clipped to +-2
- step reward, when advantages are the learner's to estimate (``estimator: gae``): R_i at the last step, and with scores
  of all steps the potential-based ``w (Phi_k - Phi_{k-1})`` at each, with ``Phi_k = u_ik`` and ``Phi_0 = 0``
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from math import isfinite
from typing import Annotated, Literal

from pydantic import Field

from ovd_gym.plugins import find_function
from ovd_gym.records import Critique, Record, Step, Trajectory

__all__ = [
    "STEP_TERMS",
    "Arm",
    "Baseline",
    "Credit",
    "CreditConfig",
    "Estimator",
    "StepTerm",
    "anchor_state",
    "assign_credit",
    "min_form",
    "step_term",
]

Arm = Literal["grpo", "score-reward", "ovd", "ovd-prefix", "imitation", "token-opd"]
Baseline = Literal["group", "leave-one-out", "batch"]
Estimator = Literal["group", "gae"]


class CreditConfig(Record):
    """Which signal trains the student, and how much of it."""

    arm: Arm = "score-reward"
    """``grpo``: the environment's reward alone. ``score-reward``: the teacher's scores as well. ``ovd``: rejected
    trajectories are replaced by demonstrations. ``ovd-prefix``: they are continued by the demonstrator from their first
    bad step. ``imitation``: no reinforcement; the demonstrator's right episodes are imitated, to warm-start a student.
    ``token-opd``: the comparator, token-level distillation from a teacher model's logits."""
    estimator: Estimator = "group"
    """Where advantages come from. ``group``: a trajectory's return is compared with those of its group. ``gae``: PPO
    with a value head, see :class:`~ovd_gym.config.ValueConfig`; groups may then be of size 1. Arms ``grpo`` and
    ``score-reward``."""
    trajectory_weight: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    """lambda, the share of the trajectory score in the return; below 0.5, every right answer stays above every wrong
    one when the environment's reward is 0 or 1. Arm ``score-reward``."""
    step_weight: Annotated[float, Field(ge=0)] = 0.5
    """w, the weight of the step term; with ``estimator: gae``, of the step reward (arm ``score-reward``)."""
    step_term: str | None = None
    """One of :data:`STEP_TERMS` or ``package.module:function``; None: ``min-form`` with arm ``score-reward``, else
    ``outcome``, which has no step term."""
    baseline: Baseline = "group"
    """``group``: the mean of the group (GRPO). ``leave-one-out``: the mean of its other members (RLOO, arXiv
    2402.14740). ``batch``: the mean of all groups (REINFORCE++, arXiv 2501.03262; with ``normalize``)."""
    normalize: bool = False
    """Divide advantages by the standard deviation of the returns, over the group or, with baseline ``batch``, over all
    groups."""
    clip: Annotated[float, Field(gt=0)] = 2.0
    """Advantages are clipped to +- this."""
    overlong: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]] | None = None
    """(from, to) sampled tokens of an episode: between them the return falls by up to 1, beyond it by 1 (DAPO's soft
    overlong punishment, arXiv 2503.14476, equation 13)."""


class Credit(Record):
    """What one trajectory is trained on."""

    trajectory_id: str
    advantages: tuple[float, ...]
    """[T] one per step, broadcast to the step's tokens; 0 with ``estimator: gae``, where the learner estimates them."""
    rewards: tuple[float, ...] = ()
    """[T] one per step, standing at its last token; empty unless ``estimator: gae``."""

    @property
    def informative(self) -> bool:
        """Whether any step has an advantage."""
        return any(self.advantages)


StepTerm = Callable[[Sequence[Trajectory], Sequence[Critique] | None], Sequence[Sequence[float]]]
"""From a group and its critiques (aligned; None when the arm has none, or a score is missing) to [T] values each."""


def assign_credit(
    trajectories: Sequence[Trajectory], critiques: Iterable[Critique], config: CreditConfig
) -> list[Credit]:
    """Credits in the order of ``trajectories``, without those that failed (they have no reward).

    A group in which any score is missing is credited by the environment's reward alone: mixing scored and unscored
    members would bias the comparison. With baseline ``batch``, which compares across groups, no return then holds a
    score; step terms, which compare within a group, still do.

    Args:
        trajectories: any number of groups in any order; ``group_id`` says which belong together.
        critiques: found by ``trajectory_id``; only arm ``score-reward`` reads them.
    """
    by_id = {critique.trajectory_id: critique for critique in critiques} if config.arm == "score-reward" else {}
    groups: dict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in trajectories:
        if trajectory.reward is not None:
            groups[trajectory.group_id].append(trajectory)
    scored = {name: _complete(members, by_id) for name, members in groups.items()}
    blended = {} if config.baseline == "batch" and None in scored.values() else scored
    returns = {name: _returns(members, blended.get(name), config) for name, members in groups.items()}
    assign = _rewarded if config.estimator == "gae" else _compared
    credits = {credit.trajectory_id: credit for credit in assign(groups, scored, returns, config)}
    return [credits[t.id] for t in trajectories if t.id in credits]


Groups = Mapping[str, Sequence[Trajectory]]
Scored = Mapping[str, Sequence[Critique] | None]
Returns = Mapping[str, Sequence[float]]


def _compared(groups: Groups, scored: Scored, returns: Returns, config: CreditConfig) -> Iterator[Credit]:
    """Advantages by comparison."""
    outcome = _advantages(returns, config)
    term = step_term(config)
    for name, members in groups.items():
        steps = term(members, scored[name]) if len(members) > 1 else [[0.0] * len(m.steps) for m in members]
        for member, a, s in zip(members, outcome[name], steps, strict=True):
            if len(s) != len(member.steps):
                raise ValueError(f"step term {config.step_term!r} gave {len(s)} values for {len(member.steps)} steps")
            if not all(map(isfinite, s)):
                raise ValueError(f"step term {config.step_term!r} gave {list(s)}: expected finite numbers")
            advantages = (a + config.step_weight * value for value in s)
            clipped = tuple(max(-config.clip, min(config.clip, advantage)) for advantage in advantages)
            yield Credit(trajectory_id=member.id, advantages=clipped)


def _rewarded(groups: Groups, scored: Scored, returns: Returns, config: CreditConfig) -> Iterator[Credit]:
    """Rewards, from which the learner estimates advantages."""
    for name, members in groups.items():
        critiques: Sequence[Critique | None] = scored[name] or [None] * len(members)
        for member, critique, total in zip(members, critiques, returns[name], strict=True):
            potentials = [score.u for score in critique.steps] if critique else [0.0] * len(member.steps)
            shaping = [config.step_weight * (u - before) for before, u in pairwise([0.0, *potentials])]
            rewards = (*shaping[:-1], shaping[-1] + total) if shaping else ()
            yield Credit(trajectory_id=member.id, advantages=(0.0,) * len(rewards), rewards=rewards)


# Step terms ---------------------------------------------------------------------------------------------


def min_form(scores: Sequence[float]) -> list[float]:
    """``G_k = min_{j >= k} u_j`` (PURE, arXiv 2504.15275); appending a step never raises an earlier return.

    >>> min_form([0.5, 0.9, 0.7])
    [0.5, 0.7, 0.7]
    """
    return list(accumulate(reversed(scores), min))[::-1]


def _sum_form(scores: Sequence[float]) -> list[float]:
    """``G_k = sum_{j >= k} u_j``: it pays for padding with mediocre steps, and is here for comparison."""
    return list(accumulate(reversed(scores)))[::-1]


def _potential(scores: Sequence[float]) -> list[float]:
    """Return of the shaping reward ``Phi_k - Phi_{k-1}`` (Ng et al. 1999), Phi = u: ``G_k = Phi_T - Phi_{k-1}``."""
    return [scores[-1] - before for before in (0.0, *scores[:-1])] if scores else []


def _of_scores(returns: Callable[[Sequence[float]], list[float]]) -> StepTerm:
    """The step term ``G_ik - mean_group(mean_k G)``; nothing where a score is missing."""

    def term(members: Sequence[Trajectory], critiques: Sequence[Critique] | None) -> Sequence[Sequence[float]]:
        if critiques is None:
            return _outcome(members, critiques)
        g = [returns([score.u for score in c.steps]) for c in critiques]
        means = [_mean(values) for values in g if values]
        baseline = _mean(means) if means else 0.0
        return [[value - baseline for value in values] for values in g]

    return term


def _outcome(members: Sequence[Trajectory], critiques: Sequence[Critique] | None) -> Sequence[Sequence[float]]:
    return [[0.0] * len(m.steps) for m in members]


def anchor_state(members: Sequence[Trajectory], critiques: Sequence[Critique] | None) -> Sequence[Sequence[float]]:
    """GiGPO's step term (arXiv 2505.10978): what steps taken in the same state led to, relative to each other.

    The state of a step is what the student has just read: the question, then the last observation; the paragraphs of
    one turn share theirs. The return is the episode's reward, discounted by 0.95 a step; a state that only one step
    started from says nothing.
    """
    found: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for i, member in enumerate(members):
        for k, state in enumerate(_states(member.steps)):
            found[state].append((i, k, float(member.reward or 0.0) * 0.95 ** (len(member.steps) - 1 - k)))
    terms = [[0.0] * len(m.steps) for m in members]
    for visits in found.values():
        mean = _mean([value for _, _, value in visits])
        for i, k, value in visits:
            terms[i][k] = value - mean
    return terms


def _states(steps: Sequence[Step]) -> list[str]:
    """What was read last before each step; the steps of one turn follow each other without a gap, and read nothing."""
    states = [""]
    for before, step in pairwise(steps):
        states.append(f"{before.observation}\0{before.feedback}" if step.start > before.end else states[-1])
    return states[: len(steps)]


STEP_TERMS: dict[str, StepTerm] = {
    "outcome": _outcome,
    "min-form": _of_scores(min_form),
    "sum-form": _of_scores(_sum_form),
    "potential": _of_scores(_potential),
    "anchor-state": anchor_state,
}
"""Built-in step terms. ``min-form``, ``sum-form`` and ``potential`` read the teacher's step scores."""
FROM_SCORES = ("min-form", "sum-form", "potential")


def step_term(config: CreditConfig) -> StepTerm:
    """The step term of ``config``. Raises ConfigError for an unknown one."""
    name = config.step_term or ("min-form" if config.arm == "score-reward" else "outcome")
    return STEP_TERMS[name] if name in STEP_TERMS else find_function("credit.step_term", name, STEP_TERMS)


# Returns and their advantages ---------------------------------------------------------------------------


def _complete(members: Sequence[Trajectory], by_id: Mapping[str, Critique]) -> list[Critique] | None:
    """The critiques of a group, or None if any score in it is missing."""
    found = [by_id[m.id] for m in members if m.id in by_id and by_id[m.id].valid]
    return found if len(found) == len(members) else None


def _returns(members: Sequence[Trajectory], critiques: Sequence[Critique] | None, config: CreditConfig) -> list[float]:
    returns = [float(m.reward or 0.0) for m in members]
    if critiques is not None:
        lam = config.trajectory_weight
        returns = [(1 - lam) * e + lam * c.trajectory.u for e, c in zip(returns, critiques, strict=True)]
    if config.overlong is not None:
        returns = [r - _overlong(m.num_sampled, *config.overlong) for r, m in zip(returns, members, strict=True)]
    return returns


def _overlong(tokens: int, start: int, end: int) -> float:
    return max(0.0, min(1.0, (tokens - start) / (end - start)))


def _advantages(returns: Mapping[str, Sequence[float]], config: CreditConfig) -> dict[str, list[float]]:
    """Advantages group by group; a group of one has nobody to be compared with, except in the batch."""
    if config.baseline == "batch":
        flat = iter(_relative([r for values in returns.values() for r in values], config.normalize))
        return {name: [next(flat) for _ in values] for name, values in returns.items()}
    advantages = {name: _relative(values, config.normalize) for name, values in returns.items()}
    if config.baseline == "leave-one-out":  # R_i - mean_{j != i} R_j = n / (n - 1) (R_i - mean R)
        return {name: [a * len(v) / max(1, len(v) - 1) for a in v] for name, v in advantages.items()}
    return advantages


def _relative(returns: Sequence[float], normalize: bool) -> list[float]:
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
