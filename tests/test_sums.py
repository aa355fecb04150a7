"""The example of sums: its world, its teacher, its demonstrator; every arm of the comparison trains in it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ovd_gym import ScriptedAgent, train
from ovd_gym.build import make_envs
from ovd_gym.config import EnvConfig
from ovd_gym.envs.base import ToolEnv
from ovd_gym.records import Task, ToolCall, Trajectory
from ovd_gym.rollout import rollout

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "sums"
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    ARMS = importlib.import_module("arms").ARMS
TASK = Task(id="t", question="12+7+5+9", answers=("33",))


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module("sums")


def play(turns: list[str], **options: Any) -> Trajectory:
    (env,) = make_envs(EnvConfig(id="sums:Sums-v0", options={"task_options": {"count": 1}, **options}), 1)
    (trajectory,) = rollout([TASK], [env], ScriptedAgent(lambda m: turns[sum(x.role == "assistant" for x in m)]))
    return trajectory


def test_no_question_of_one_split_is_asked_in_another(sums: ModuleType) -> None:
    splits = ("train", "tune", "test")
    asked = {split: {task.question for task in sums.sums(400, seed=1, split=split)} for split in splits}
    assert [len(questions) for questions in asked.values()] == [400, 400, 400]
    assert not asked["train"] & asked["tune"]
    assert not asked["test"] & (asked["train"] | asked["tune"])
    assert sums.sums(5, seed=1) == sums.sums(400, seed=1)[:5]
    assert all(sum(map(int, task.question.split("+"))) == int(task.answers[0]) for task in sums.sums(50))


def test_what_the_format_writes_it_reads(sums: ModuleType) -> None:
    for call in (ToolCall(name="note", arguments={"text": "1+2=3"}), ToolCall(name="answer", arguments={"text": "3"})):
        assert sums.Chain().parse(sums.Chain().render(call), ()) == call


RIGHT = ["12+7=19;", "19+5=24;", "24+9=33;", "33#"]
SLIP = ["12+7=19;", "19+5=25;", "25+9=34;", "34#"]


@pytest.mark.parametrize(
    ("turns", "rewards", "digits", "whole"),
    [
        (RIGHT, (1, 1, 0), [9, 9, 9, 9], 9),
        (SLIP, (0, 1, 0), [9, 3, 9, 9], 3),
        (["12+7=19;", "19+5=25;", "25+9=33;", "33#"], (1, 1, 0), [9, 3, 3, 9], 3),  # two errors that cancel
        (["12+7=19;", "19+9=28;", "28+5=33;", "33#"], (1, 1, 0), [9, 1, 1, 9], 3),  # in another order
        (["33#"], (1, 0, 0), [1], 3),
        (["+;", "=7", "12+7=19;", "19#"], (0, 0, 0), [0, 0, 1, 9], 1),
        (["1;"] * 6, (0, 0, 0), [0] * 6, 0),
    ],
)
def test_rewards_and_digits(
    sums: ModuleType, turns: list[str], rewards: tuple[int, int, int], digits: list[int], whole: int
) -> None:
    found = [play(turns, reward=reward) for reward in ("exact", "form", "none")]
    assert [trajectory.reward for trajectory in found] == list(rewards)
    (critique,) = sums.SumRules().critique(found[:1])
    assert [score.value for score in critique.steps] == digits
    assert critique.trajectory.value == whole


def test_the_demonstrator_goes_on_from_right_notes(sums: ModuleType) -> None:
    (env,) = make_envs(EnvConfig(id="sums:Sums-v0", options={"task_options": {"count": 20}}), 1)
    assert isinstance(env.unwrapped, ToolEnv)
    tasks = list(env.unwrapped.tasks)
    played = [rollout([task], [env], ScriptedAgent(sums.add_up(tasks)))[0] for task in tasks]
    assert {trajectory.reward for trajectory in played} == {1.0}
    critiques = sums.SumRules().critique(played)
    assert {score.value for critique in critiques for score in (*critique.steps, critique.trajectory)} == {9}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model after two lessons."""
    folder = tmp_path_factory.mktemp("sums") / "tiny-adder"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        importlib.import_module("tiny_adder").main([str(folder), "--lessons", "2"])
    return folder


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_of_the_comparison_trains(arm: str, sums: ModuleType, student: Path, tmp_path: Path) -> None:
    settings = {**ARMS[arm], "student.model": str(student), "run_dir": str(tmp_path / "run"), "steps": 1}
    settings |= {"learner.warmup_steps": 0, "rollout.tasks_per_step": 2, "rollout.group_size": 4}
    settings |= {"evaluation.every": 0, "evaluation.episodes": 4, "evaluation.options.task_options.count": 4}
    if arm == "token-opd":
        settings["distillation.model"] = str(student)
    train(EXAMPLE / "train.yaml", settings=settings)
    (row,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert row["sampled_tokens"] > 0
    assert (row["trained_tokens"] > 0) == (arm not in ("grpo", "form only"))  # after two lessons nothing is right
    if arm in ("ovd", "ovd-prefix"):
        assert (row["replaced"], row["demonstrator_em"]) == (0.5, 1.0)
