"""Labelled attempts: every schema is read, gold answers stay hidden, what has no label gets none."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.errors import DataError
from ovd_gym.records import Step, Task, ToolCall, Trajectory, save_jsonl
from ovd_gym.teachers.base import step_view, trajectory_view
from ovd_gym.teachers.labelled import SCHEMAS, Attempt, load_attempts, sample_groups

DATA = Path(__file__).parents[1] / "../shared/data/critic"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data/critic, labelled attempts")

ROWS: dict[str, dict[str, Any]] = {
    "ProcessBench": {
        "id": "pb-1",
        "subset": "gsm8k",
        "problem": "1 + 1 + 1?",
        "generator": "small",
        "steps": ["1 + 1 = 2.", "2 + 1 = 4.", r"So \boxed{4}."],
        "first_error": 1,
        "final_answer_correct": False,
    },
    "MR-Ben": {
        "id": "mr-1",
        "subject": "college_math",
        "problem": "Which is even?",
        "options": "A: 1\nB: 2",
        "gold": "B",
        "generator": "small",
        "steps": ["Step 1: 2 is even.", "Solution: Choice_B"],
        "first_error": -1,
        "solution_correct": True,
        "error_reason": "",
    },
    "BIG-Bench Mistake": {
        "id": "bbm-1",
        "task": "word_sorting",
        "input": "b a",
        "steps": ["b comes first.", "So b a."],
        "target": "a b",
        "answer": "b a",
        "first_error": 0,
    },
    "GSM8K solutions": {
        "id": "gsm-1",
        "problem": "2 + 2?",
        "gold": "2 + 2 = <<2+2=4>>4\nA: 4",
        "model": "6b",
        "solution": "2 + 2 = 4\n\nA: 4",
        "is_correct": True,
    },
    "search runs": {
        "id": "run-1",
        "dataset": "hotpotqa",
        "model": "large",
        "question": "Who wrote Dracula?",
        "gold": "Bram Stoker",
        "em": True,
        "turns": [
            {"role": "assistant", "content": "Thought: look it up.\nAction: Search[Dracula author]"},
            {"role": "tool", "content": "Observation: Dracula is a novel by Bram Stoker."},
            {"role": "assistant", "content": "Thought: hm\nAction: lookup[Stoker]"},
            {"role": "tool", "content": "Observation: (Result 1 / 1) Bram Stoker."},
            {"role": "assistant", "content": "I have no action to offer."},
            {"role": "tool", "content": "Invalid Action."},
            {"role": "assistant", "content": "Thought: So.\nAction: Finish[Bram Stoker]"},
            {"role": "tool", "content": "Episode finished"},
        ],
    },
}


def write(path: Path, *rows: Any) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def attempts(tmp_path: Path) -> dict[str, Attempt]:
    """One attempt of each schema, out of one file."""
    return dict(zip(ROWS, load_attempts(write(tmp_path / "all.jsonl.gz", *ROWS.values())), strict=True))


def test_every_schema_has_a_row_here() -> None:
    assert set(ROWS) == set(SCHEMAS)


def test_written_solutions(attempts: dict[str, Attempt]) -> None:
    found = attempts["ProcessBench"]
    assert (found.answer, found.correct, found.first_error) == ("4", False, 1)
    assert (found.source, found.model, found.gold) == ("processbench/gsm8k", "small", ())
    assert found.step_labels == (True, False, None)
    assert attempts["MR-Ben"].question == "Which is even?\nA: 1\nB: 2"
    assert (attempts["MR-Ben"].answer, attempts["MR-Ben"].step_labels) == ("Choice_B", (True, True))
    assert (attempts["BIG-Bench Mistake"].correct, attempts["BIG-Bench Mistake"].gold) == (False, ("a b",))
    solution = attempts["GSM8K solutions"]
    assert [step.text for step in solution.steps] == ["2 + 2 = 4", "A: 4"]
    assert (solution.answer, solution.gold, solution.step_labels) == ("4", ("4",), (None, None))


def test_a_search_run_is_read_as_the_search_environment_would_have_recorded_it(attempts: dict[str, Attempt]) -> None:
    run = attempts["search runs"]
    assert [(step.tool, step.arguments) for step in run.steps] == [
        ("search", {"query": "Dracula author"}),
        ("find", {"text": "Stoker"}),
        (None, {}),
        ("answer", {"text": "Bram Stoker"}),
    ]
    assert "novel by Bram Stoker" in run.steps[0].observation
    assert (run.answer, run.correct, run.source) == ("Bram Stoker", True, "search-runs/hotpotqa")


def test_views_show_nothing_that_comes_later_and_no_gold(attempts: dict[str, Attempt]) -> None:
    for attempt in attempts.values():
        *steps, whole = attempt.views()
        assert [len(view.steps) for view in steps] == list(range(1, len(attempt.steps) + 1))
        assert all(view.answer is None for view in steps[:-1])
        assert (steps[-1].answer, whole.answer) == (attempt.answer, attempt.answer)
        assert (whole.kind, {view.kind for view in steps}) == ("trajectory", {"step"})
        assert all(view.gold is None and view.group == attempt.group for view in (*steps, whole))


def test_only_a_privileged_teacher_sees_gold_and_none_is_made_up(attempts: dict[str, Attempt]) -> None:
    assert {view.gold for view in attempts["MR-Ben"].views(privileged=True)} == {("B",)}
    with pytest.raises(DataError, match="'pb-1' has no gold answer"):
        attempts["ProcessBench"].views(privileged=True)


def episode(name: str, reward: float | None) -> Trajectory:
    return Trajectory(
        id=name,
        group_id="g",
        task=Task(id="t", question="Who?", answers=("Ann",)),
        steps=(
            Step(text="look", start=0, end=1, call=ToolCall(name="search", arguments={"query": "x"}), observation="y"),
            Step(text="Ann", start=1, end=2, observation="Error: no call"),
        ),
        token_ids=(1, 2),
        logprobs=(-0.5, -0.5),
        reward=reward,
        answer="Ann",
        status="failed" if reward is None else "terminated",
    )


def test_own_runs(tmp_path: Path) -> None:
    (tmp_path / "run/trajectories").mkdir(parents=True)
    save_jsonl(tmp_path / "run/trajectories/step-00001.jsonl", [episode("a", 1.0), episode("b", 0.5)])
    save_jsonl(tmp_path / "run/trajectories/eval-00001.jsonl", [episode("c", None)])
    found = {attempt.id: attempt for attempt in load_attempts(tmp_path / "run")}
    assert {name: attempt.correct for name, attempt in found.items()} == {"a": True, "b": False, "c": None}
    assert {attempt.source for attempt in found.values()} == {"run/step-00001", "run/eval-00001"}
    trajectory = episode("a", 1.0)
    expected = [*(step_view(trajectory, k, privileged=True) for k in range(2)), trajectory_view(trajectory, True)]
    assert found["a"].views(privileged=True) == expected
    assert load_attempts(tmp_path / "run/trajectories/eval-00001.jsonl")[0].source == "eval-00001"


def test_attempts_load_back_equal(tmp_path: Path, attempts: dict[str, Attempt]) -> None:
    save_jsonl(tmp_path / "own.jsonl", attempts.values())
    assert load_attempts(tmp_path / "own.jsonl") == list(attempts.values())


def test_the_least_a_row_of_ones_own_has_to_hold(tmp_path: Path) -> None:
    rows = [{"id": str(i), "question": "Why?", "steps": [{"text": "so", "observation": ""}]} for i in range(2)]
    first, second = load_attempts(write(tmp_path / "mine.jsonl", *rows))
    assert (first.source, first.correct, first.step_labels) == ("mine", None, (None,))
    assert first.group == second.group != ""


def test_sources_are_chosen_by_pattern(tmp_path: Path) -> None:
    path = write(tmp_path / "all.jsonl", *ROWS.values())
    assert [attempt.id for attempt in load_attempts(path, source="*/gsm8k")] == ["pb-1"]
    with pytest.raises(DataError, match=r"no attempts of source 'none'; its sources: big-bench-mistake/word_sorting"):
        load_attempts(path, source="none")


def test_a_sample_is_always_the_same_and_tears_at_most_one_group() -> None:
    many = [Attempt(id=f"{g}{i}", question="q", steps=(), group=f"g{g}") for i in range(4) for g in range(10)]
    taken = sample_groups(many, 10)
    assert taken == sample_groups(many, 10)
    assert sorted(Counter(attempt.group for attempt in taken).values()) == [2, 4, 4]
    assert [attempt for attempt in many if attempt in taken] == taken
    assert {attempt.id for attempt in sample_groups(many, 6)} < {attempt.id for attempt in taken}
    assert sample_groups(many, 99) == many


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("[1]", "expected a JSON object, got list"),
        ("{", ":1: Expecting property name"),
        ('{"x": 1}', r"not a labelled attempt: fields \['x'\]; known: ProcessBench"),
        (json.dumps(ROWS["ProcessBench"] | {"first_error": 3}), "first_error is 3, but there are 3 steps"),
        (json.dumps(ROWS["ProcessBench"] | {"first_error": -2}), "first_error"),
        (json.dumps(ROWS["GSM8K solutions"] | {"is_correct": "perhaps"}), "correct"),
        (json.dumps(ROWS["search runs"] | {"turns": [{"role": "assistant"}]}), "'content'"),
        (json.dumps(ROWS["MR-Ben"]) + "\n" + json.dumps(ROWS["MR-Ben"]), "two attempts have the id 'mr-1'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: str, problem: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(row)
    with pytest.raises(DataError, match=problem) as caught:
        load_attempts(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load_attempts(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="not a run folder"):
        load_attempts(tmp_path)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 1000)[:20])
    with pytest.raises(DataError, match="cannot be read"):
        load_attempts(tmp_path / "cut.jsonl.gz")


@needs_data
@pytest.mark.parametrize(
    ("name", "count", "right", "erroneous"),
    [
        ("processbench_gsm8k_olympiad_omni", 1213, 615, 812),
        ("mr_ben", 1503, 622, 881),
        ("big_bench_mistake", 1086, 346, 843),
        ("gsm8k_model_solutions", 2644, 1051, 0),
        ("search_trajectories_hotpotqa", 789, 260, 0),
    ],
)
def test_the_real_data(name: str, count: int, right: int, erroneous: int) -> None:
    attempts = load_attempts(DATA / f"{name}.jsonl.gz")
    assert len(attempts) == count
    assert sum(attempt.correct is True for attempt in attempts) == right
    assert sum(attempt.first_error is not None and attempt.first_error >= 0 for attempt in attempts) == erroneous
    assert all(attempt.group and attempt.steps for attempt in attempts)
