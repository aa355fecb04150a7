from math import nan

import numpy as np
import pytest

from ovd_gym.statistics import bootstrap_interval, wilson_interval


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
