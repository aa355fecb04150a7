"""What a fitted teacher computes: the log-odds of being right, linear in standardised features.

Shapes: ``N`` views, ``F`` features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ovd_gym.records import Record

__all__ = ["REACH", "Floats", "Head", "Strength", "probability"]

Floats = NDArray[np.float64]

REACH = 5.0
"""Standard deviations beyond which a feature says no more: no single one decides alone, however odd the text."""


class Strength(Record):
    """How far weights may go: standard deviations of a normal prior on them, for standardised features."""

    named: float
    """Of the weight of each named feature."""
    hidden: float
    """Of what the whole hidden state adds to the log-odds; 0 leaves it out."""


@dataclass(frozen=True)
class Head:
    """Logistic regression on standardised features."""

    mean: Floats
    """[F]"""
    scale: Floats
    """[F] positive"""
    weight: Floats
    """[F]"""
    bias: float

    def contributions(self, features_NF: Floats) -> Floats:
        """[N, F] what every feature adds to the log-odds of being right, against an average view."""
        return self.weight * np.clip((features_NF - self.mean) / self.scale, -REACH, REACH)

    def log_odds(self, features_NF: Floats) -> Floats:
        """[N] log-odds of being right."""
        return np.asarray(self.contributions(features_NF).sum(axis=1) + self.bias)

    def tensors(self, kind: str) -> dict[str, Floats]:
        """As they are stored."""
        arrays = {"mean": self.mean, "scale": self.scale, "weight": self.weight, "bias": np.asarray([self.bias])}
        return {f"{kind}.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}

    @classmethod
    def of(cls, tensors: Mapping[str, Floats], kind: str) -> Self:
        """The head stored for ``kind``. Raises KeyError or ValueError for tensors that are none."""
        mean, scale, weight, bias = (tensors[f"{kind}.{name}"] for name in ("mean", "scale", "weight", "bias"))
        if not mean.shape == scale.shape == weight.shape or mean.ndim != 1 or bias.shape != (1,):
            raise ValueError(
                f"the head for {kind} has shapes {mean.shape}, {scale.shape}, {weight.shape}, {bias.shape}"
            )
        if not all(np.isfinite(array).all() for array in (mean, scale, weight, bias)) or not (scale > 0).all():
            raise ValueError(f"the head for {kind} holds numbers that are none, or a scale of 0")
        return cls(mean, scale, weight, float(bias[0]))


def probability(log_odds: Floats) -> Floats:
    """The probabilities with these log-odds."""
    return np.asarray(0.5 * (1 + np.tanh(log_odds / 2)))
