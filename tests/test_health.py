"""Warnings and reasons to stop, on made-up metrics."""

from __future__ import annotations

from typing import Any

import pytest

from ovd_gym.health import HealthConfig, reason_to_stop, warnings_of


def row(**values: Any) -> dict[str, Any]:
    return {"entropy": 0.5, "em": 0.2, "correct_logprob": -0.3, **values}


@pytest.mark.parametrize(
    ("name", "bad", "fine"),
    [("logprob_gap", 0.5, 1e-4), ("kl", 2.0, 0.1), ("clip_fraction", 0.6, 0.1), ("zero_variance_share", 1.0, 0.5)],
)
def test_a_metric_beyond_its_limit_is_named(name: str, bad: float, fine: float) -> None:
    assert list(warnings_of(row(**{name: bad}))) == [name]
    assert warnings_of(row(**{name: fine})) == {}
    assert warnings_of(row(**{name: None})) == {}


def test_off_policy_samples_are_named() -> None:
    assert "off-policy" in warnings_of(row(weight_mean=0.7))["weight_mean_gap"]


def test_a_collapse_of_entropy_stops_unless_the_task_is_solved() -> None:
    config = HealthConfig(entropy_floor=0.1, patience=3)
    low = [row(entropy=0.01)] * 3
    assert "health.entropy_floor" in (reason_to_stop(low, config) or "")
    assert reason_to_stop(low[:2], config) is None
    assert reason_to_stop([*low[:2], row()], config) is None
    assert reason_to_stop([*low[:2], row(entropy=None)], config) is None  # nothing was sampled
    assert reason_to_stop([row(entropy=0.01, em=0.9)] * 3, config) is None
    assert reason_to_stop(low, HealthConfig()) is None


def test_a_collapse_of_likelihood_stops() -> None:
    config = HealthConfig(likelihood_drop=0.5, patience=2)
    rows = [row(), row(correct_logprob=-0.9), row(correct_logprob=-1.0)]
    assert "health.likelihood_drop" in (reason_to_stop(rows, config) or "")
    assert reason_to_stop([*rows[:2], row(correct_logprob=None)], config) is None
    assert reason_to_stop([row(), row(), row(correct_logprob=-1.0)], config) is None
