"""Calibrated teachers: probabilities that hold, the ranking kept, a file for one teacher only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_gym.critique import score_attempts
from ovd_gym.errors import ConfigError, DataError, TeacherError
from ovd_gym.records import Score
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.calibration import Calibration, Curve, fit_calibration
from ovd_gym.teachers.labelled import Attempt
from ovd_gym.teachers.registry import make_teacher


class Reader(Teacher):
    """Reads its score off the last step's text."""

    name = "reader"
    explains = True

    def score(self, view: View) -> Score:
        text = view.steps[-1].text
        if text == "late":
            raise TeacherError("too slow", status="timeout")
        return Score.of(float(text), "as written")


def attempt(name: str, score: str, correct: bool, first: int | None = None) -> Attempt:
    steps = (StepText(text=score, observation=""),)
    return Attempt(id=name, question="?", steps=steps, correct=correct, first_error=first, source="s")


ATTEMPTS = [attempt(f"{n}", score, right) for n, (score, right) in enumerate([("9", True), ("9", False), ("2", False)])]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    fit_calibration(ATTEMPTS, score_attempts(Reader(), ATTEMPTS)).save(tmp_path / "reader.json")
    return tmp_path / "reader.json"


def test_isotonic_by_hand() -> None:
    # Shares right at 0.1, 0.4, 0.6, 0.9: 0, 1, 1/2, 1; the second and third are pooled: 2/3 of three.
    curve = Curve.fit([0.1, 0.4, 0.6, 0.6, 0.9], [False, True, True, False, True])
    assert curve.u == (0.1, 0.4, 0.6, 0.9)
    assert curve.p == pytest.approx((0, 2 / 3, 2 / 3, 1))
    assert [curve(u) for u in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=30), probes=st.lists(st.floats(0, 1))
)
def test_a_curve_never_turns_a_ranking_round(pairs: list[tuple[float, bool]], probes: list[float]) -> None:
    labels = [right for _, right in pairs]
    if len(set(labels)) < 2:
        with pytest.raises(DataError, match="right and wrong ones"):
            Curve.fit([u for u, _ in pairs], labels)
        return
    curve = Curve.fit([u for u, _ in pairs], labels)
    values = [curve(u) for u in sorted(probes)]
    assert all(0 <= value <= 1 for value in values)
    assert all(np.diff(values) >= 0)
    assert np.mean([curve(u) for u, _ in pairs]) == pytest.approx(np.mean(labels))


def test_a_calibrated_teacher_says_nine_times_the_probability(file: Path) -> None:
    teacher = make_teacher("calibrated", teacher=Reader(), calibration=file)
    critiques = score_attempts(teacher, ATTEMPTS)
    assert [critique.trajectory.mean for critique in critiques] == [4.5, 4.5, 0.0]
    assert critiques[0].trajectory.value == 5
    assert critiques[0].trajectory.rationale == "as written"
    assert [critique.steps[0].mean for critique in critiques] == [9, 9, 2]  # there were no step labels to learn from
    assert teacher.name.startswith("calibrated(reader, ")
    assert (teacher.privileged, teacher.explains) == (False, True)


def test_steps_and_trajectories_have_curves_of_their_own() -> None:
    rows = [attempt("a", "9", True, 0), attempt("b", "2", False, -1)]
    found = fit_calibration(rows, score_attempts(Reader(), rows))
    assert found.trajectory is not None
    assert found.step is not None
    assert (found.trajectory.p, found.step.p) == ((0, 1), (0.5, 0.5))
    assert (found.apply(Score.of(9), "trajectory").mean, found.apply(Score.of(9), "step").mean) == (9, 4.5)
    assert (found.sources, found.step.count) == (("s",), 2)


def test_a_missing_score_stays_missing(file: Path) -> None:
    teacher = make_teacher("calibrated", teacher=Reader(), calibration=file)
    (critique,) = score_attempts(teacher, [attempt("x", "late", True)])
    assert (critique.trajectory.status, critique.trajectory.rationale) == ("timeout", "too slow")


def test_a_distribution_is_dropped_and_its_mass_kept() -> None:
    probs = (0.0,) * 9 + (1.0,)
    calibration = Calibration(teacher="t", trajectory=Curve.fit([0.0, 1.0], [False, True]))
    score = calibration.apply(Score(value=9, mean=9, probs=probs, digit_mass=0.8), "trajectory")
    assert (score.mean, score.probs, score.digit_mass) == (9, None, 0.8)


def test_a_file_for_another_teacher_is_refused(file: Path) -> None:
    with pytest.raises(ConfigError, match="made for teacher 'reader', not for 'math-rules'"):
        make_teacher("calibrated", teacher="math-rules", calibration=file)
    knowing = Reader()
    knowing.privileged = True
    with pytest.raises(ConfigError, match=r"not for 'reader' \(privileged\)"):
        make_teacher("calibrated", teacher=knowing, calibration=file)


def test_the_name_changes_with_the_curves(tmp_path: Path, file: Path) -> None:
    other = Calibration(teacher="reader", trajectory=Curve.fit([0.0, 1.0], [False, True]))
    other.save(tmp_path / "other.json")
    names = {
        make_teacher("calibrated", teacher=Reader(), calibration=path).name for path in (file, tmp_path / "other.json")
    }
    assert len(names) == 2


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is no calibration"),
        ('{"teacher": "reader", "step": {"u": [0, 1], "p": [1, 0], "count": 2}}', "must ascend"),
        ('{"teacher": "reader", "step": {"u": [0, 1], "p": [1], "count": 2}}', "2 scores and 1 probabilities"),
        ('{"teacher": "reader", "step": {"u": [0, 2], "p": [0, 1], "count": 2}}', "step.u.1"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(DataError, match=problem):
        make_teacher("calibrated", teacher=Reader(), calibration=tmp_path / "bad.json")
    with pytest.raises(DataError, match="cannot read"):
        Calibration.load(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot write"):
        Calibration(teacher="t").save(tmp_path / "none/there.json")


def test_what_cannot_be_learned_from() -> None:
    right = [attempt("a", "9", True)]
    with pytest.raises(DataError, match="nothing to calibrate on"):
        fit_calibration(right, score_attempts(Reader(), right))
    with pytest.raises(DataError, match="of one teacher, got"):
        fit_calibration([], [])
