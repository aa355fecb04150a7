"""How good a teacher is, in numbers with 95 % intervals: ranking, calibration, finding the first error, agreement.

Nothing here asks a teacher anything: it works on critiques of attempts whose errors are known. Whole questions are
drawn for the intervals (:func:`~ovd_gym.statistics.bootstrap_clusters`), since attempts at one question are alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovd_gym.errors import DataError
from ovd_gym.records import Critique, Record, Score
from ovd_gym.statistics import Estimate, auroc, calibration_error, estimate, spearman, tie_share, weighted_kappa
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.teachers.calibration import Curve, Kind, labelled_scores
from ovd_gym.teachers.first_errors import FirstErrors, halves, measure_first_errors
from ovd_gym.teachers.labelled import Attempt

__all__ = ["Agreement", "FewerSteps", "Measurement", "agreement", "measure"]


class Measurement(Record):
    """What is known of one teacher. None stands where the labels, or the scores, do not allow a number."""

    teacher: str
    privileged: bool
    attempts: int
    auroc: Estimate | None
    """Probability that a right attempt scores above a wrong one; ties count half."""
    pair_accuracy: Estimate | None
    """The same among attempts at the same question, which is what a group-relative learner needs."""
    ties: float | None
    """Share of the pairs of a right and a wrong attempt that get the same score."""
    spearman: Estimate | None
    """Rank correlation of score and outcome."""
    calibration_error: Estimate | None
    """Expected calibration error of the trajectory score on [0, 1], read as the probability of being right."""
    calibrated_error: Estimate | None
    """The same after isotonic calibration, fitted to one half of the questions and measured on the other."""
    step_auroc: Estimate | None
    """Probability that a right step scores above a wrong one; what follows the first wrong step is not labelled."""
    step_ties: float | None
    """Share of the pairs of a right and a wrong step that get the same score."""
    first_errors: FirstErrors | None
    scores: int
    """Scores asked for, of steps and trajectories."""
    invalid: dict[str, float]
    """Share of them without a number, by status."""


class Agreement(Record):
    """How far two series of scores agree, over those where both are numbers."""

    count: int
    spearman: float | None
    """Of the mean scores; None if one series is constant."""
    exact: float
    """Share with the same digit."""
    within_1: float
    """Share with digits at most 1 apart."""
    kappa: float | None
    """Cohen's kappa of the digits with quadratic weights; None if all are the same."""


class FewerSteps(Teacher):
    """The control that every teacher has to beat: the fewer steps so far, the better. It reads nothing."""

    name = "control: fewer steps"

    def score(self, view: View) -> Score:
        """Nine over the number of steps."""
        return Score.of(9 / max(1, len(view.steps)))


def measure(
    attempts: Sequence[Attempt],
    critiques: Sequence[Critique],
    *,
    threshold: float | None = None,
    resamples: int = 1000,
) -> Measurement:
    """What one teacher's ``critiques`` of labelled ``attempts`` are worth (both [N], aligned).

    Args:
        attempts: with their labels. What has no label, or whose score is no number, counts where it can.
        critiques: of one teacher.
        threshold: see :func:`~ovd_gym.teachers.first_errors.measure_first_errors`.
        resamples: draws of each interval.

    Raises:
        DataError: critiques of several teachers, or of other attempts.
    """
    _check(attempts, critiques)
    whole, step = _Labelled.of(attempts, critiques, "trajectory"), _Labelled.of(attempts, critiques, "step")
    scores = [score for critique in critiques for score in (*critique.steps, critique.trajectory)]
    return Measurement(
        teacher=critiques[0].teacher,
        privileged=critiques[0].privileged,
        attempts=len(attempts),
        auroc=whole.auroc(resamples),
        pair_accuracy=_pair_accuracy(whole, resamples),
        ties=_number(tie_share(whole.u, whole.right)),
        spearman=estimate(lambda rows: spearman(whole.u[rows], whole.right[rows]), whole.groups, resamples=resamples),
        calibration_error=_calibration_error(whole, resamples),
        calibrated_error=_calibration_error(_cross_calibrated(whole), resamples),
        step_auroc=step.auroc(resamples),
        step_ties=_number(tie_share(step.u, step.right)),
        first_errors=measure_first_errors(attempts, critiques, threshold, resamples),
        scores=len(scores),
        invalid=_invalid(scores),
    )


def agreement(first: Iterable[Score], second: Iterable[Score]) -> Agreement | None:
    """How far two series of scores of the same views (both [N]) agree; None if they share no pair of numbers."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a.valid and b.valid]
    if not both:
        return None
    digits = np.asarray([(a.value, b.value) for a, b in both], dtype=float)
    means = np.asarray([(a.mean, b.mean) for a, b in both], dtype=float)
    apart = np.abs(digits[:, 0] - digits[:, 1])
    return Agreement(
        count=len(both),
        spearman=_number(spearman(means[:, 0], means[:, 1])),
        exact=float((apart == 0).mean()),
        within_1=float((apart <= 1).mean()),
        kappa=_number(weighted_kappa(digits[:, 0], digits[:, 1])),
    )


class _Labelled(NamedTuple):
    """Everything of one kind that has both a number and a label."""

    u: NDArray[np.float64]
    """[n] scores on [0, 1]."""
    right: NDArray[np.bool_]
    """[n]"""
    groups: Sequence[str]
    """[n] the question each belongs to."""

    @classmethod
    def of(cls, attempts: Sequence[Attempt], critiques: Sequence[Critique], kind: Kind) -> _Labelled:
        rows = list(labelled_scores(attempts, critiques, kind))
        u, right, groups = zip(*rows, strict=True) if rows else ((), (), ())
        return cls(np.asarray(u, dtype=float), np.asarray(right, dtype=bool), groups)

    def auroc(self, resamples: int) -> Estimate | None:
        return estimate(lambda rows: auroc(self.u[rows], self.right[rows]), self.groups, resamples=resamples)


def _pair_accuracy(scored: _Labelled, resamples: int) -> Estimate | None:
    """Of all pairs of a right and a wrong attempt at one question, the share in which the right one scores higher."""
    members: dict[str, list[int]] = {}
    for index, group in enumerate(scored.groups):
        members.setdefault(group, []).append(index)
    won = []  # (points, pairs) of each question
    for found in members.values():
        right = scored.right[found]
        if pairs := int(right.sum()) * int((~right).sum()):
            won.append((auroc(scored.u[found], right) * pairs, pairs))
    if not won:
        return None
    points, pairs_of = np.asarray(won, dtype=float).T
    return estimate(
        lambda rows: float(points[rows].sum() / pairs_of[rows].sum()),
        range(len(won)),
        count=int(pairs_of.sum()),
        resamples=resamples,
    )


def _calibration_error(scored: _Labelled | None, resamples: int) -> Estimate | None:
    if scored is None:
        return None
    u, right = scored.u, scored.right
    return estimate(lambda rows: calibration_error(u[rows], right[rows]), scored.groups, resamples=resamples)


def _cross_calibrated(scored: _Labelled) -> _Labelled | None:
    """The same with probabilities by curves fitted to the other half; None if a half has labels of one kind only."""
    half, out = halves(scored.groups), scored.u.copy()
    for side in (False, True):
        u, right = scored.u[half != side], scored.right[half != side]
        if len(set(right.tolist())) < 2:
            return None
        curve = Curve.fit(u.tolist(), right.tolist())
        out[half == side] = [curve(value) for value in scored.u[half == side]]
    return scored._replace(u=out)


def _check(attempts: Sequence[Attempt], critiques: Sequence[Critique]) -> None:
    if not attempts or len(attempts) != len(critiques):
        raise DataError(f"{len(attempts)} attempts and {len(critiques)} critiques: expected as many, at least one")
    for attempt, critique in zip(attempts, critiques, strict=True):
        if critique.trajectory_id != attempt.id or len(critique.steps) != len(attempt.steps):
            raise DataError(f"the critique of {critique.trajectory_id!r} is not one of attempt {attempt.id!r}")
    if len(teachers := {critique.teacher for critique in critiques}) > 1:
        raise DataError(f"one teacher is measured at a time, got {', '.join(sorted(teachers))}")


def _invalid(scores: Sequence[Score]) -> dict[str, float]:
    counts = Counter(score.status for score in scores if not score.valid)
    return {status: count / len(scores) for status, count in sorted(counts.items())}


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None
