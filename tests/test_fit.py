"""Fitting: what is learned from labels, outcomes and values, and that no held-out question is seen."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ovd_gym.errors import ConfigError, DataError
from ovd_gym.teachers.base import StepText, View
from ovd_gym.teachers.features import AMOUNTS, CHECKS, FEATURES, describe
from ovd_gym.teachers.fit import fit_teacher, split, targets
from ovd_gym.teachers.heads import Strength, probability
from ovd_gym.teachers.labelled import Attempt
from ovd_gym.teachers.logistic import Examples, choose_strength, fit_head, out_of_fold
from ovd_gym.teachers.view_reader import ViewReader


def attempt(number: int, wrong: bool, **more: object) -> Attempt:
    """Two sums, the second of which may be wrong."""
    a, b = number + 11, number + 23
    texts = (f"{a} + {b} = {a + b}.", f"{a + b} + {b} = {a + 2 * b + (7 if wrong else 0)}.")
    fields = {
        "id": f"{number}-{wrong}",
        "question": f"Ann has {a} apples and gets {b} twice. How many?",
        "steps": tuple(StepText(text=text, observation="") for text in texts),
        "answer": str(a + 2 * b + (7 if wrong else 0)),
        "group": str(number),
        "source": "sums",
        "correct": not wrong,
        "first_error": 1 if wrong else -1,
    }
    return Attempt.model_validate(fields | more)


def attempts(count: int) -> list[Attempt]:
    return [attempt(number, wrong) for number in range(count) for wrong in (False, True)]


def views(*texts: str, answer: str | None = None, observation: str = "", question: str = "What is 12 + 30?") -> View:
    steps = tuple(StepText(text=text, observation=observation) for text in texts)
    return View(kind="step", question=question, steps=steps, answer=answer)


# Features -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "view", "expected"),
    [
        ("true equations", views("12 + 30 = 42"), np.log(2)),
        ("false equations", views("12 + 30 = 41"), np.log(2)),
        ("false equations", views("12 + 30 = 41", "42"), 0.0),
        ("numbers from nowhere", views("12 and 17"), 0.5),
        ("numbers from nowhere", views("17", "17 again"), 0.0),
        ("numbers left out", views("take 12"), 0.5),
        ("broken numbers", views("5.5 of 12"), 0.5),
        ("new words", views("add", "add carefully"), 0.5),
        ("no answer", views("12"), 1.0),
        ("long answer", views("12", answer="forty two"), np.log(3)),
        ("answer offered", views("a", answer="Yes"), 1.0),
        ("answer offered", views("a", answer="Bob", question="Is Bob or Ann older?"), 1.0),
        ("answer offered", views("a", answer="Carl", question="Is Bob or Ann older?"), 0.0),
        ("answer read", views("a", answer="Paris", observation="It is in Paris."), 1.0),
        ("answer near the question", views("a", answer="Paris", observation="The tower is in Paris.",
                                           question="Where is the tower?"), 1.0),
        ("words", views("one two", "three four five"), np.log(4)),
        ("steps", views("a", "b"), np.log(3)),
    ],
)  # fmt: skip
def test_features_are_what_their_names_say(name: str, view: View, expected: float) -> None:
    assert describe(view, [name]) == pytest.approx([expected])


@pytest.mark.parametrize("text", ["", "9" * 5000, "1/0 = 3", "\x00\ud7ff<<1=2>>", "SCORE: 9", "x" * 20_000])
def test_every_feature_of_hostile_text_is_a_number(text: str) -> None:
    for kind in ("step", "trajectory"):
        steps = (StepText(text=text, observation=text),)
        view = View.model_validate({"kind": kind, "question": text, "steps": steps, "answer": text})
        assert np.isfinite(describe(view, list(FEATURES))).all()
        assert np.isfinite(describe(view.model_copy(update={"steps": ()}), list(FEATURES))).all()


def test_amounts_are_kept_apart() -> None:
    assert not CHECKS.keys() & AMOUNTS.keys()
    assert {*CHECKS, *AMOUNTS} == set(FEATURES)


# The head -------------------------------------------------------------------------------------------------


def examples(count: int = 400, noise: int = 40, named: int = 2) -> Examples:
    """The first feature decides, the second is its opposite with noise; the rest says nothing."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(count, named + noise)) * 3 + 5
    target = (features[:, 0] + rng.normal(size=count) > 5).astype(float)
    return Examples(features, target, np.asarray([str(i // 2) for i in range(count)]), named)


def test_a_head_finds_what_decides_and_is_calibrated() -> None:
    given = examples()
    head = fit_head(given, Strength(named=1.0, hidden=0.3))
    assert head.weight[0] > 10 * np.abs(head.weight[1:]).max()
    p = out_of_fold(given, Strength(named=1.0, hidden=0.3))
    assert np.isfinite(p).all()
    assert p[p > 0.8].size
    assert given.target[p > 0.8].mean() == pytest.approx(p[p > 0.8].mean(), abs=0.08)


def test_a_strength_of_0_leaves_the_hidden_state_out() -> None:
    head = fit_head(examples(), Strength(named=0.3, hidden=0.0))
    assert (head.weight[2:] == 0).all()
    assert choose_strength(examples()).named == 0.3
    assert choose_strength(examples(noise=0)).hidden == 0.0


def test_hidden_columns_that_decide_are_taken() -> None:
    given = examples()
    turned = Examples(given.features[:, ::-1].copy(), given.target, given.questions, given.named)
    assert choose_strength(turned).hidden > 0


@pytest.mark.parametrize("shares", [(0.25, 0.75, 1.0, 0.0), (0.75, 0.75), (0.1, 0.2, 0.3)])
def test_soft_labels_are_shares(shares: tuple[float, ...]) -> None:
    nothing = np.zeros((len(shares), 1))
    questions = np.asarray([str(i) for i in range(len(shares))])
    head = fit_head(Examples(nothing, np.asarray(shares), questions, 1), Strength(named=1.0, hidden=0.0))
    assert probability(head.log_odds(nothing))[0] == pytest.approx(np.mean(shares), abs=1e-3)


def test_no_question_is_on_both_sides() -> None:
    """Labels that only a question's own number tells cannot be foretold for another question."""
    rng = np.random.default_rng(1)
    coin = rng.integers(2, size=60)
    one_hot = np.repeat(np.eye(60), 3, axis=0)
    given = Examples(one_hot, np.repeat(coin, 3).astype(float), np.repeat(np.arange(60).astype(str), 3), 60)
    p = out_of_fold(given, Strength(named=1.0, hidden=0.0))
    assert np.ptp(p) < 0.2


def test_no_single_feature_decides_alone() -> None:
    head = fit_head(examples(), Strength(named=1.0, hidden=0.3))
    far = np.full((1, 42), 5.0)
    far[0, 0] = 1e9
    assert head.log_odds(far)[0] == pytest.approx(head.bias + 5 * head.weight[0] + 0.0, abs=0.5)


# Targets and splits ---------------------------------------------------------------------------------------


def test_labels_end_with_the_first_error() -> None:
    right, wrong = attempt(0, False), attempt(0, True, first_error=0)
    aims, origin = targets([right, wrong], {})
    assert aims == [(1.0, 1.0, 1.0), (0.0, None, 0.0)]
    assert origin == {"step": "labels", "trajectory": "outcomes"}


def test_without_labels_a_step_is_as_right_as_its_attempt() -> None:
    unlabelled = [attempt(i, wrong, first_error=None) for i in range(2) for wrong in (False, True)]
    aims, origin = targets(unlabelled, {})
    assert aims[:2] == [(1.0, 1.0, 1.0), (0.0, 0.0, 0.0)]
    assert origin["step"] == "outcomes"
    aims, origin = targets(unlabelled, {unlabelled[0].id: (0.25, None)})
    assert aims[:2] == [(0.25, None, 1.0), (None, None, 0.0)]
    assert origin["step"] == "continuations"


def test_a_question_is_fitted_to_or_held_out() -> None:
    fitted, measured = split(attempts(10), 0.3, seed=1)
    assert len(fitted) == 14
    assert len(measured) == 6
    assert not {a.question for a in fitted} & {a.question for a in measured}
    assert split(attempts(10), 0.3, seed=1) == (fitted, measured)
    assert split(attempts(10), 0.3, seed=2)[1] != measured
    fitted, measured = split(attempts(10), attempts(3))
    assert {a.group for a in fitted} == {str(i) for i in range(3, 10)}
    assert measured == attempts(3)
    with pytest.raises(ConfigError, match=r"in \[0, 1\), got 1"):
        split(attempts(10), 1)
    with pytest.raises(DataError, match="none is left"):
        split(attempts(2), attempts(2))


# The teacher ----------------------------------------------------------------------------------------------


def test_a_fitted_teacher_tells_right_from_wrong_on_new_questions() -> None:
    fitted, measured = split(attempts(30), 0.4)
    teacher = fit_teacher(fitted)
    for one in measured:
        *steps, whole = teacher.score_batch(one.views())
        assert all(score.valid for score in (*steps, whole))
        assert (steps[1].u > 0.5) == one.correct
        assert (whole.u > 0.5) == one.correct
        assert steps[0].u > 0.5
    assert teacher.card.threshold is not None
    assert teacher.card.sources[0].attempts == len(fitted)
    assert "false equations" in teacher.score(measured[1].views()[1]).rationale


def test_the_order_of_the_attempts_does_not_matter() -> None:
    mixed = attempts(12)
    first = fit_teacher(mixed)
    random.Random(0).shuffle(mixed)
    second = fit_teacher(mixed)
    for view in attempt(99, True).views():
        assert first.score(view).u == pytest.approx(second.score(view).u, abs=0.05)


def test_labels_of_one_kind_teach_nothing() -> None:
    with pytest.raises(DataError, match="both right and wrong"):
        fit_teacher([attempt(i, False) for i in range(5)])
    outcomes = [attempt(i, wrong, first_error=-1) for i in range(5) for wrong in (False, True)]
    teacher = fit_teacher(outcomes)
    assert teacher.card.labels == {"trajectory": "outcomes"}
    *steps, whole = teacher.score_batch(outcomes[0].views())
    assert whole.valid
    assert {score.status for score in steps} == {"error"}
    assert "fitted without labels for a step" in steps[0].rationale


def test_values_of_steps_are_soft_labels() -> None:
    unlabelled = [attempt(i, wrong, first_error=None) for i in range(12) for wrong in (False, True)]
    values = {a.id: (0.5, 1.0 if a.correct else 0.0) for a in unlabelled}
    teacher = fit_teacher(unlabelled, values=values)
    assert teacher.card.labels["step"] == "continuations"
    assert teacher.card.threshold is None
    good, bad = (teacher.score(attempt(50, wrong).views()[1]).u for wrong in (False, True))
    assert good > 0.6 > 0.4 > bad


def test_a_model_is_read_beside_the_named_features(roomy_folder: Path) -> None:
    done: list[int] = []
    note: Callable[[int], None] = done.append
    teacher = fit_teacher(attempts(10), reader=ViewReader(str(roomy_folder), ("math rules",), "0" * 16), on_batch=note)
    assert done == [16, 20]
    assert teacher.card.reader.startswith(f"{roomy_folder.name}@")
    assert teacher.usage().requests == 20 + 20 + 20
    alone = teacher.score(attempts(1)[0].views()[-1])
    assert alone.mean == pytest.approx(teacher.score_batch(attempts(1)[0].views())[-1].mean, abs=1e-3)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'math rules'"):
        ViewReader(None, ("math rule",), "0" * 16)
    with pytest.raises(ConfigError, match="at least one named feature"):
        ViewReader(None, (), "0" * 16)


def test_likelihoods_are_read_of_what_was_said(roomy_folder: Path) -> None:
    reader = ViewReader(str(roomy_folder), ("math rules",), "0" * 16, "likelihood")
    assert reader.names[0] == "math rules"
    assert len(reader.names) == 4
    step, _, whole = attempts(1)[0].views()
    rows = reader.read([step, whole, whole.model_copy(update={"answer": None})])
    found = [row.tolist() for row in rows if row is not None]
    assert [row[1] < 0 for row in found] == [False, True, True]  # a step's sum would pay for short steps
    assert all(row[3] <= row[2] < 0 for row in found[:2])
    assert max(found[2][1:]) <= -10  # no answer is no likely one
    tokens = len(reader._reader.encode_inert(f" {whole.answer}")) if reader._reader else 0
    assert found[1][1] == pytest.approx(tokens * found[1][2])


def test_an_unknown_reading_is_refused() -> None:
    with pytest.raises(ConfigError, match="likelihood"):
        ViewReader(None, ("math rules",), "0" * 16, "likelihoods")  # type: ignore[arg-type]


def test_one_kind_alone(roomy_folder: Path) -> None:
    reader = ViewReader(str(roomy_folder), ("math rules",), "0" * 16, "likelihood")
    teacher = fit_teacher(attempts(10), reader=reader, kinds=("trajectory",))
    assert teacher.usage().requests == 20
    assert list(teacher.card.labels) == ["trajectory"]
    assert teacher.card.threshold is None
    step, *_, whole = teacher.score_batch(attempts(1)[0].views())
    assert (step.status, whole.status) == ("error", "ok")
    assert "fitted without labels for a step" in (step.rationale or "")
    assert teacher.usage().requests == 21
    with pytest.raises(ConfigError, match="kinds must be"):
        fit_teacher(attempts(3), kinds=())
