"""Statistics that are reported, and their intervals: shares, means, rankings, calibration, agreement.

Shapes: ``N`` rows. A statistic that has no number on its rows, such as a mean of nothing, is NaN; an
:class:`Estimate` of it is None.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from math import comb, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ovd_gym.errors import ConfigError
from ovd_gym.records import Record

__all__ = [
    "Estimate",
    "auroc",
    "bootstrap_clusters",
    "bootstrap_interval",
    "calibration_error",
    "estimate",
    "pass_at_k",
    "sign_test",
    "spearman",
    "tie_share",
    "weighted_kappa",
    "wilson_interval",
]

_BINS = 10
"""Of equal width, for the calibration error."""


class Estimate(Record):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """What it rests on: labelled scores, pairs, attempts."""


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """The score interval of a share ``successes / trials``.

    Unlike the textbook ``p ± z·sqrt(p(1-p)/n)`` it stays inside [0, 1] and keeps a width at 0 and at 1, where
    a small benchmark often ends up.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).

    >>> [round(bound, 4) for bound in wilson_interval(0, 20)]
    [0.0, 0.1611]
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} successes in {trials} trials: expected 0 <= successes <= trials, trials > 0")
    z = NormalDist().inv_cdf(1 - _tail(confidence))
    share = successes / trials
    shrink = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / shrink
    half = z * sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / shrink
    # The bounds are exactly 0 and 1 at the ends; rounding would leave them a hair inside.
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == trials else centre + half
    return low, high


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of ``values``; the same seed gives the same interval.

    Source: B. Efron and R. Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.

    >>> bootstrap_interval([3.0, 3.0, 3.0])
    (3.0, 3.0)
    """
    if not len(values) or resamples < 1:
        raise ValueError(f"{len(values)} values, {resamples} resamples: expected at least one of each")
    tail = _tail(confidence)
    sample = np.asarray(values, dtype=np.float64)
    if not np.isfinite(sample).all():
        raise ValueError("the values hold a NaN or an infinity: leave out what is missing before asking for a mean")
    rng = np.random.default_rng(seed)
    # One resample at a time: all of them at once would take `resamples` times the memory of the values.
    means = [rng.choice(sample, size=sample.size).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_clusters(
    statistic: Callable[[NDArray[np.intp]], float],
    clusters: Sequence[Hashable],
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of any statistic of rows that come in clusters.

    Whole clusters are drawn: answers to the same question resemble each other, and drawing them one by one would make
    the interval too narrow. With a cluster per row this is the plain bootstrap.

    Args:
        statistic: maps the indices of the rows drawn (a row may come several times) to a number; NaN where it has
            none, such as the share of right ones among no rows. Such draws are left out.
        clusters: [N] the cluster of each row.
        confidence: share of the interval.
        resamples: number of draws.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: no rows, no draws, or no draw on which the statistic is a number.

    Source: A. C. Davison and D. V. Hinkley, "Bootstrap Methods and their Application" (1997), section 3.8.

    >>> bootstrap_clusters(lambda rows: float(rows.size), ["a", "a", "b", "b"], resamples=5)
    (4.0, 4.0)
    """
    if not len(clusters) or resamples < 1:
        raise ValueError(f"{len(clusters)} rows, {resamples} resamples: expected at least one of each")
    tail = _tail(confidence)
    members: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    rows = [np.asarray(found, dtype=np.intp) for found in members.values()]
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(rows), size=len(rows)) for _ in range(resamples))
    values = np.asarray([statistic(np.concatenate([rows[i] for i in draw])) for draw in draws])
    if not (finite := values[np.isfinite(values)]).size:
        raise ValueError(f"the statistic is not a number on any of {resamples} draws")
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def estimate(
    statistic: Callable[[NDArray[np.intp]], float],
    clusters: Sequence[Hashable],
    count: int | None = None,
    resamples: int = 1000,
) -> Estimate | None:
    """``statistic`` of all rows with its interval by :func:`bootstrap_clusters`; None where it is not a number.

    ``count`` is what it rests on, where that is not the number of rows.
    """
    value = statistic(np.arange(len(clusters))) if len(clusters) else float("nan")
    if not np.isfinite(value):
        return None
    low, high = bootstrap_clusters(statistic, clusters, resamples=resamples)
    return Estimate(value=value, low=low, high=high, count=len(clusters) if count is None else count)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The probability that ``k`` of ``samples`` attempts, drawn without return, hold a right one; without bias.

    Source: Chen et al., "Evaluating large language models trained on code", arXiv 2107.03374, equation 1.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"{right} right of {samples} attempts, k = {k}: expected right and k within them, k at least 1"
        )
    return 1 - comb(samples - right, k) / comb(samples, k)


def sign_test(wins: int, losses: int) -> float:
    """The two-sided p-value of a paired comparison that one side wins so often and loses so often; ties are left out.

    With right and wrong answers this is McNemar's test in its exact form. Needs scipy, which is imported here.

    >>> sign_test(1, 0)
    1.0
    """
    try:
        from scipy.stats import binomtest
    except ImportError as error:
        raise ConfigError('comparing two evaluations needs scipy: pip install "ovd-gym[train]"') from error
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


# Ranking, calibration, agreement ---------------------------------------------------------------------------


def auroc(scores: ArrayLike, right: ArrayLike) -> float:
    """The probability that a right one scores above a wrong one, ties counting half (both arguments [N]).

    >>> auroc([3, 1, 2, 1], [True, True, False, False])
    0.625
    """
    labels = np.asarray(right, dtype=bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = _ranks(scores)
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def tie_share(scores: ArrayLike, right: ArrayLike) -> float:
    """The share of the pairs of a right and a wrong one that have the same score (both arguments [N])."""
    labels = np.asarray(right, dtype=bool)
    _, level = np.unique(np.asarray(scores, dtype=float), return_inverse=True)
    pairs = int(labels.sum()) * int((~labels).sum())
    if not pairs:
        return float("nan")
    size = int(level.max()) + 1
    return float(np.bincount(level[labels], minlength=size) @ np.bincount(level[~labels], minlength=size) / pairs)


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """The rank correlation of two series (both [N]), with mean ranks for ties; NaN if one of them is constant."""
    a, b = _ranks(first), _ranks(second)
    if a.size < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def calibration_error(probabilities: ArrayLike, right: ArrayLike) -> float:
    """Expected calibration error: the mean gap, over ten bins of equal width, between promise and outcome ([N] both).

    Source: Guo et al., "On calibration of modern neural networks" (2017), equation 3.
    """
    p, labels = np.asarray(probabilities, dtype=float), np.asarray(right, dtype=float)
    if not p.size:
        return float("nan")
    # Rounded first: thirds and ninths land on the edge of a bin, and must not fall to either side by chance.
    bins = np.minimum(np.floor(np.round(p * _BINS, 9)), _BINS - 1).astype(int)
    return float(np.abs(np.bincount(bins, weights=p - labels)).sum() / p.size)


def weighted_kappa(first: ArrayLike, second: ArrayLike) -> float:
    """Cohen's kappa of two series of numbers (both [N]), with quadratic weights; NaN if both are the same constant.

    Source: J. Cohen, "Weighted kappa", Psychological Bulletin 70 (1968).
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    by_chance = a.var() + b.var() + (a.mean() - b.mean()) ** 2
    return float(1 - np.mean((a - b) ** 2) / by_chance) if by_chance else float("nan")


def _ranks(values: ArrayLike) -> NDArray[np.float64]:
    """[N] ranks from 1 on; equal values share the mean of theirs."""
    _, level, counts = np.unique(np.asarray(values, dtype=float), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[level]


def _tail(confidence: float) -> float:
    """The probability left out on either side."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    return (1 - confidence) / 2
