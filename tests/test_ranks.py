"""Several processes, one learner: the losses and gradients of one, and a state that any number of them can load."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from torch import Tensor

from ovd_gym.batch import Batch, pack
from ovd_gym.build import Worlds, load_student, make_learner, make_players
from ovd_gym.config import TrainConfig
from ovd_gym.config_files import load_config
from ovd_gym.credit import Credit
from ovd_gym.errors import TrainingStopped
from ovd_gym.learner import Learner
from ovd_gym.players import Round
from ovd_gym.progress import Display
from ovd_gym.ranks import Ranks
from ovd_gym.scale.learners import leading
from ovd_gym.training import train

CASES: dict[str, dict[str, Any]] = {
    "adapters": {"learner.lora_rank": 2},
    "all weights, two epochs, a reference": {
        "learner.lora_rank": 0,
        "learner.epochs": 2,
        "learner.kl_weight": 0.1,
        "learner.entropy_weight": 0.01,
    },
    "value head": {"learner.lora_rank": 0, "credit.estimator": "gae"},
}


def settings(model: Path, **more: Any) -> dict[str, Any]:
    return {
        "student": {"model": str(model), "chat": "plain", "max_turn_tokens": 6},
        "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 2},
        "rollout": {"tasks_per_step": 3, "group_size": 3},
        "learner.learning_rate": 0.001,
        "learner.micro_batch_tokens": 300,
        "steps": 4,
        "checkpoint_every": 2,
        **more,
    }


def batch_of(config: TrainConfig) -> Batch:
    """A round of the student's with made-up credits."""
    worlds = Worlds.of(config)
    players = make_players(config, worlds, load_student(config), None)
    tasks = tuple(worlds.tasks[i] for i in range(3))
    trajectories = players.play(Round(tasks, (0, 1), "step-00001", 0, group_size=3))
    credits = [
        Credit(
            trajectory_id=t.id,
            advantages=tuple(0.25 * ((i + k) % 5 - 2) for k in range(len(t.steps))),
            rewards=tuple(float((i + k) % 3) for k in range(len(t.steps))),
        )
        for i, t in enumerate(trajectories)
    ]
    return pack(trajectories, credits)


def gap(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of any element."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_alone_a_process_takes_everything() -> None:
    ranks = Ranks()
    assert ranks.share([3, 1, 2]) == [(3, True), (1, True), (2, True)]
    assert ranks.gather(["a", "b", "c"], 3) == ["a", "b", "c"]
    assert (ranks.rank, ranks.size, ranks.all(True), ranks.all(False)) == (0, 1, True, False)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_every_item_counts_once_and_all_ranks_take_equally_many(count: int) -> None:
    members = [Ranks() for _ in range(2)]
    for rank, member in enumerate(members):
        member.rank, member.size = rank, 2
    shares = [member.share(range(count)) for member in members]
    assert len(shares[0]) == len(shares[1]) == (count + 1) // 2
    assert sorted(item for share in shares for item, counts in share if counts) == list(range(count))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(case: str, tiny_folder: Path) -> None:
    """Losses, gradients (the optimiser's first moments are a tenth of them) and weights to 1e-5."""
    config = load_config(settings_tree(tiny_folder, CASES[case]))
    batch = batch_of(config)
    alone = make_learner(config, load_student(config).decoder, Learner)
    expected = [alone.update(batch, step) for step in range(2)]
    with leading(config, load_student(config).decoder) as learner:
        found = [learner.update(batch, step) for step in range(2)]
        weights, moments = learner.state()
        parts = list(learner.parameters.values())
    for one, two in zip(expected, found, strict=True):
        assert one == pytest.approx(two, abs=1e-5, rel=1e-5)
        assert one["grad_norm"] > 0
    assert gap(alone.state()[0], weights) < 1e-5
    assert gap(alone.state()[1], moments) < 1e-5
    assert sum(p.to_local().numel() for p in parts) < sum(p.numel() for p in parts)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tiny_folder: Path, tmp_path: Path) -> None:
    """One process, then two, then one: the numbers are those of one process all the way."""

    def rows(path: Path) -> list[dict[str, Any]]:
        timing = ("seconds", "tokens_per_s", "peak_memory_gib")
        lines = (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in timing and v is not None} for line in lines]

    def quiet() -> Display:
        return Display(4, Console(file=io.StringIO()))

    whole = train(settings=settings(tiny_folder, run_dir=str(tmp_path / "whole")), display=quiet()).path
    moved = tmp_path / "moved"
    for scale in ({"learners": 2}, None):
        shutil.copytree(whole, moved)
        shutil.rmtree(moved / "checkpoints" / "step-00004")
        train(resume=moved, settings={"scale": scale}, display=quiet())
        for one, other in zip(rows(whole), rows(moved), strict=True):
            assert one == pytest.approx(other, abs=1e-5, rel=1e-5)
        whole, moved = moved, tmp_path / "moved again"


@pytest.mark.slow
def test_a_lost_process_stops_the_run_with_a_reason(tiny_folder: Path) -> None:
    config = load_config(settings_tree(tiny_folder, CASES["adapters"]))
    batch = batch_of(config)
    with leading(config, load_student(config).decoder) as learner:
        learner.update(batch, 0)
        (follower,) = psutil.Process().children()
        follower.kill()
        with pytest.raises(TrainingStopped, match=r"processes could not update together.*last checkpoint stays valid"):
            learner.update(batch, 1)
    assert not follower.is_running()
    assert not torch.distributed.is_initialized()


def settings_tree(model: Path, more: dict[str, Any]) -> dict[str, Any]:
    """The settings as a tree, with two learners."""
    tree: dict[str, Any] = {}
    for key, value in {**settings(model), **more, "scale": {"learners": 2}}.items():
        *path, last = key.split(".")
        branch = tree
        for name in path:
            branch = branch.setdefault(name, {})
        branch[last] = value
    return tree
