"""``ovd-gym fit-teacher``: from data to a folder that a teacher is made from, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from ovd_gym.cli_fit import app
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.fitting import run_values, training_attempts
from ovd_gym.progress import Display
from ovd_gym.records import Trajectory, load_jsonl, save_jsonl
from ovd_gym.teachers.base import StepText
from ovd_gym.teachers.fitted import FittedTeacher
from ovd_gym.teachers.labelled import Attempt
from ovd_gym.training import train


def attempt(number: int, wrong: bool, **more: Any) -> Attempt:
    total = number + 30 + (5 if wrong else 0)
    fields = {
        "id": f"{number}-{wrong}",
        "question": f"Bob has {number} plums and gets 30. How many?",
        "steps": (StepText(text=f"{number} + 30 = {total}", observation=""),),
        "answer": str(total),
        "source": "sums",
        "correct": not wrong,
        "first_error": 0 if wrong else -1,
    }
    return Attempt.model_validate(fields | more)


def stored(path: Path, start: int, count: int, **more: Any) -> Path:
    numbers = range(start, start + count)
    save_jsonl(path, (attempt(number, wrong, **more) for number in numbers for wrong in (False, True)))
    return path


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments), "--model", "none"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_share_of_the_questions_is_held_out(tmp_path: Path) -> None:
    data = stored(tmp_path / "sums.jsonl", 11, 15)
    lines = call(data, "--out", tmp_path / "critic", "--held-out", "0.4").splitlines()
    assert lines[0] == "fitted to 18 attempts, measured on 12 at other questions"
    assert lines[1].startswith("AUROC of attempts           1.000 [1.000, 1.000] on 12")
    assert any(line.startswith("first error F1              1.000") for line in lines)
    assert lines[-1] == str(tmp_path / "critic")
    card = FittedTeacher(tmp_path / "critic").card
    assert card.held_out is not None
    assert card.held_out.attempts == 12
    assert "words" not in card.features


def test_other_data_to_measure_on(tmp_path: Path) -> None:
    data, test = stored(tmp_path / "a.jsonl", 11, 10), stored(tmp_path / "b.jsonl", 18, 6, source="other")
    shown = call(data, "--out", tmp_path / "critic", "--test", test, "--amounts")
    assert shown.startswith("fitted to 14 attempts, measured on 12 at")
    card = FittedTeacher(tmp_path / "critic").card
    assert [source.name for source in card.sources] == ["sums"]
    assert "words" in card.features


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    data = stored(tmp_path / "sums.jsonl", 11, 4)
    with pytest.raises(ConfigError, match="none of DATA is a run folder"):
        call(data, "--out", tmp_path / "critic", "--continuations", "2")
    with pytest.raises(DataError, match="the same id"):
        call(data, data, "--out", tmp_path / "critic")
    assert not (tmp_path / "critic").exists()


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {
        "student.model": str(tiny_folder),
        "student.chat": "plain",
        "student.max_turn_tokens": 6,
        "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 3},
        "evaluation": {"options": {"task_options": {"size": 2, "seed": 99}}, "episodes": 2},
        "rollout": {"tasks_per_step": 2, "group_size": 2},
        "learner": {"lora_rank": 2},
        "steps": 1,
        "run_dir": str(tmp_path_factory.mktemp("runs") / "run"),
    }
    return train(settings=settings, display=Display(1, Console(file=io.StringIO()))).path


def test_only_the_training_episodes_of_a_run_are_fitted_to(run: Path) -> None:
    assert {attempt.source for attempt in training_attempts(run)} == {"run/step-00001"}
    assert len(training_attempts(run)) == 4


def test_the_student_of_a_run_plays_on(run: Path) -> None:
    (file,) = (run / "trajectories").glob("step-*.jsonl")
    played = list(load_jsonl(file, Trajectory))
    chosen = [trajectory.id for trajectory in played[:2]]
    counts: list[tuple[int, int]] = []
    values = run_values(run, chosen, 2, lambda done, total: counts.append((done, total)))
    assert [each.trajectory_id for each in values] == chosen
    for each, trajectory in zip(values, played, strict=False):
        assert each.values == (0.0,) * len(trajectory.steps)  # a random model answers nothing
        assert each.continuations == (2,) * (len(trajectory.steps) - 1) + (0,)
    steps = sum(len(trajectory.steps) - 1 for trajectory in played[:2])
    assert counts[-1] == (2 * steps, 2 * steps)


def test_a_run_without_success_teaches_nothing(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither steps nor answers are both right and wrong"):
        call(run, "--out", tmp_path / "critic", "--held-out", "0", "--continuations", "1")
    with pytest.raises(ConfigError, match="not a run folder"):
        run_values(tmp_path, [], 1)


def test_readings_need_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--reads: nothing is read without a --model"):
        call(stored(tmp_path / "sums.jsonl", 11, 5), "--out", tmp_path / "critic", "--reads", "likelihood")


def test_one_kind_can_be_asked_for(tmp_path: Path) -> None:
    call(stored(tmp_path / "sums.jsonl", 11, 15), "--out", tmp_path / "critic", "--kind", "trajectory")
    assert list(FittedTeacher(tmp_path / "critic").card.labels) == ["trajectory"]
