"""Intervals for the numbers that are reported: a share of successes, and a mean of anything."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

__all__ = ["bootstrap_interval", "wilson_interval"]


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


def _tail(confidence: float) -> float:
    """The probability left out on either side."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {confidence}")
    return (1 - confidence) / 2
