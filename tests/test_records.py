"""Records: what is stored loads back equal, bit for bit, and what is wrong is refused with its reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ovd_gym.errors import DataError
from ovd_gym.records import Critique, Record, Score, Step, Task, ToolCall, Trajectory, load_jsonl, save_jsonl

TEXT = st.text(max_size=20)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
NATS = st.floats(max_value=0.0, allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
TASKS = st.builds(
    Task,
    id=TEXT,
    question=TEXT,
    answers=st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    metadata=st.dictionaries(TEXT, JSON, max_size=3),
)
CALLS = st.none() | st.builds(ToolCall, name=TEXT, arguments=st.dictionaries(TEXT, JSON, max_size=3))
VALID_SCORES = st.builds(
    Score,
    value=st.integers(0, 9),
    mean=st.floats(0, 9),
    probs=st.none() | st.lists(st.floats(0, 1), min_size=10, max_size=10).map(tuple),
    digit_mass=st.none() | st.floats(0, 1),
    rationale=TEXT,
)
SCORES = VALID_SCORES | st.sampled_from(["timeout", "refused", "malformed", "low_mass", "over_budget", "error"]).map(
    lambda status: Score.invalid(status, "why")  # type: ignore[arg-type]
)
CRITIQUES = st.builds(
    Critique,
    trajectory_id=TEXT,
    teacher=TEXT,
    privileged=st.booleans(),
    steps=st.lists(SCORES, max_size=4).map(tuple),
    trajectory=SCORES,
)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    """Steps of 1-3 sampled tokens, each after 0-3 tokens that were fed."""
    steps: list[Step] = []
    logprobs: list[float] = []
    for _ in range(draw(st.integers(0, 3))):
        logprobs += [0.0] * draw(st.integers(0, 3))
        sampled = draw(
            st.lists(st.floats(max_value=0.0, allow_nan=False, allow_infinity=False), min_size=1, max_size=3)
        )
        steps.append(
            Step(
                text=draw(TEXT),
                start=len(logprobs),
                end=len(logprobs) + len(sampled),
                call=draw(CALLS),
                observation=draw(TEXT),
                error=draw(st.none() | TEXT),
            )
        )
        logprobs += sampled
    failed = draw(st.booleans())
    return Trajectory(
        id=draw(TEXT),
        group_id=draw(TEXT),
        task=draw(TASKS),
        steps=tuple(steps),
        token_ids=tuple(draw(st.lists(st.integers(0, 2**40), min_size=len(logprobs), max_size=len(logprobs)))),
        logprobs=tuple(logprobs),
        reward=None if failed else draw(FINITE),
        answer=draw(st.none() | TEXT),
        status="failed" if failed else draw(st.sampled_from(["terminated", "truncated"])),
        reason=draw(TEXT),
        policy_version=draw(st.integers(0, 10**6)),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(TASKS | CRITIQUES | SCORES | trajectories(), min_size=1, max_size=3))
def test_records_load_back_bit_for_bit(tmp_path: Path, records: list[Record]) -> None:
    for kind in {type(record) for record in records}:
        path = tmp_path / f"{kind.__name__}.jsonl"
        path.unlink(missing_ok=True)
        stored = [record for record in records if type(record) is kind]
        save_jsonl(path, stored)
        loaded = list(load_jsonl(path, kind))
        assert loaded == stored
        assert repr(loaded) == repr(stored)  # tells -0.0 from 0.0, 1 from 1.0 and True


def test_saving_appends_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    save_jsonl(path, [Score.of(1)])
    with path.open("a") as file:
        file.write("\n")
    save_jsonl(path, [Score.of(2)])
    assert [score.value for score in load_jsonl(path, Score)] == [1, 2]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "Invalid JSON"),
        (b'{"value": 12, "mean": 1}', "value: Input should be less than or equal to 9"),
        (b'{"value": 1, "mean": 1, "grade": 1}', "grade: Extra inputs are not permitted"),
        (b'{"value": null, "status": "error", "rationale": "\xff"}', "Invalid JSON"),
        (b'{"value": 1, "mean": NaN}', "mean"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "scores.jsonl"
    save_jsonl(path, [Score.of(1), Score.of(2)])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(DataError, match=rf"scores\.jsonl:3: not a Score: .*{problem}"):
        list(load_jsonl(path, Score))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl: no such file"):
        list(load_jsonl(tmp_path / "absent.jsonl", Task))


def trajectory(**changes: Any) -> Trajectory:
    """Two fed tokens, two sampled ones."""
    values: dict[str, Any] = {
        "id": "t",
        "group_id": "g",
        "task": Task(id="1", question="1 + 1", answers=("2",)),
        "steps": (Step(text="2", start=2, end=4),),
        "token_ids": (5, 6, 7, 8),
        "logprobs": (0.0, 0.0, -1.0, -2.0),
        "reward": 1.0,
        "status": "terminated",
    }
    return Trajectory(**values | changes)


def test_the_mask_is_the_union_of_the_spans() -> None:
    assert trajectory().mask == (False, False, True, True)
    assert trajectory().num_sampled == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"logprobs": (0.0, -1.0)}, "2 logprobs for 4 token ids"),
        ({"logprobs": (-0.5, 0.0, -1.0, -2.0)}, "a token outside every step has a log-probability"),
        ({"logprobs": (0.0, 0.0, 1.0, -2.0)}, "less than or equal to 0"),
        ({"steps": (Step(text="", start=2, end=5),)}, r"step 0 spans \[2, 5\)"),
        ({"steps": (Step(text="", start=2, end=4), Step(text="", start=3, end=4))}, r"step 1 spans \[3, 4\)"),
        ({"reward": None}, "None belongs to 'failed' alone"),
        ({"status": "failed"}, "None belongs to 'failed' alone"),
        ({"reward": float("nan")}, "finite"),
        ({"policy_version": -1}, "greater than or equal to 0"),
    ],
)
def test_a_trajectory_that_does_not_fit_together(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        trajectory(**changes)


@pytest.mark.parametrize(("start", "end"), [(3, 3), (3, 2)])
def test_an_empty_step(start: int, end: int) -> None:
    with pytest.raises(ValidationError, match="at least one sampled token"):
        Step(text="", start=start, end=end)


def test_a_task_needs_an_answer() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        Task(id="1", question="?", answers=())


@pytest.mark.parametrize(
    "fields",
    [
        {"value": None},
        {"value": 3},
        {"value": 3, "mean": 3, "status": "error"},
        {"value": None, "mean": 3, "status": "error"},
        {"value": 10, "mean": 9},
        {"value": 3, "mean": 9.5},
        {"value": 3, "mean": float("nan")},
        {"value": 3, "mean": 3, "probs": (0.1,) * 9},
        {"value": 3, "mean": 3, "probs": (-0.1,) * 10},
        {"value": 3, "mean": 3, "digit_mass": 1.1},
    ],
)
def test_a_score_is_a_number_or_a_status(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Score(**fields)


def test_u_is_the_mean_on_the_unit_interval_and_never_made_up() -> None:
    assert Score.of(4.5).u == 0.5
    assert Score.of(4.5).value == 5
    with pytest.raises(ValueError, match="no number in a score with status 'timeout'"):
        _ = Score.invalid("timeout").u


def test_a_critique_is_valid_when_all_its_scores_are() -> None:
    ok, bad = Score.of(1), Score.invalid("error")
    assert Critique(trajectory_id="t", teacher="x", steps=(ok,), trajectory=ok).valid
    assert not Critique(trajectory_id="t", teacher="x", steps=(bad,), trajectory=ok).valid
    assert not Critique(trajectory_id="t", teacher="x", steps=(ok,), trajectory=bad).valid


def test_records_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Score.of(1), "value", 2)  # noqa: B010  (mypy would refuse the plain form)
