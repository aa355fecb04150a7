"""The scripts below ``examples/``: a world that hostile SQL cannot leave, loops that learn, teachers that judge."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.envs.base import ToolEnv
from ovd_gym.records import Task

ROOT = Path(__file__).resolve().parents[1]
LOOPS = ROOT / "examples" / "loops"


def run(script: Path, *arguments: str) -> None:
    runpy.run_path(str(script))["main"](arguments)


@pytest.fixture(scope="module")
def sql() -> dict[str, Any]:
    """What the module of the SQL world holds; the world that it registers is left to those who import it."""
    import gymnasium

    before = gymnasium.registry.pop("Sql-v0", None)
    held = runpy.run_path(str(ROOT / "examples" / "sql" / "sql_world.py"), run_name="sql_world_of_this_test")
    gymnasium.registry.pop("Sql-v0")
    if before is not None:
        gymnasium.registry["Sql-v0"] = before
    return held


@pytest.fixture
def ask(sql: dict[str, Any]) -> Iterator[Callable[[str], str]]:
    """Sends a query to the world; what the student reads."""
    env: ToolEnv = sql["Sql"](size=1, action_format="line", max_turns=50)
    env.reset(seed=0)
    yield lambda query: env.step(f"sql: {query}")[0]
    assert env.step("sql: SELECT count(*) FROM stock")[0] == str(len(sql["ITEMS"]))  # nothing has changed
    env.close()


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("DELETE FROM stock", "not authorized"),
        ("DROP TABLE stock", "not authorized"),
        ("INSERT INTO stock VALUES ('x', 1, 1)", "not authorized"),
        ("UPDATE stock SET count = 0", "not authorized"),
        ("PRAGMA query_only = OFF", "not authorized"),
        ("ATTACH DATABASE 'stolen.db' AS s", "not authorized"),
        ("VACUUM INTO 'stolen.db'", "Error: SQL: "),
        ("SELECT load_extension('evil.so')", "not authorized"),
        ("SELECT 1; DROP TABLE stock", "one statement at a time"),
        ("SELECT * FROM secrets", "no such table"),
        ("SELEC", "syntax error"),
        ("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT sum(x) FROM n", "interrupted"),
        ("SELECT length(zeroblob(1000000000))", "too big"),
        ("SELECT printf('%1000000000d', 1)", "None"),
        ("SELECT '" + "x" * 20_000 + "'", "too"),
        (
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 99) SELECT x FROM n",
            "more than 20 rows",
        ),
        ("SELECT item FROM stock WHERE count > 99", "no rows"),
    ],
)
def test_hostile_sql_is_inert(
    query: str, told: str, ask: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in ask(query)
    assert list(tmp_path.iterdir()) == []


def test_an_answer_is_worth_what_it_returns(sql: dict[str, Any]) -> None:
    env: ToolEnv = sql["Sql"](size=3, seed=4, action_format="line")
    task: Task = env.tasks[0]
    for answer, reward in (
        (task.answers[0], 1.0),
        (task.answers[0].replace("WHERE", "WHERE 1 = 1 AND"), 1.0),
        ("SELECT 0", 0.0),
        ("DROP TABLE stock", 0.0),
        ("nonsense", 0.0),
    ):
        env.reset(options={"task": task})
        assert env.step(f"answer: {answer}")[1:3] == (reward, True)
    env.close()


def test_a_model_learns_sql(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sys.modules.pop("examples.sql.sql_world", None)
    run(ROOT / "examples" / "sql" / "train_sql.py", str(tmp_path / "sql"), "--imitate", "2", "--try", "1")
    shown = capsys.readouterr().out.splitlines()[-4:]
    assert [re.sub(r" +", " ", line).partition(":")[0] for line in shown] == [
        "after 0 steps of imitation",
        "after 2 steps of imitation",
        "after 0 steps of reinforcement",
        "after 1 steps of reinforcement",
    ]


def test_the_grpo_loop_goes_on_where_it_was(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = ("--student", str(tiny_folder))
    run(LOOPS / "grpo_math.py", str(tmp_path / "whole"), *student, "--steps", "2")
    whole = capsys.readouterr().out.splitlines()
    run(LOOPS / "grpo_math.py", str(tmp_path / "parts"), *student, "--steps", "1")
    run(LOOPS / "grpo_math.py", str(tmp_path / "parts"), *student, "--steps", "2")
    assert [line.partition(":")[0] for line in whole] == ["step 1", "step 2"]
    assert capsys.readouterr().out.splitlines() == whole
    names = ("weights.safetensors", "optimizer.safetensors")
    for name in names:
        assert (tmp_path / "parts/step-00002" / name).read_bytes() == (
            tmp_path / "whole/step-00002" / name
        ).read_bytes()


def test_the_ppo_loop(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(LOOPS / "ppo_search.py", "--student", str(tiny_folder), "--steps", "1")
    assert re.fullmatch(r"step 1: score \d\.\d\d, value loss \d\.\d{4}\n", capsys.readouterr().out)


def test_the_filter_loop_replaces_what_the_teacher_rejects(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(LOOPS / "ovd_filter.py", "--student", str(tiny_folder), "--steps", "1")
    # A student that writes noise is rejected everywhere; two of each group of four stay.
    assert capsys.readouterr().out.startswith("step 1: 8 of 8 rejected, 4 replaced, ")


def test_the_evaluation_loop(capsys: pytest.CaptureFixture[str]) -> None:
    run(LOOPS / "evaluate.py", "--questions", "8")
    assert re.match(r"all: 0\.\d{3} \[0\.\d{3}, 0\.\d{3}\] of 8\n", capsys.readouterr().out)


def test_a_teacher_of_two(capsys: pytest.CaptureFixture[str]) -> None:
    run(ROOT / "examples" / "teachers" / "api_and_rules.py")
    *attempts, asked = capsys.readouterr().out.splitlines()
    digits = {name: float(digit) for name, digit in (line.split(": ") for line in attempts)}
    assert digits["calculated"] > digits["wrong"]  # the API says 7 to all, the rules tell them apart
    assert asked.endswith("3 requests")
