"""Held-out episodes, played greedily, with an interval around their accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ovd_gym.players import OnTurn, Players, Round
from ovd_gym.records import Critique, Task, Trajectory
from ovd_gym.rollout import turns_of
from ovd_gym.statistics import auroc, wilson_interval
from ovd_gym.teachers.base import Teacher

__all__ = ["Evaluation", "evaluate", "mean_logprob", "summarize"]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gave."""

    row: dict[str, Any]
    """``step, accuracy, low, high`` (95 % Wilson interval), ``episodes, failed, reward, score, turns``."""
    trajectories: list[Trajectory]
    critiques: list[Critique]


def evaluate(
    tasks: Sequence[Task],
    players: Players,
    *,
    teacher: Teacher | None = None,
    step: int = 0,
    seed: Sequence[int] = (0,),
    on_turn: OnTurn = lambda done, tokens: None,
) -> Evaluation:
    """Ask every task once, greedily. An episode is right when its reward is 1; failed ones are left out and counted."""
    asked = Round(tuple(tasks), tuple(seed), label=f"eval-{step:05d}", policy_version=step, held_out=True)
    trajectories = players.play(asked, on_turn)
    critiques = teacher.critique(trajectories) if teacher else []
    graded = [t for t in trajectories if t.reward is not None]
    right = sum(t.reward == 1.0 for t in graded)
    low, high = wilson_interval(right, len(graded)) if graded else (0.0, 1.0)
    row = {
        "step": step,
        "accuracy": right / len(graded) if graded else None,
        "low": low,
        "high": high,
        "episodes": len(graded),
        **summarize(trajectories, critiques),
    }
    return Evaluation(row, trajectories, critiques)


def summarize(trajectories: Sequence[Trajectory], critiques: Sequence[Critique]) -> dict[str, float | None]:
    """Means over episodes and scores that make up a metrics row; None where there is nothing to average.

    ``reward``, ``em`` (share with reward 1), ``turns``, ``truncated``, ``failed`` (shares), ``helped`` (share that
    read a teacher's feedback), ``score`` (mean trajectory score, 0-9), ``step_score``, ``invalid_share`` (of all
    scores), for each status that occurred ``invalid_timeout`` and the like, ``zero_variance_share`` (of the groups),
    ``correct_logprob`` (:func:`mean_logprob` of right episodes), ``score_auroc`` (the probability that the teacher
    ranks a right episode above a wrong one).
    """
    graded = [t for t in trajectories if t.reward is not None]
    groups: dict[str, list[float]] = {}
    for t in graded:
        groups.setdefault(t.group_id, []).append(t.reward or 0.0)
    scores = [score for c in critiques for score in (*c.steps, c.trajectory)]
    causes = Counter(score.status for score in scores if not score.valid)
    return {
        "reward": _mean(t.reward for t in graded),
        "em": _mean(t.reward == 1.0 for t in graded),
        "turns": _mean(sum(1 for _ in turns_of(t.steps)) for t in trajectories),
        "truncated": _mean(t.status == "truncated" for t in trajectories),
        "failed": _mean(t.status == "failed" for t in trajectories),
        "helped": _mean(any(step.feedback for step in t.steps) for t in trajectories),
        "score": _mean(c.trajectory.mean for c in critiques),
        "step_score": _mean(score.mean for c in critiques for score in c.steps),
        "invalid_share": _mean(not score.valid for score in scores),
        **{f"invalid_{status}": count / len(scores) for status, count in sorted(causes.items())},
        "zero_variance_share": _mean(max(g) == min(g) for g in groups.values() if len(g) > 1),
        "correct_logprob": mean_logprob([t for t in graded if t.reward == 1.0]),
        "score_auroc": _score_auroc(graded, critiques),
    }


def mean_logprob(trajectories: Sequence[Trajectory]) -> float | None:
    """Nats per token that the student sampled; None if it sampled none. A demonstrator's tokens do not count."""
    own = [t.logprobs[s.start : s.end] for t in trajectories for s in t.steps if s.source == "student"]
    tokens = sum(map(len, own))
    return sum(map(sum, own)) / tokens if tokens else None


def _score_auroc(trajectories: Sequence[Trajectory], critiques: Sequence[Critique]) -> float | None:
    right = {t.id: t.reward == 1.0 for t in trajectories}
    pairs = [
        (c.trajectory.u, right[c.trajectory_id]) for c in critiques if c.trajectory.valid and c.trajectory_id in right
    ]
    outcomes = {outcome for _, outcome in pairs}
    return auroc([u for u, _ in pairs], [outcome for _, outcome in pairs]) if len(outcomes) == 2 else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None
