"""Calibration: from a teacher's score to the probability of being right, learned on attempts whose errors are known.

A teacher may rank well and still say 8 of 9 where half of the attempts are wrong. An isotonic curve, the non-decreasing
function closest to the labels, mends that without changing the ranking (Zadrozny and Elkan, "Transforming classifier
scores into accurate multiclass probability estimates", KDD 2002). Steps and trajectories have a curve each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from scipy.optimize import isotonic_regression

from ovd_gym.errors import ConfigError, DataError
from ovd_gym.llm.choice import Usage
from ovd_gym.records import Critique, Probability, Record, Score, first_problem
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.teachers.labelled import Attempt
from ovd_gym.teachers.registry import make_teacher

__all__ = ["CalibratedTeacher", "Calibration", "Curve", "Kind", "fit_calibration", "labelled_scores"]

Kind = Literal["step", "trajectory"]
Unit = Annotated[float, Field(ge=0, le=1)]


class Curve(Record):
    """A non-decreasing function from [0, 1] to [0, 1]: straight between its knots, constant beyond them."""

    u: tuple[Unit, ...]
    """[K] scores on [0, 1], ascending."""
    p: tuple[Probability, ...]
    """[K] the probability of being right at each."""
    count: int
    """Labelled scores it was fitted to."""

    @model_validator(mode="after")
    def _monotone(self) -> Self:
        if len(self.u) != len(self.p) or not self.u:
            raise ValueError(f"{len(self.u)} scores and {len(self.p)} probabilities: expected as many, at least one")
        if any(np.diff(self.u) <= 0) or any(np.diff(self.p) < 0):
            raise ValueError("the curve must ascend")
        return self

    @classmethod
    def fit(cls, u: Sequence[float], right: Sequence[bool]) -> Curve:
        """The isotonic least-squares fit to ``right``, labels of the scores ``u`` (both [N]).

        Raises:
            DataError: labels of one kind only; nothing can be learned from them.
        """
        if len(set(map(bool, right))) < 2:
            raise DataError(f"a calibration needs right and wrong ones, got {len(right)} labels of one kind")
        knots, where, counts = np.unique(np.asarray(u, dtype=float), return_inverse=True, return_counts=True)
        shares = np.bincount(where, weights=np.asarray(right, dtype=float)) / counts
        fitted = np.clip(isotonic_regression(shares, weights=counts).x, 0.0, 1.0)
        return cls(u=tuple(knots.tolist()), p=tuple(fitted.tolist()), count=len(right))

    def __call__(self, u: float) -> float:
        """The probability of being right at score ``u`` in [0, 1]."""
        return float(np.interp(u, self.u, self.p))


class Calibration(Record):
    """The curves of one teacher, as stored in a JSON file."""

    teacher: str
    """``name`` of the teacher; the curves hold for no other."""
    privileged: bool = False
    sources: tuple[str, ...] = ()
    """Of the attempts it was fitted to. Measure on others."""
    step: Curve | None = None
    trajectory: Curve | None = None
    """None where no labels of that kind were given."""

    def apply(self, score: Score, kind: Kind) -> Score:
        """``score`` with nine times the probability of being right as its mean.

        Without a number it stays as it is, and so it does where there is no curve for ``kind``. The distribution over
        digits is dropped: it is not the calibrated one.
        """
        curve = self.step if kind == "step" else self.trajectory
        if curve is None or not score.valid:
            return score
        mean = 9 * min(1.0, curve(score.u))
        return Score(value=int(mean + 0.5), mean=mean, digit_mass=score.digit_mass, rationale=score.rationale)

    def save(self, path: str | Path) -> None:
        """Write the file that :meth:`load` reads."""
        try:
            Path(path).write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise DataError(f"cannot write the calibration {path}: {error.strerror}") from None

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """The calibration stored at ``path``. Raises DataError for a missing or damaged file."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise DataError(f"cannot read the calibration {path}: {error.strerror}") from None
        except ValidationError as error:
            raise DataError(f"{path} is no calibration: {first_problem(error)}") from None


def fit_calibration(attempts: Sequence[Attempt], critiques: Sequence[Critique]) -> Calibration:
    """A calibration from one teacher's ``critiques`` of labelled ``attempts`` (both [N], aligned).

    Only valid scores of what is labelled count. A kind without right and wrong labels gets no curve.

    Raises:
        DataError: no kind has both, or the critiques are of several teachers.
    """
    teachers = {(critique.teacher, critique.privileged) for critique in critiques}
    if len(teachers) != 1:
        raise DataError(f"a calibration is of one teacher, got {sorted(teachers)}")
    curves = {}
    for kind in ("step", "trajectory"):
        pairs = list(labelled_scores(attempts, critiques, kind))
        if len({right for _, right, _ in pairs}) == 2:
            curves[kind] = Curve.fit([u for u, _, _ in pairs], [right for _, right, _ in pairs])
    if not curves:
        raise DataError("nothing to calibrate on: neither steps nor answers have both right and wrong labels")
    ((teacher, privileged),) = teachers
    sources = tuple(sorted({attempt.source for attempt in attempts}))
    return Calibration(teacher=teacher, privileged=privileged, sources=sources, **curves)


def labelled_scores(
    attempts: Sequence[Attempt], critiques: Sequence[Critique], kind: Kind
) -> Iterator[tuple[float, bool, str]]:
    """(score on [0, 1], whether what it is of is right, group) of every valid score with a label."""
    for attempt, critique in zip(attempts, critiques, strict=True):
        steps = kind == "step"
        scores = critique.steps if steps else (critique.trajectory,)
        labels = attempt.step_labels if steps else (attempt.correct,)
        for score, label in zip(scores, labels, strict=True):
            if score.valid and label is not None:
                yield score.u, label, attempt.group or attempt.id


class CalibratedTeacher(Teacher):
    """Another teacher's scores as probabilities of being right: the mean score is ``9 * p``. The ranking stays.

    Args:
        teacher: the teacher; anything that :func:`~ovd_gym.teachers.registry.make_teacher` takes.
        calibration: a file of :meth:`Calibration.save`, made for that teacher.

    Raises:
        ConfigError: the calibration was made for another teacher. DataError: it cannot be read.
    """

    def __init__(self, teacher: str | Teacher | Mapping[str, Any], calibration: str | Path) -> None:
        self._teacher = make_teacher(teacher)
        self._calibration = Calibration.load(calibration)
        mine = (self._teacher.name, self._teacher.privileged)
        made_for = (self._calibration.teacher, self._calibration.privileged)
        if mine != made_for:
            raise ConfigError(
                f"the calibration {calibration} was made for teacher {_shown(*made_for)}, not for {_shown(*mine)}: "
                "make one for this teacher with `ovd-gym critique --calibrate`"
            )
        digest = hashlib.sha256(self._calibration.model_dump_json().encode()).hexdigest()[:8]
        self.name = f"calibrated({self._teacher.name}, {digest})"
        self.privileged = self._teacher.privileged
        self.explains = self._teacher.explains
        self.relative = self._teacher.relative

    def seed(self, seed: int) -> None:  # noqa: D102
        self._teacher.seed(seed)

    def usage(self) -> Usage:  # noqa: D102
        return self._teacher.usage()

    def score(self, view: View) -> Score:
        """The calibrated score of ``view``."""
        return self.score_batch([view])[0]

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Calibrated scores aligned with ``views``."""
        scores = self._teacher.score_batch(views)
        return [self._calibration.apply(score, view.kind) for score, view in zip(scores, views, strict=True)]


def _shown(name: str, privileged: bool) -> str:
    return f"{name!r}{' (privileged)' if privileged else ''}"
