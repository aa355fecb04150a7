"""Promise against outcome: how often episodes are right, by the score that their teacher gave. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from ovd_gym.records import Score
from ovd_gym.statistics import auroc, calibration_error, spearman, wilson_interval

__all__ = ["reliability"]


def reliability(judged: Sequence[tuple[Score, float]]) -> dict[str, Any] | None:
    """What the scores of whole trajectories were worth, as JSON; None where none is a number.

    ``judged`` are scores, each with the reward of its episode.

    ``bins`` holds, for each digit that was given, its mean score on [0, 1], the share of its episodes that are right
    (reward 1), that share's 95 % Wilson interval, and their number. ``auroc``, ``spearman`` and ``ece`` are None where
    they have no number; ``invalid`` counts the scores that are missing.
    """
    pairs = [(score.value, score.u, reward == 1.0) for score, reward in judged if score.value is not None]
    if not pairs:
        return None
    u, right = [promise for _, promise, _ in pairs], [outcome for _, _, outcome in pairs]
    return {
        "bins": [
            _bin(digit, [pair for pair in pairs if pair[0] == digit]) for digit in sorted({d for d, _, _ in pairs})
        ],
        "count": len(pairs),
        "invalid": len(judged) - len(pairs),
        "auroc": _known(auroc(u, right)),
        "spearman": _known(spearman(u, right)),
        "ece": _known(calibration_error(u, right)),
    }


def _bin(digit: int, pairs: Sequence[tuple[int, float, bool]]) -> dict[str, Any]:
    right = sum(outcome for _, _, outcome in pairs)
    low, high = wilson_interval(right, len(pairs))
    return {
        "digit": digit,
        "promise": sum(u for _, u, _ in pairs) / len(pairs),
        "share": right / len(pairs),
        "low": low,
        "high": high,
        "count": len(pairs),
    }


def _known(value: float) -> float | None:
    return value if isfinite(value) else None
