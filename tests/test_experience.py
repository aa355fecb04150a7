"""What a step gathers: which tasks are asked again, and with which seeds."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ovd_gym.config_files import load_config
from ovd_gym.envs.base import ToolEnv
from ovd_gym.experience import gather
from ovd_gym.players import Round
from ovd_gym.records import Score, Step, Trajectory
from ovd_gym.teachers.base import Teacher, View


class Strict(Teacher):
    """Rejects everything."""

    def score(self, view: View) -> Score:
        return Score.of(0)


class Wrong:
    """Players who are always wrong; what they were asked is noted."""

    def __init__(self) -> None:
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
                reward=0.0,
                status="terminated",
            )
            for i, task in enumerate(played.tasks)
            for member in range(played.group_size)
        ]


def test_asked_again_are_other_tasks_as_long_as_there_are_some(adders: Callable[[int], list[ToolEnv]]) -> None:
    tasks, players = adders(1)[0].tasks, Wrong()
    settings = {"credit.arm": "ovd", "demonstrator.policy": "m:f", "rollout.group_size": 3, "rollout.resample": 3}
    config = load_config({"student": {"model": "m"}}, settings | {"rollout.tasks_per_step": 4})
    parts: Any = SimpleNamespace(tasks=tasks, players=players, teacher=Strict())
    gather(config, parts, 5, 5, lambda done, tokens: None)
    asked = [task.id for played in players.rounds if played.player == "student" for task in played.tasks]
    assert len(asked) == 16
    assert len(set(asked[:8])) == 8
    assert set(asked[:10]) == {task.id for task in tasks}
    assert len({played.seed for played in players.rounds}) == len(players.rounds) == 8  # with the demonstrations
