"""What is said of a teacher: hand-worked numbers, controls that have to come out as they must, missing scores."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from ovd_gym.critique import score_attempts
from ovd_gym.errors import DataError
from ovd_gym.records import Critique, Score
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.first_errors import first_error, halves, measure_first_errors
from ovd_gym.teachers.labelled import Attempt, load_attempts
from ovd_gym.teachers.measure import FewerSteps, agreement, measure

RUNS = Path(__file__).parents[1] / "../shared/data/critic/search_trajectories_hotpotqa.jsonl.gz"
TIMEOUT = Score.invalid("timeout", "too slow")


def attempt(
    name: str, correct: bool | None = None, *, group: str = "", first: int | None = None, steps: int = 2
) -> Attempt:
    texts = tuple(StepText(text=f"step {k}", observation="") for k in range(steps))
    return Attempt(id=name, question="?", steps=texts, group=group or name, correct=correct, first_error=first)


def critique(of: Attempt, whole: float | Score, *steps: float | Score) -> Critique:
    scores = [
        score if isinstance(score, Score) else Score.of(score) for score in (whole, *(steps or (5,) * len(of.steps)))
    ]
    return Critique(trajectory_id=of.id, teacher="t", steps=tuple(scores[1:]), trajectory=scores[0])


def test_ranking_by_hand() -> None:
    # Pairs of a right and a wrong one: 9-9, 9-1, 4-9, 4-1: half a point, one, none, one. At one question: 9-9 and 4-1.
    rows = [(9, True, "a"), (9, False, "a"), (4, True, "b"), (1, False, "b")]
    attempts = [attempt(str(i), right, group=group) for i, (_, right, group) in enumerate(rows)]
    found = measure(attempts, [critique(a, row[0]) for a, row in zip(attempts, rows, strict=True)])
    assert found.auroc is not None
    assert found.pair_accuracy is not None
    assert found.calibration_error is not None
    assert (found.auroc.value, found.auroc.count, found.ties) == (2.5 / 4, 4, 0.25)
    assert (found.pair_accuracy.value, found.pair_accuracy.count) == (1.5 / 2, 2)
    # Bins: 1/9 wrong, 4/9 right, twice 1 of which one is right.
    assert found.calibration_error.value == pytest.approx((1 / 9 + 5 / 9 + 2 * 0.5) / 4)
    assert (found.step_auroc, found.first_errors, found.invalid) == (None, None, {})


def test_steps_after_the_first_error_do_not_count() -> None:
    attempts = [attempt("a", first=1, steps=3), attempt("b", first=-1, steps=1)]
    found = measure(attempts, [critique(attempts[0], 5, 8, 2, 0), critique(attempts[1], 5, 3)])
    assert found.step_auroc is not None
    assert (found.step_auroc.value, found.step_auroc.count, found.step_ties) == (1.0, 3, 0.0)
    assert found.auroc is None


@pytest.mark.parametrize(
    ("scores", "predicted"),
    [([8, 2, 1], 1), ([8, 8], -1), ([], -1), ([5, 4.99], 1), ([TIMEOUT, 1], None), ([8, 2, TIMEOUT], 1)],
)
def test_the_first_error_is_the_first_score_below_the_threshold(
    scores: list[float | Score], predicted: int | None
) -> None:
    assert first_error([s if isinstance(s, Score) else Score.of(s) for s in scores], 5) == predicted


def test_first_errors_as_processbench_counts_them() -> None:
    attempts = [
        attempt("found", first=1),
        attempt("too early", first=1),
        attempt("missed", first=0),
        attempt("no prediction", first=1),
        attempt("clean", first=-1),
        attempt("false alarm", first=-1),
        attempt("not labelled"),
    ]
    scores: list[tuple[float | Score, float | Score]] = [(8, 2), (2, 8), (8, 8), (TIMEOUT, 2), (8, 8), (8, 2), (8, 2)]
    critiques = [critique(a, 5, *pair) for a, pair in zip(attempts, scores, strict=True)]
    found = measure_first_errors(attempts, critiques, threshold=5)
    assert found is not None
    assert (found.erroneous.value, found.erroneous.count) == (1 / 4, 4)
    assert (found.error_free.value, found.error_free.count) == (1 / 2, 2)
    assert found.f1.value == pytest.approx(2 * (1 / 4) * (1 / 2) / (1 / 4 + 1 / 2))
    assert found.thresholds == (5,)


def test_the_threshold_comes_from_the_other_half() -> None:
    """Each half of the questions has a perfect threshold that is of no use for the other half."""
    names = [str(i) for i in range(40)]
    second = dict(zip(names, halves(names), strict=True))
    attempts = [attempt(name, first=1 if int(name) % 2 else -1) for name in names]
    low, high = (2, 1), (8, 7)  # (right step, wrong step)
    critiques = []
    for a in attempts:
        right, wrong = high if second[a.id] else low
        critiques.append(critique(a, 5, right, wrong if a.first_error == 1 else right))
    found = measure_first_errors(attempts, critiques)
    assert found is not None
    assert found.thresholds == (8, 2)
    assert found.f1.value == 0
    assert measure_first_errors(attempts, critiques, threshold=8) != found


def test_a_missing_score_counts_as_missing_and_as_nothing_else() -> None:
    attempts = [attempt("a", True), attempt("b", False), attempt("c", True)]
    critiques = [critique(attempts[0], 9), critique(attempts[1], 0), critique(attempts[2], TIMEOUT, 5, TIMEOUT)]
    found = measure(attempts, critiques)
    assert found.auroc is not None
    assert (found.auroc.value, found.auroc.count) == (1.0, 2)
    assert found.scores == 9
    assert found.invalid == {"timeout": 2 / 9}


def test_without_labels_nothing_is_claimed() -> None:
    found = measure([attempt("a")], [critique(attempt("a"), TIMEOUT, TIMEOUT, TIMEOUT)])
    claims = found.model_dump(exclude={"teacher", "privileged", "attempts", "scores", "invalid"})
    assert set(claims.values()) == {None}


def test_calibration_is_measured_on_the_other_half() -> None:
    """Scores of 8 of 9 where half are right: badly calibrated, mended by a curve from the other half."""
    rng = np.random.default_rng(1)
    attempts = [attempt(str(i), bool(rng.random() < 0.5)) for i in range(400)]
    found = measure(attempts, [critique(a, 8 if a.correct else 7.9) for a in attempts])
    assert found.calibration_error is not None
    assert found.calibrated_error is not None
    assert found.calibration_error.value > 0.35
    assert found.calibrated_error.value < 0.01


def test_agreement_by_hand() -> None:
    first = [Score.of(9), Score.of(5), Score.of(0), TIMEOUT, Score.of(3)]
    second = [Score.of(9), Score.of(6), Score.of(4), Score.of(1), TIMEOUT]
    found = agreement(first, second)
    assert found is not None
    assert (found.count, found.exact, found.within_1, found.spearman) == (3, 1 / 3, 2 / 3, 1.0)
    chance = np.mean([(a - b) ** 2 for a, b in product((9, 5, 0), (9, 6, 4))])
    assert found.kappa == pytest.approx(1 - (0 + 1 + 16) / 3 / chance)
    assert agreement([TIMEOUT], [Score.of(1)]) is None
    same = agreement([Score.of(4)] * 2, [Score.of(4)] * 2)
    assert same is not None
    assert (same.exact, same.spearman, same.kappa) == (1.0, None, None)


def test_critiques_of_something_else_are_refused() -> None:
    a, b = attempt("a", True), attempt("b", False)
    with pytest.raises(DataError, match="'b' is not one of attempt 'a'"):
        measure([a], [critique(b, 5)])
    with pytest.raises(DataError, match="one teacher is measured at a time, got t, u"):
        measure([a, b], [critique(a, 5), critique(b, 5).model_copy(update={"teacher": "u"})])
    with pytest.raises(DataError, match="0 attempts"):
        measure([], [])


class Constant(Teacher):
    """Says the same of everything."""

    def score(self, view: View) -> Score:
        return Score.of(6)


@pytest.mark.skipif(not RUNS.is_file(), reason="needs ../shared/data/critic, labelled search runs")
def test_controls_come_out_as_they_must_on_real_runs() -> None:
    attempts = load_attempts(RUNS)
    constant = measure(attempts, score_attempts(Constant(), attempts), resamples=20)
    assert constant.auroc is not None
    assert (constant.auroc.value, constant.auroc.low, constant.auroc.high, constant.ties) == (0.5, 0.5, 0.5, 1.0)
    assert constant.spearman is None
    shorter = measure(attempts, score_attempts(FewerSteps(), attempts), resamples=20)
    right = [len(a.steps) for a in attempts if a.correct]
    wrong = [len(a.steps) for a in attempts if not a.correct]
    by_hand = sum((r < w) + 0.5 * (r == w) for r in right for w in wrong) / (len(right) * len(wrong))
    assert shorter.auroc is not None
    assert shorter.auroc.value == pytest.approx(by_hand)
    assert shorter.auroc.value == pytest.approx(0.597, abs=0.001)
