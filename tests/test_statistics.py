from math import isnan, nan

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from ovd_gym.statistics import (
    auroc,
    bootstrap_clusters,
    bootstrap_interval,
    calibration_error,
    estimate,
    spearman,
    tie_share,
    weighted_kappa,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # R. G. Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_mirrors_successes_and_failures() -> None:
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))


def test_wilson_ends_exactly_at_zero_and_one() -> None:
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0


def test_wilson_widens_with_confidence_and_narrows_with_trials() -> None:
    def width(successes: int, trials: int, confidence: float) -> float:
        low, high = wilson_interval(successes, trials, confidence)
        return high - low

    assert width(5, 10, 0.8) < width(5, 10, 0.95) < width(5, 10, 0.99)
    assert width(500, 1000, 0.95) < width(50, 100, 0.95) < width(5, 10, 0.95)


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_counts_that_cannot_be(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes <= trials"):
        wilson_interval(successes, trials)


def test_bootstrap_of_two_values_is_worked_by_hand() -> None:
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], confidence=0.4) == (0.5, 0.5)  # quantiles 0.3 and 0.7
    assert bootstrap_interval([0.0, 1.0], confidence=0.95) == (0.0, 1.0)  # quantiles 0.025 and 0.975


def test_bootstrap_agrees_with_the_normal_interval_on_many_values() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    half = 1.96 * values.std() / 20
    expected = (values.mean() - half, values.mean() + half)
    assert bootstrap_interval(values.tolist()) == pytest.approx(expected, abs=0.02)


def test_bootstrap_is_fixed_by_its_seed_alone() -> None:
    values = [0.0, 0.3, 1.0, 0.7, 0.2]
    np.random.seed(3)
    first = bootstrap_interval(values, seed=5)
    np.random.seed(4)
    assert bootstrap_interval(values, seed=5) == first
    assert bootstrap_interval(values, seed=6) != first


def test_bootstrap_refuses_nothing_and_nan() -> None:
    with pytest.raises(ValueError, match="0 values"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="NaN"):
        bootstrap_interval([1.0, nan])


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        wilson_interval(1, 2, confidence)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        bootstrap_interval([1.0], confidence)


# Ranking, calibration, agreement ---------------------------------------------------------------------------


def noisy(seed: int, size: int = 60) -> tuple[list[float], list[bool]]:
    """Scores with many ties, and labels that lean their way."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, size).astype(float)
    return scores.tolist(), (scores + rng.normal(0, 3, size) > 3).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_ranking_agrees_with_scipy(seed: int) -> None:
    scores, right = noisy(seed)
    ones = [score for score, label in zip(scores, right, strict=True) if label]
    zeros = [score for score, label in zip(scores, right, strict=True) if not label]
    assert auroc(scores, right) == pytest.approx(stats.mannwhitneyu(ones, zeros).statistic / (len(ones) * len(zeros)))
    assert spearman(scores, right) == pytest.approx(stats.spearmanr(scores, right).statistic)
    assert tie_share(scores, right) == pytest.approx(np.mean([a == b for a in ones for b in zeros]))


def test_ranking_by_hand() -> None:
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1.0
    assert auroc([4, 3, 2, 1], [False, False, True, True]) == 0.0
    assert auroc([5, 5, 5], [True, False, False]) == 0.5
    assert tie_share([5, 5, 1], [True, False, False]) == 0.5
    assert spearman([1, 2, 3], [10, 30, 20]) == pytest.approx(0.5)


def test_what_has_no_number_is_nan() -> None:
    assert isnan(auroc([1, 2], [True, True]))
    assert isnan(tie_share([], []))
    assert isnan(spearman([1, 1], [1, 2]))
    assert isnan(spearman([1], [1]))
    assert isnan(calibration_error([], []))
    assert isnan(weighted_kappa([4, 4], [4, 4]))


def test_calibration_error_by_hand() -> None:
    # Bin 0.2-0.3: promise 0.25, outcome 0.5. Bin 0.9-1: promise 0.95, outcome 1.
    p, right = [0.25, 0.25, 0.9, 1.0], [True, False, True, True]
    assert calibration_error(p, right) == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)
    assert calibration_error([0.0, 1.0], [False, True]) == 0.0
    assert calibration_error([1.0, 0.0], [False, True]) == 1.0
    third = [3 * 0.1, 0.3]  # 0.30000000000000004 and 0.3 belong to one bin
    assert calibration_error(third, [True, False]) == pytest.approx(0.2)


def test_weighted_kappa_by_the_table() -> None:
    first, second = [0, 2, 5, 9, 9, 3], [1, 2, 5, 7, 9, 0]
    observed = np.mean([(a - b) ** 2 for a, b in zip(first, second, strict=True)])
    by_chance = np.mean([(a - b) ** 2 for a in first for b in second])
    assert weighted_kappa(first, second) == pytest.approx(1 - observed / by_chance)
    assert weighted_kappa(first, first) == 1.0


# Clusters --------------------------------------------------------------------------------------------------


def test_clusters_are_drawn_whole() -> None:
    seen: list[list[int]] = []

    def statistic(rows: NDArray[np.intp]) -> float:
        seen.append(sorted(rows.tolist()))
        return float(rows.size)

    bootstrap_clusters(statistic, ["a", "b", "a", "b"], resamples=50)
    assert {tuple(rows) for rows in seen} == {(0, 0, 2, 2), (0, 1, 2, 3), (1, 1, 3, 3)}


def test_copies_of_a_row_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(0).normal(size=40)
    copies = np.repeat(values, 10)

    def width(low_high: tuple[float, float]) -> float:
        return low_high[1] - low_high[0]

    alone = width(bootstrap_clusters(lambda rows: float(values[rows].mean()), range(40)))
    honest = width(bootstrap_clusters(lambda rows: float(copies[rows].mean()), np.repeat(range(40), 10).tolist()))
    naive = width(bootstrap_clusters(lambda rows: float(copies[rows].mean()), range(400)))
    assert honest == pytest.approx(alone)
    assert naive < alone / 2


def test_draws_without_a_number_are_left_out() -> None:
    right = np.asarray([True, False])
    assert bootstrap_clusters(lambda rows: auroc(rows, right[rows]), ["a", "b"], resamples=50) == (0.0, 0.0)
    with pytest.raises(ValueError, match="not a number on any of 3 draws"):
        bootstrap_clusters(lambda rows: nan, ["a"], resamples=3)
    with pytest.raises(ValueError, match="0 rows"):
        bootstrap_clusters(lambda rows: 1.0, [])


def test_an_estimate_holds_its_value_and_none_stands_for_nothing() -> None:
    values = np.asarray([1.0, 2.0, 3.0])
    found = estimate(lambda rows: float(values[rows].mean()), range(3))
    assert found is not None
    assert (found.value, found.count) == (2.0, 3)
    assert 1.0 <= found.low < 2.0 < found.high <= 3.0
    assert estimate(lambda rows: 1.0, []) is None
    assert estimate(lambda rows: nan, [1]) is None
