"""Scores on disk: asked once, found again, shared by processes, and never a wrong one out of a damaged file."""

from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Score
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.cache import Cached, asking_anew
from ovd_gym.teachers.combine import Ensemble, Fallback
from ovd_gym.teachers.registry import make_teacher


class Counting(Teacher):
    """A digit from the length of the text; fails on "bad"; remembers what it was asked."""

    def __init__(self, name: str = "counting") -> None:
        self.name = name
        self.asked: list[list[str]] = []

    def score(self, view: View) -> Score:
        return self.score_batch([view])[0]

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        self.asked.append([view.attempt for view in views])
        return [
            Score.invalid("timeout", "slow") if view.attempt == "bad" else Score.of(len(view.attempt) / 7, "length")
            for view in views
        ]


def view(text: str, **more: Any) -> View:
    return View(kind="trajectory", question="q", steps=(StepText(text=text, observation=""),), **more)


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    first = Cached(Counting(), tmp_path / "scores.sqlite")
    views = [view("a"), view("bcd"), view("a")]
    scores = first.judge(views)
    assert first.teacher.asked == [["a", "bcd"]]  # type: ignore[attr-defined]
    assert (first.hits, first.misses) == (1, 2)
    again = Cached(Counting(), tmp_path / "scores.sqlite")
    assert again.judge(views) == scores == Counting().judge(views)
    assert again.teacher.asked == []  # type: ignore[attr-defined]
    assert (again.hits, again.misses) == (3, 0)
    assert again.name == "counting"
    assert [file.name for file in tmp_path.iterdir()] == ["scores.sqlite"]


def test_failures_are_asked_for_again(tmp_path: Path) -> None:
    cached = Cached(counting := Counting(), tmp_path / "scores")
    assert cached.judge([view("bad"), view("a")])[0].status == "timeout"
    assert counting.asked == [["bad", "a"], ["bad"]]
    cached.judge([view("bad"), view("a")])
    assert counting.asked[2:] == [["bad"], ["bad"]]


def test_a_score_belongs_to_its_teacher_its_seed_and_its_view(tmp_path: Path) -> None:
    def asked(name: str = "counting", seed: int | None = None, **more: Any) -> bool:
        cached = Cached(counting := Counting(name), tmp_path / "scores")
        if seed is not None:
            cached.seed(seed)
        cached.judge([view("a", **more)])
        return bool(counting.asked)

    different: list[dict[str, Any]] = [{}, {"name": "other"}, {"seed": 1}, {"seed": 2}, {"answer": "4"}]
    assert [asked(**each) for each in different] == [True] * 5
    assert [asked(**each) for each in different] == [False] * 5
    assert not asked(group="another group")


def test_gold_answers_are_part_of_what_a_privileged_teacher_saw(tmp_path: Path) -> None:
    counting = Counting()
    counting.privileged = True
    cached = Cached(counting, tmp_path / "scores")
    assert cached.privileged
    for gold in ("4", "5", "4"):
        cached.judge([view("a", gold=(gold,))])
    assert len(counting.asked) == 2


def test_chunks_are_kept_as_they_come(tmp_path: Path) -> None:
    class Dying(Counting):
        def judge(self, views: Sequence[View]) -> list[Score]:
            if views[0].attempt == "dies":
                raise KeyboardInterrupt
            return super().judge(views)

    views = [view("a"), view("bc"), view("dies"), view("d")]
    with pytest.raises(KeyboardInterrupt):
        Cached(Dying(), tmp_path / "scores", chunk=1).judge(views)
    after = Cached(Counting(), tmp_path / "scores", chunk=2)
    after.judge(views)
    assert after.teacher.asked == [["dies", "d"]]  # type: ignore[attr-defined]


def test_what_is_measured_anew_is_neither_read_nor_kept(tmp_path: Path) -> None:
    cached = Cached(counting := Counting(), tmp_path / "scores")
    for _ in range(2):
        with asking_anew():
            Ensemble([cached, Counting()]).judge([view("a")])
    assert len(counting.asked) == 2
    cached.judge([view("a")])
    cached.judge([view("a")])
    assert len(counting.asked) == 3


def test_neither_attempts_nor_seeds_stand_in_the_file(tmp_path: Path) -> None:
    cached = Cached(Counting(), tmp_path / "scores")
    cached.seed(918273645)
    cached.judge([view("private words")])
    data = (tmp_path / "scores").read_bytes()
    assert b"length" in data  # the rationale
    assert b"private words" not in data
    assert b"918273645" not in data


def _ask(path: Path) -> int:
    cached = Cached("math-rules", path)
    cached.judge([view(str(i)) for i in range(50)])
    cached.judge([view(str(i)) for i in range(50)])
    return cached.hits


def test_several_processes_share_a_file(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        hits = pool.map(_ask, [tmp_path / "scores"] * 3, chunksize=1)
    assert all(count >= 50 for count in hits)
    assert _ask(tmp_path / "scores") == 100
    with sqlite3.connect(tmp_path / "scores") as database:
        assert database.execute("SELECT count(*) FROM scores").fetchone() == (50,)
    database.close()


def test_a_damaged_file_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    path.write_bytes(b"this is no database, but long enough to be taken for one" * 100)
    with pytest.raises(DataError, match=r"cannot be used \(file is not a database\): delete it, or name another file"):
        Cached("math-rules", path)
    path.unlink()
    Cached("math-rules", path).judge([view(str(i)) for i in range(2000)])
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 20_000] = b"\xff" * 20_000
    path.write_bytes(data)
    with pytest.raises(DataError, match="delete it, or name another file"):
        Cached("math-rules", path)


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE photos (x)")
    database.commit()
    database.close()
    before = path.read_bytes()
    with pytest.raises(DataError, match="is a database, but no cache of scores"):
        Cached("math-rules", path)
    assert path.read_bytes() == before


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be used"):
        Cached("math-rules", tmp_path)


def test_a_kept_score_that_is_none_is_an_error_not_a_number(tmp_path: Path) -> None:
    cached = Cached(Counting(), tmp_path / "scores")
    cached.judge([view("a")])
    database = sqlite3.connect(tmp_path / "scores")
    database.execute("UPDATE scores SET score = '{\"value\": 99}'")
    database.commit()
    database.close()
    (score,) = cached.judge([view("a")])
    assert score.status == "error"
    assert "score cache" in score.rationale


def test_scores_that_cannot_be_kept_are_given_all_the_same(tmp_path: Path) -> None:
    cached = Cached(Counting(), tmp_path / "scores")
    database = sqlite3.connect(tmp_path / "scores")
    database.execute("CREATE TRIGGER full BEFORE INSERT ON scores BEGIN SELECT RAISE(ABORT, 'disk full'); END")
    database.commit()
    database.close()
    with pytest.warns(RuntimeWarning, match="1 scores not kept: disk full"):
        assert cached.judge([view("a")])[0].valid


def test_what_cannot_be_cached(tmp_path: Path) -> None:
    relative = Fallback(["math-rules", "search-rules"])
    with pytest.raises(ConfigError, match=r"cached\.teacher: scores of fallback.* depend on the group"):
        Cached(relative, tmp_path / "scores")
    with pytest.raises(ConfigError, match=r"cached\.chunk must be at least 1, got 0"):
        Cached("math-rules", tmp_path / "scores", chunk=0)
    with pytest.raises(ConfigError, match=r"^cached\.teacher: unknown teacher 'math'"):
        make_teacher({"name": "cached", "teacher": "math", "path": str(tmp_path / "scores")})
    assert list(tmp_path.iterdir()) == []
