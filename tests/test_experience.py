"""What a step gathers: which tasks are asked again, with which seeds, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from ovd_gym.config_files import load_config
from ovd_gym.envs.base import ToolEnv
from ovd_gym.experience import Experience, gather, task_batch
from ovd_gym.players import Round
from ovd_gym.records import Score, Step, Task, Trajectory
from ovd_gym.teachers.base import Teacher, View


class Strict(Teacher):
    """Rejects everything but attempts at these questions."""

    def __init__(self, *accepted: str) -> None:
        self.accepted = accepted

    def score(self, view: View) -> Score:
        return Score.of(9 if view.question in self.accepted else 0)


class Wrong:
    """Students who are always wrong, and demonstrators who are right at first; what they were asked is noted."""

    def __init__(self, right_rounds: int) -> None:
        self.right_rounds = right_rounds
        self.rounds: list[Round] = []

    def play(self, played: Round, on_turn: Any) -> list[Trajectory]:
        self.rounds.append(played)
        return [
            Trajectory(
                id=f"{played.label}/{i}/{member}",
                group_id=f"{played.label}/{i}",
                task=task,
                token_ids=(1, 2),
                logprobs=(0.0, -1.0),
                steps=(Step(text="x", start=1, end=2),),
                reward=float(played.player == "demonstrator" and len(self.rounds) <= self.right_rounds),
                status="terminated",
            )
            for i, task in enumerate(played.tasks)
            for member in range(played.group_size)
        ]


def gathered(teacher: Teacher, players: Wrong, tasks: Sequence[Task], **rollout: int) -> Experience:
    laid = {"credit.arm": "ovd", "demonstrator.policy": "m:f", "rollout": {"tasks_per_step": 4, "group_size": 3}}
    config = load_config(
        {"student": {"model": "m"}}, laid | {f"rollout.{key}": value for key, value in rollout.items()}
    )
    parts: Any = SimpleNamespace(tasks=tasks, players=players, teacher=teacher)
    return gather(config, parts, 5, 5, lambda done, tokens: None)


def test_asked_again_are_other_tasks_as_long_as_there_are_some(adders: Callable[[int], list[ToolEnv]]) -> None:
    tasks, players = adders(1)[0].tasks, Wrong(right_rounds=0)
    gathered(Strict(), players, tasks, resample=3)
    asked = [task.id for played in players.rounds if played.player == "student" for task in played.tasks]
    assert len(asked) == 16
    assert len(set(asked[:8])) == 8
    assert set(asked[:10]) == {task.id for task in tasks}
    assert len({played.seed for played in players.rounds}) == len(players.rounds) == 8  # with the demonstrations


def test_shares_of_demonstrations_are_means_over_demonstrations(adders: Callable[[int], list[ToolEnv]]) -> None:
    tasks, players = adders(1)[0].tasks, Wrong(right_rounds=2)
    accepted = [task.question for task in task_batch(tasks, 5, 4, 0)[1:]]
    row = gathered(Strict(*accepted), players, tasks, resample=1).row
    # One of four groups got a right demonstration; of the three asked in place of the others each got a wrong one.
    assert row["demonstrator_em"] == 1 / 4
    assert row["replaced"] == pytest.approx(4 / 21)
    assert row["resampled"] == 3
