"""Finding the first wrong step by a threshold on step scores, and how often that is right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ovd_gym.records import Critique, Record, Score
from ovd_gym.statistics import Estimate, estimate
from ovd_gym.teachers.labelled import Attempt

__all__ = ["FirstErrors", "best_threshold", "first_error", "halves", "measure_first_errors"]

Hits = NDArray[np.bool_]
_CANDIDATES = 100
"""Thresholds that are tried at most."""


class FirstErrors(Record):
    """How well the first wrong step is found, as ProcessBench defines it (Zheng et al., arXiv 2412.06559)."""

    erroneous: Estimate
    """Share of the attempts with an error in which the predicted step is exactly the first wrong one."""
    error_free: Estimate
    """Share of the attempts without an error in which none is predicted."""
    f1: Estimate
    """Harmonic mean of the two."""
    thresholds: tuple[float, ...]
    """Mean scores below which a step counts as wrong: the given one, or one per half, chosen on the other half."""


def first_error(scores: Sequence[Score], threshold: float) -> int | None:
    """0-based index of the first score whose mean is below ``threshold``; -1 if there is none.

    None if a score before it has no number: then nothing was predicted, which is always counted as wrong.
    """
    for index, score in enumerate(scores):
        if score.mean is None:
            return None
        if score.mean < threshold:
            return index
    return -1


def measure_first_errors(
    attempts: Sequence[Attempt], critiques: Sequence[Critique], threshold: float | None = None, resamples: int = 1000
) -> FirstErrors | None:
    """How well ``critiques`` find the first errors of ``attempts`` (both [N], aligned).

    Args:
        attempts: those whose first error is not labelled are left out.
        critiques: of one teacher.
        threshold: mean score below which a step counts as wrong. None chooses it for each half of the questions on the
            other half, so that it is never chosen on what it is measured on.
        resamples: draws of the intervals.

    Returns:
        None without attempts both with and without an error, in each half if a threshold is to be chosen.
    """
    labelled = [(a, c.steps) for a, c in zip(attempts, critiques, strict=True) if a.first_error is not None]
    truth = np.asarray([a.first_error for a, _ in labelled], dtype=int)
    scores = [steps for _, steps in labelled]
    wrong = truth >= 0
    half = halves(groups := [a.group or a.id for a, _ in labelled])
    if threshold is None and all(len(set(wrong[half == side].tolist())) == 2 for side in (False, True)):
        chosen = [best_threshold(_those(scores, half != side), truth[half != side]) for side in (False, True)]
    elif threshold is not None and len(set(wrong.tolist())) == 2:
        chosen = [threshold, threshold]
    else:
        return None
    hit = _hits(scores, [chosen[int(side)] for side in half], truth)
    shares = (
        estimate(lambda rows: _share(hit[rows][wrong[rows]]), groups, int(wrong.sum()), resamples),
        estimate(lambda rows: _share(hit[rows][~wrong[rows]]), groups, int((~wrong).sum()), resamples),
        estimate(lambda rows: _f1(hit[rows], wrong[rows]), groups, len(groups), resamples),
    )
    erroneous, error_free, f1 = shares
    assert erroneous is not None
    assert error_free is not None
    assert f1 is not None
    return FirstErrors(erroneous=erroneous, error_free=error_free, f1=f1, thresholds=tuple(dict.fromkeys(chosen)))


def halves(groups: Sequence[str]) -> Hits:
    """[N] a fixed random split of the questions in two."""
    names = sorted(set(groups))
    second = set(np.random.default_rng(0).permutation(names)[: len(names) // 2].tolist())
    return np.asarray([group in second for group in groups], dtype=bool)


def best_threshold(scores: Sequence[Sequence[Score]], truth: NDArray[np.int_]) -> float:
    """The threshold of the highest F1, the lowest of equals, among the scores that occur and one above them."""
    means = np.unique([score.mean for steps in scores for score in steps if score.mean is not None])
    if not means.size:
        return 0.0
    levels = np.append(means, means[-1] + 1e-6)
    tried = levels[np.unique(np.linspace(0, levels.size - 1, _CANDIDATES).round().astype(int))]
    wrong = truth >= 0

    def quality(threshold: float) -> float:
        return _f1(_hits(scores, [threshold] * len(scores), truth), wrong)

    return float(max(tried.tolist(), key=quality))


def _hits(scores: Sequence[Sequence[Score]], thresholds: Sequence[float], truth: NDArray[np.int_]) -> Hits:
    rows = zip(scores, thresholds, truth.tolist(), strict=True)
    return np.asarray([first_error(steps, threshold) == true for steps, threshold, true in rows], dtype=bool)


def _those(items: Sequence[Sequence[Score]], chosen: Hits) -> list[Sequence[Score]]:
    return [item for item, take in zip(items, chosen, strict=True) if take]


def _share(hits: Hits) -> float:
    return float(hits.mean()) if hits.size else float("nan")


def _f1(hit: Hits, wrong: Hits) -> float:
    erroneous, error_free = _share(hit[wrong]), _share(hit[~wrong])
    total = erroneous + error_free
    return 2 * erroneous * error_free / total if total else total
