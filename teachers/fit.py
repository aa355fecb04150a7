"""Fitting a teacher to attempts whose errors are known, or to what the environment says of them.

Nothing of a held-out question is seen: not by the heads, not by the choice of their regularisation, not by the
threshold below which a step counts as wrong.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np

from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Score
from ovd_gym.teachers.calibration import Kind
from ovd_gym.teachers.features import CHECKS
from ovd_gym.teachers.first_errors import best_threshold
from ovd_gym.teachers.fitted import FittedCard, FittedTeacher, Labels, Source
from ovd_gym.teachers.heads import Floats, Head, Strength
from ovd_gym.teachers.labelled import Attempt
from ovd_gym.teachers.logistic import Examples, choose_strength, fit_head, out_of_fold
from ovd_gym.teachers.prompting import draw_nonce
from ovd_gym.teachers.view_reader import ViewReader

__all__ = ["Targets", "fit_teacher", "split", "targets"]

Targets = tuple[float | None, ...]
"""[T + 1] how right each step, and last the attempt, is on [0, 1]; None where that is not known."""

_BATCH = 16
"""Attempts read at once."""


def fit_teacher(
    attempts: Sequence[Attempt],
    reader: ViewReader | None = None,
    *,
    kinds: Sequence[Kind] = ("step", "trajectory"),
    values: Mapping[str, Sequence[float | None]] | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
) -> FittedTeacher:
    """Fit a teacher to ``attempts``.

    Args:
        attempts: labelled ones, or episodes with their outcomes. Keep some apart to measure on (:func:`split`).
        reader: what is read of a view; without, what a program can check.
        kinds: what to judge; views of other kinds are not read, and the teacher has no score for them.
        values: how right the steps of an attempt are, by attempt id: those of :func:`~ovd_gym.values.step_values`.
        on_batch: called with the number of attempts read.

    Raises:
        DataError: nothing to tell apart: all steps and all answers are right, or wrong, or unknown.
        ConfigError: no kind, or an unknown one.
    """
    if not kinds or not set(kinds) <= {"step", "trajectory"}:
        raise ConfigError(f"kinds must be 'step', 'trajectory' or both, got {list(kinds)}")
    reader = reader or ViewReader(None, tuple(CHECKS), draw_nonce(0))
    aims, labels = targets(attempts, values or {})
    labels = {kind: origin for kind, origin in labels.items() if kind in kinds}
    rows = list(_rows(attempts, aims, kinds, reader, on_batch))
    heads: dict[Kind, Head] = {}
    strength: dict[Kind, Strength] = {}
    threshold = None
    for kind, origin in labels.items():
        chosen = [row for row in rows if row.kind == kind]
        examples = _examples(chosen, len(reader.names))
        if examples.has_both:
            strength[kind] = choose_strength(examples)
            heads[kind] = fit_head(examples, strength[kind])
            if kind == "step" and origin == "labels":
                threshold = _threshold(attempts, chosen, out_of_fold(examples, strength[kind]))
    if not heads:
        raise DataError(f"{len(attempts)} attempts to fit to, but neither steps nor answers are both right and wrong")
    card = FittedCard(
        model=reader.model,
        reads=reader.reads,
        reader=reader.reader,
        prompts=reader.prompts,
        nonce=reader.nonce,
        features=reader.features,
        labels={kind: labels[kind] for kind in heads},
        strength=strength,
        threshold=threshold,
        sources=_sources(attempts),
        versions=_versions(),
    )
    return FittedTeacher.of(card, heads, reader)


def split(
    attempts: Sequence[Attempt], held_out: float | Sequence[Attempt], seed: int = 0
) -> tuple[list[Attempt], list[Attempt]]:
    """(attempts to fit to, attempts to measure on): no question is in both.

    Raises:
        ConfigError: a share outside [0, 1). DataError: nothing is left to fit to.
    """
    if isinstance(held_out, float | int):
        if not 0 <= held_out < 1:
            raise ConfigError(f"the held-out share of the questions must be in [0, 1), got {held_out}")
        questions = sorted({attempt.question for attempt in attempts})
        order = np.random.default_rng(seed).permutation(len(questions))
        kept_out = {questions[i] for i in order[: round(held_out * len(questions))]}
        measured = [attempt for attempt in attempts if attempt.question in kept_out]
    else:
        measured = list(held_out)
        kept_out = {attempt.question for attempt in measured}
    fitted = [attempt for attempt in attempts if attempt.question not in kept_out]
    if not fitted:
        raise DataError(f"of {len(attempts)} attempts none is left to fit to: all of their questions are held out")
    return fitted, measured


def targets(
    attempts: Sequence[Attempt], values: Mapping[str, Sequence[float | None]]
) -> tuple[list[Targets], dict[Kind, Labels]]:
    """What to fit to, aligned with ``attempts``, and where it comes from.

    A step is as right as its value, where ``values`` has one, and else as its label says. If no attempt has either,
    every step is as right as its attempt turned out: one sample of its value.
    """
    labels: Labels = "continuations" if values else "labels"
    steps = [tuple(values.get(attempt.id, attempt.step_labels)) for attempt in attempts]
    if all(value is None for each in steps for value in each):
        labels = "outcomes"
        steps = [(attempt.correct,) * len(attempt.steps) for attempt in attempts]
    outcome: Labels = "outcomes"
    aims = [
        tuple(None if value is None else float(value) for value in (*each, attempt.correct))
        for each, attempt in zip(steps, attempts, strict=True)
    ]
    return aims, {"step": labels, "trajectory": outcome}


class _Row(NamedTuple):
    """One view that was read."""

    attempt: int
    kind: Kind
    features: Floats
    target: float
    question: str


def _rows(
    attempts: Sequence[Attempt],
    aims: Sequence[Targets],
    kinds: Sequence[Kind],
    reader: ViewReader,
    on_batch: Callable[[int], None],
) -> Iterator[_Row]:
    """The views of these kinds whose target is known, read."""
    for first in range(0, len(attempts), _BATCH):
        batch = range(first, min(first + _BATCH, len(attempts)))
        asked = [
            (i, view, aim)
            for i in batch
            for view, aim in zip(attempts[i].views(), aims[i], strict=True)
            if aim is not None and view.kind in kinds
        ]
        for (i, view, aim), row in zip(asked, reader.read([view for _, view, _ in asked]), strict=True):
            if row is not None:
                yield _Row(i, view.kind, row, aim, attempts[i].question)
        on_batch(batch.stop)


def _examples(rows: Sequence[_Row], named: int) -> Examples:
    return Examples(
        features=np.asarray([row.features for row in rows], dtype=np.float64),
        target=np.asarray([row.target for row in rows], dtype=np.float64),
        questions=np.asarray([row.question for row in rows], dtype=np.str_),
        named=named,
    )


def _threshold(attempts: Sequence[Attempt], rows: Sequence[_Row], p: Floats) -> float | None:
    """The threshold that finds the first errors of ``attempts`` best; ``p`` [N] is unseen probabilities of ``rows``."""
    scores: dict[int, list[Score]] = defaultdict(list)
    for row, right in zip(rows, p.tolist(), strict=True):
        scores[row.attempt].append(Score.invalid("error") if np.isnan(right) else Score.of(9 * right))
    truth = {i: attempts[i].first_error for i in scores}
    known = [i for i, first in truth.items() if first is not None]
    if len({truth[i] == -1 for i in known}) < 2:
        return None
    return best_threshold([scores[i] for i in known], np.asarray([truth[i] for i in known], dtype=int))


def _sources(attempts: Iterable[Attempt]) -> tuple[Source, ...]:
    digests: dict[str, Any] = defaultdict(hashlib.sha256)
    counts: Counter[str] = Counter()
    for attempt in attempts:
        digests[attempt.source].update(attempt.model_dump_json().encode())
        counts[attempt.source] += 1
    return tuple(
        Source(name=name, attempts=counts[name], sha256=digests[name].hexdigest()[:12]) for name in sorted(counts)
    )


def _versions() -> dict[str, str]:
    libraries = ("ovd-gym", "torch", "transformers", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in libraries}}
