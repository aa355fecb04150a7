"""Signs that a run is going wrong, read from its metrics. Pure: rows in, warnings and a reason to stop out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from ovd_gym.records import Record

__all__ = ["HealthConfig", "reason_to_stop", "warnings_of"]

Row = Mapping[str, Any]


class HealthConfig(Record):
    """When a run has collapsed. It then stops with its last checkpoint in place; 0 switches a limit off."""

    entropy_floor: Annotated[float, Field(ge=0)] = 0.0
    """Nats per token. Below it for ``patience`` steps, while fewer than half of the episodes are right."""
    likelihood_drop: Annotated[float, Field(ge=0)] = 0.0
    """Nats per token by which right trajectories may have become less likely than they were at best, for ``patience``
    steps (the slow collapse of arXiv 2512.04220)."""
    patience: Annotated[int, Field(ge=1)] = 5
    """Training steps."""


def warnings_of(row: Row) -> dict[str, str]:
    """What is worth a look in the metrics of one training step, by the metric's name."""
    limits = (
        ("logprob_gap", 0.1, "sampling and training disagree by {:.2f} nats on a token: check precision and sampling"),
        ("weight_mean_gap", 0.1, "importance weights are {:.2f} from 1 on average: the samples are off-policy"),
        ("kl", 1.0, "the policy is {:.2f} nats per token from its reference"),
        ("clip_fraction", 0.5, "{:.0%} of the tokens are clipped: lower learner.learning_rate or epochs"),
        ("zero_variance_share", 0.9, "{:.0%} of the groups say nothing: the tasks are too easy or too hard"),
        ("out_of_memory", 0, "{:.0f} micro-batches did not fit into memory and were halved: learn with less at a time"),
        ("truncated", 0.9, "{:.0%} of the episodes ran out of turns or tokens"),
    )
    seen = dict(row)
    if row.get("weight_mean") is not None:
        seen["weight_mean_gap"] = abs(row["weight_mean"] - 1)
    return {
        name: f"{name}: " + text.format(seen[name])
        for name, limit, text in limits
        if seen.get(name) is not None and seen[name] > limit
    }


def reason_to_stop(rows: Sequence[Row], config: HealthConfig) -> str | None:
    """Why the run should not go on after ``rows``, its training steps so far; None when it should."""
    recent = rows[-config.patience :]
    if len(recent) < config.patience:
        return None
    floor = config.entropy_floor
    if floor and all(_below(row["entropy"], floor) and (row["em"] or 0.0) < 0.5 for row in recent):
        return f"the entropy has been below {floor} nats per token for {config.patience} steps (health.entropy_floor)"
    known = [row["correct_logprob"] for row in rows if row.get("correct_logprob") is not None]
    drop = config.likelihood_drop
    if drop and all(_below(row.get("correct_logprob"), max(known, default=0.0) - drop) for row in recent):
        return (
            f"right trajectories have been {drop} nats per token less likely than at best for {config.patience} steps "
            "(health.likelihood_drop)"
        )
    return None


def _below(value: float | None, limit: float) -> bool:
    """Whether ``value`` is a number, and below ``limit``."""
    return value is not None and value < limit
