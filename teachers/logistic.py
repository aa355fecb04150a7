"""Logistic regression for fitted teachers: two kinds of features, soft labels, and no question on both sides.

Named features and hidden state are regularised apart: hundreds of hidden columns would drown a dozen that can be read.
Both strengths are chosen by cross-validation.

Shapes: ``N`` examples, ``F`` features, of which the first ``named`` have names.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from ovd_gym.teachers.heads import REACH, Floats, Head, Strength, probability

__all__ = ["Examples", "choose_strength", "fit_head", "out_of_fold"]

Rows = NDArray[np.intp]

_FOLDS = 5
_NAMED = (0.03, 0.1, 0.3)
_HIDDEN = (0.0, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Examples:
    """What a head is fitted to."""

    features: Floats
    """[N, F]"""
    target: Floats
    """[N] the probability of being right, on [0, 1]."""
    questions: NDArray[np.str_]
    """[N] which question each is about."""
    named: int
    """Features with names."""

    @property
    def has_both(self) -> bool:
        """Whether there is something to tell apart."""
        return bool(len(self.target)) and float(self.target.max()) > 0.5 > float(self.target.min())

    def of(self, rows: Rows) -> Examples:
        """Those at ``rows``."""
        return Examples(self.features[rows], self.target[rows], self.questions[rows], self.named)


def fit_head(examples: Examples, strength: Strength) -> Head:
    """The head of highest likelihood under a normal prior on its weights.

    Raises:
        ValueError: examples that are all right, or all wrong.
    """
    mean, scale = examples.features.mean(axis=0), examples.features.std(axis=0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    prior = _prior(examples, strength)
    inputs = np.clip((examples.features - mean) / scale, -REACH, REACH) * prior
    # A soft label is both labels, each with its weight.
    rows = np.concatenate([inputs, inputs])
    labels = np.repeat([1, 0], len(inputs))
    weights = np.concatenate([examples.target, 1 - examples.target])
    kept = weights > 0
    model = LogisticRegression(C=1.0, max_iter=2000)
    model.fit(rows[kept], labels[kept], sample_weight=weights[kept])
    return Head(mean, scale, model.coef_[0] * prior, float(model.intercept_[0]))


def choose_strength(examples: Examples) -> Strength:
    """The strength with the highest likelihood on questions that were left out."""
    hidden = _HIDDEN if examples.features.shape[1] > examples.named else (0.0,)
    tried = [Strength(named=n, hidden=h) for n, h in itertools.product(_NAMED, hidden)]
    if not list(_folds(examples)):
        return tried[0]
    return min(tried, key=lambda strength: _loss(examples, strength))


def out_of_fold(examples: Examples, strength: Strength) -> Floats:
    """[N] probability of being right, each by a head that has not seen its question; NaN where there is none."""
    found = np.full(len(examples.target), np.nan)
    for seen, unseen in _folds(examples):
        head = fit_head(examples.of(seen), strength)
        found[unseen] = probability(head.log_odds(examples.features[unseen]))
    return found


def _prior(examples: Examples, strength: Strength) -> Floats:
    """[F] standard deviation of each weight before anything is seen."""
    hidden = examples.features.shape[1] - examples.named
    return np.repeat([strength.named, strength.hidden / np.sqrt(max(1, hidden))], [examples.named, hidden])


def _loss(examples: Examples, strength: Strength) -> float:
    """Mean cross-entropy on unseen questions, in nats."""
    p = out_of_fold(examples, strength)
    known = np.isfinite(p)
    p, target = np.clip(p[known], 1e-6, 1 - 1e-6), examples.target[known]
    return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())


def _folds(examples: Examples) -> Iterator[tuple[Rows, Rows]]:
    """(seen, unseen) rows, by questions; only where there is something to learn from what is seen."""
    count = min(_FOLDS, len(set(examples.questions.tolist())))
    if count < 2:
        return
    for seen, unseen in GroupKFold(count).split(examples.features, groups=examples.questions):
        if examples.of(seen).has_both:
            yield seen, unseen
