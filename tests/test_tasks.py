"""Task sources: schemas, errors, determinism, and gold answers that score 1.0."""

from __future__ import annotations

import gzip
import json
import pickle
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sympy

from ovd_gym.envs.math_qa import MathEnv, hub_tasks, jsonl_tasks, load_tasks, reasoning_gym_tasks, split_tasks
from ovd_gym.envs.math_qa.generated import GENERATORS
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Task, ToolCall


def scores(env: MathEnv, index: int, answer: str) -> float:
    env.reset(options={"task_index": index})
    return env.step(env.action_format.render(ToolCall(name="answer", arguments={"text": answer})))[1]


def write(path: Path, *rows: Any) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


# Generators -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parentheses", [True, False])
def test_a_generated_gold_answer_is_the_value_of_the_question(parentheses: bool) -> None:
    """reasoning-gym's own answers are not: without parentheses it works "50 + 83 * 6" out from left to right."""
    operators = ["+", "-", "*", "/"] if parentheses else ["+", "-", "*"]
    options = {"max_digits": 2, "allow_parentheses": parentheses, "operators": operators}
    tasks = reasoning_gym_tasks("basic_arithmetic", size=200, seed=3, **options)
    for task in tasks:
        expression = task.question.removeprefix("Calculate ").removesuffix(".")
        assert sympy.Rational(task.answers[0]) == sympy.sympify(expression), task.question
    env = MathEnv(tasks, action_format="line")
    assert all(scores(env, index, task.answers[0]) == 1.0 for index, task in enumerate(tasks))


@pytest.mark.parametrize("name", GENERATORS)
def test_generated_gold_answers_score_one_and_no_other_does(name: str) -> None:
    tasks = reasoning_gym_tasks(name, size=20, seed=3)
    env = MathEnv(tasks)
    for index, task in enumerate(tasks):
        (gold,) = task.answers
        assert scores(env, index, gold) == 1.0
        assert scores(env, index, f"${gold}$") == 1.0
        assert scores(env, index, f"9{gold.lstrip('-')}") == 0.0
        assert scores(env, index, f"{gold} + 0") == 0.0, "a calculation is not an answer"
    env.close()


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_are_deterministic_and_leave_global_generators_alone(name: str) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    tasks = reasoning_gym_tasks(name, size=10, seed=5)
    assert [tasks[i] for i in (7, 2)] == [reasoning_gym_tasks(name, size=99, seed=5)[i] for i in (7, 2)]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]


def test_generated_tasks_are_a_lazy_picklable_sequence() -> None:
    tasks = reasoning_gym_tasks("chain_sum", size=10**9, seed=1)
    assert len(tasks) == 10**9
    assert tasks[-1].id == "chain_sum-1-999999999"
    assert pickle.loads(pickle.dumps(tasks))[12] == tasks[12]  # noqa: S301  (made here)
    assert [task.id for task in tasks[3:5]] == ["chain_sum-1-3", "chain_sum-1-4"]
    with pytest.raises(IndexError):
        tasks[10**9]


def test_different_seeds_give_different_questions() -> None:
    questions = [{t.question for t in reasoning_gym_tasks("chain_sum", 50, seed, min_digits=4)} for seed in (0, 1)]
    assert not questions[0] & questions[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "chain_sums"}, "did you mean 'chain_sum'"),
        ({"name": "simple_integration"}, "Allowed: aiw, basic_arithmetic"),
        ({"name": "chain_sum", "max_term": 3}, "did you mean 'max_terms'"),
        ({"name": "chain_sum", "min_terms": -1}, "refuses"),
        ({"name": "basic_arithmetic", "allow_parentheses": False}, "divides by zero"),
        ({"name": "chain_sum", "size": 0}, "size must be"),
        ({"name": "chain_sum", "seed": -1}, "seed at least 0"),
    ],
)
def test_generator_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reasoning_gym_tasks(**arguments)


# Files ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "task"),
    [
        (
            {"id": 7, "question": "1+1?", "answers": ["2", "two"]},
            Task(id="7", question="1+1?", answers=("2", "two")),
        ),
        (
            {"question": "How many?", "answer": "30+12=<<30+12=42>>42\n#### 1,042"},
            Task(
                id="f-1",
                question="How many?",
                answers=("1042",),
                metadata={"solution": "30+12=<<30+12=42>>42"},
            ),
        ),
        (
            {"id": "g", "problem": "P", "answer": "3", "solution": "s"},
            Task(id="g", question="P", answers=("3",), metadata={"solution": "s"}),
        ),
        (
            {"problem": "P", "answers": ["4.2"], "unit": "%", "error": "1e-1", "is_multiple_answer": False},
            Task(
                id="f-1",
                question="P",
                answers=("4.2",),
                metadata={"unit": "%", "error": 0.1, "is_multiple_answer": False},
            ),
        ),
        (
            {"question": "P", "answers": ["1"], "metadata": {"form": "number", "error": "0.5", "unit": None}},
            Task(id="f-1", question="P", answers=("1",), metadata={"form": "number", "error": 0.5}),
        ),
        (
            {"problem": "P", "answers": ["1", "$-1$"], "unit": None, "is_multiple_answer": True},
            Task(id="f-1", question="P", answers=("1, $-1$",), metadata={"is_multiple_answer": True}),
        ),
        (
            {"problem": "P", "solution": r"so \boxed{\frac12}"},
            Task(id="f-1", question="P", answers=(r"\frac12",), metadata={"solution": r"so \boxed{\frac12}"}),
        ),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_schemas(tmp_path: Path, row: dict[str, Any], task: Task, suffix: str) -> None:
    assert jsonl_tasks(write(tmp_path / f"f.{suffix}", row)) == (task,)
    assert list(load_tasks(str(tmp_path / f"f.{suffix}"))) == [task]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, r"f.jsonl:2: no field 'answers' or 'answer'"),
        ({"answers": ["1"]}, r"f.jsonl:2: field 'question'"),
        ({"question": "", "answers": ["1"]}, r"f.jsonl:2: field 'question'"),
        ({"question": "q", "answers": []}, r"f.jsonl:2: field 'answers' must be"),
        ({"question": "q", "answers": [" "]}, r"f.jsonl:2: field 'answers' must be"),
        ({"question": "q", "answers": ["1"], "error": "small"}, r"f.jsonl:2: field 'error'"),
        ([1], r"f.jsonl:2: expected a JSON object, got list"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "f.jsonl", {"question": "q", "answer": "1"}, row)
    with pytest.raises(DataError, match=message):
        jsonl_tasks(path)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_text('{"question": ', encoding="utf-8")
    (tmp_path / "no.jsonl.gz").write_text("not gzip", encoding="utf-8")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    for name, message in (
        ("cut.jsonl", "cut.jsonl:1: not valid JSON"),
        ("no.jsonl.gz", "cannot be read"),
        ("bytes.jsonl", "cannot be read"),
        ("empty.jsonl", "no tasks"),
        ("missing.jsonl", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            jsonl_tasks(tmp_path / name)


def test_tolerance_and_several_parts_are_graded(tmp_path: Path) -> None:
    path = write(
        tmp_path / "f.jsonl",
        {"problem": "P", "answers": ["4.2"], "error": "1e-1"},
        {"problem": "P", "answers": ["3", "-1"], "is_multiple_answer": True},
        {"problem": "P", "answers": ["3", "-1"]},
    )
    env = MathEnv(str(path))
    assert [scores(env, 0, text) for text in ("4.2", "4.3", "4.31", "3")] == [1.0, 1.0, 0.0, 0.0]
    assert [scores(env, 1, text) for text in ("3, -1", "-1, 3", "3")] == [1.0, 1.0, 0.0]
    assert [scores(env, 2, text) for text in ("3", "-1", "1")] == [1.0, 1.0, 0.0]
    env.close()


# Hub, names, splits -----------------------------------------------------------------------------------------


def test_hub_tasks_from_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "gsm").mkdir()
    write(tmp_path / "gsm" / "test.jsonl", {"question": "How many?", "answer": "so\n#### 42"})
    (task,) = load_tasks(f"hub:{tmp_path / 'gsm'}", split="test")
    assert (task.question, task.answers) == ("How many?", ("42",))
    with pytest.raises(DataError, match="split 'train'"):
        hub_tasks(str(tmp_path / "gsm"), split="train")


def test_hub_without_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match="pip install"):
        hub_tasks("openai/gsm8k")


def test_load_tasks_by_name() -> None:
    assert load_tasks("reasoning_gym:gcd", size=5, seed=2)[1] == reasoning_gym_tasks("gcd", size=5, seed=2)[1]
    with pytest.raises(ConfigError, match="unexpected"):
        load_tasks("some.jsonl", size=3)
    with pytest.raises(ConfigError, match="did you mean 'gcd'"):
        load_tasks("reasoning_gym:gcdd")


@pytest.mark.parametrize("tasks", [reasoning_gym_tasks("gcd", size=50), list(reasoning_gym_tasks("lcm", size=50))])
def test_split_is_disjoint_complete_and_seeded(tasks: Sequence[Task]) -> None:
    train, held_out = split_tasks(tasks, held_out=0.2, seed=1)
    assert (len(train), len(held_out)) == (40, 10)
    assert {t.id for t in train} | {t.id for t in held_out} == {t.id for t in tasks}
    assert [t.id for t in held_out] == [t.id for t in split_tasks(tasks, 0.2, 1)[1]]
    assert [t.id for t in held_out] != [t.id for t in split_tasks(tasks, 0.2, 2)[1]]
    assert [t.id for t in train[:3]] == [t.id for t in list(train)[:3]]
    with pytest.raises(ConfigError):
        split_tasks(tasks, held_out=1.0, seed=1)
