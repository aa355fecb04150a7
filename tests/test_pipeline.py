"""Experience gathered ahead of the updates: bounded, in order, with versions that are true, and stoppable."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM

from ovd_gym.config import LearnerConfig
from ovd_gym.errors import TrainingStopped
from ovd_gym.experience import Experience
from ovd_gym.learner import trainable_model
from ovd_gym.llm.decoder import Decoder
from ovd_gym.pipeline import Ahead
from ovd_gym.players import OnTurn, Round
from ovd_gym.progress import Display
from ovd_gym.recorder import Recorder
from ovd_gym.records import Score, Trajectory, load_jsonl
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.training import RunResult, train


class Loaded:
    """Players that remember what they were given."""

    def __init__(self) -> None:
        self.weights: dict[int, float] = {}

    def play(self, played: Round, on_turn: OnTurn = lambda done, tokens: None) -> list[Trajectory]:
        raise NotImplementedError

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        self.weights[version] = float(weights["w"])

    def close(self) -> None:
        """Nothing is held."""


def ahead(staleness: int, steps: int = 8, seconds: float = 0.0) -> tuple[Ahead, Loaded, list[tuple[int, int]]]:
    gathered: list[tuple[int, int]] = []

    def gather(step: int, version: int, on_turn: OnTurn) -> Experience:
        gathered.append((step, version))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            on_turn(0, 0)
            time.sleep(0.005)
        return Experience()

    players = Loaded()
    return Ahead(gather, players, range(steps), staleness), players, gathered


def eventually(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def idle(done: int, tokens: int) -> None:
    """Nobody wants to stop."""


@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_nothing_is_gathered_further_ahead_than_allowed(staleness: int) -> None:
    source, players, gathered = ahead(staleness)
    weight = torch.zeros(())
    with source:
        for step in range(8):
            weight.fill_(step)
            source.publish({"w": weight}, step)
            found = source.take(step, idle)
            weight.fill_(-1)  # the update is under way: what was published stays as it was
            allowed = min(8, step + staleness + 1)
            eventually(lambda: len(gathered) >= allowed)  # noqa: B023  (beside the update)
            time.sleep(0.01)
            assert len(gathered) == allowed
            assert 0 <= found.row["staleness"] <= staleness
    assert [step for step, _ in gathered] == list(range(8))
    assert all(max(0, step - staleness) <= version <= step for step, version in gathered)
    assert max(step - version for step, version in gathered) == staleness
    assert all(value == version for version, value in players.weights.items())


def test_a_pause_has_the_newest_weights_and_nothing_beside_it() -> None:
    source, players, gathered = ahead(1, seconds=0.05)
    with source:
        for step in range(4):
            source.publish({"w": torch.tensor(float(step))}, step)
            with source.paused(idle):
                before = len(gathered)
                time.sleep(0.06)
                assert len(gathered) == before
                assert max(players.weights) == step
            source.take(step, idle)


def test_what_gathering_raises_is_raised_again_and_closing_does_not_wait_for_more() -> None:
    def gather(step: int, version: int, on_turn: OnTurn) -> Experience:
        if step == 1:
            raise TrainingStopped("every episode failed")
        return Experience()

    source = Ahead(gather, Loaded(), range(5), 2)
    with source, pytest.raises(TrainingStopped, match="every episode failed"):  # noqa: PT012
        source.publish({"w": torch.zeros(())}, 0)
        source.take(0, idle)
        source.take(1, idle)
    slow, _, gathered = ahead(1, seconds=30.0)
    began = time.monotonic()
    with slow:
        slow.publish({"w": torch.zeros(())}, 0)
        with pytest.raises(KeyboardInterrupt):
            slow.take(0, interrupt)
    assert time.monotonic() - began < 5
    assert gathered == [(0, 0)]


def interrupt(done: int, tokens: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("rank", [0, 2])
def test_a_twin_has_trained_weights_of_its_own_and_shares_the_rest(tiny_folder: Path, rank: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    decoder = Decoder(trainable_model(model, LearnerConfig(lora_rank=rank), 0))
    twin = decoder.twin()
    assert twin.trained.keys() == decoder.trained.keys()
    shared = {p.data_ptr() for p in decoder.model.parameters()} & {p.data_ptr() for p in twin.model.parameters()}
    frozen = {p.data_ptr() for p in decoder.model.parameters() if not p.requires_grad}
    assert shared == frozen
    ids = [1, 2, 3, 4]
    before = twin.logprobs(ids)
    with torch.no_grad():
        for parameter in decoder.trained.values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    assert torch.equal(twin.logprobs(ids), before)
    twin.load(decoder.trained)
    assert torch.allclose(twin.logprobs(ids), decoder.logprobs(ids))
    with twin.merged():
        assert all(p.data_ptr() in frozen for p in decoder.model.parameters() if not p.requires_grad)


class Slow(Teacher):
    """Takes its time."""

    def score(self, view: View) -> Score:
        time.sleep(0.005)
        return Score.of(9 - min(9, len(view.attempt) // 4))


def run(model: Path, run_dir: Path, resume: bool = False, **more: Any) -> RunResult:
    display = Display(6, Console(file=io.StringIO()))
    if resume:
        return train(resume=run_dir, teacher=Slow(), display=display)
    laid = {
        "student": {"model": str(model), "chat": "plain", "max_turn_tokens": 6},
        "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 2},
        "teacher.canaries": False,
        "evaluation": {"options": {"task_options": {"size": 4, "seed": 99}}, "episodes": 4, "every": 2},
        "rollout": {"tasks_per_step": 2, "group_size": 3, "staleness": 1},
        "learner": {"lora_rank": 2, "learning_rate": 0.01},
        "steps": 6,
        "checkpoint_every": 2,
        "run_dir": str(run_dir),
        **more,
    }
    return train(teacher=Slow(), settings=laid, display=display)


def versions(path: Path, step: int) -> set[int]:
    return {t.policy_version for t in load_jsonl(path / "trajectories" / f"step-{step:05d}.jsonl", Trajectory)}


def test_a_run_ahead_of_its_updates_records_versions_and_is_corrected(tiny_folder: Path, tmp_path: Path) -> None:
    result = run(tiny_folder, tmp_path / "run")
    rows = Recorder.resume(result.path).metrics()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert all(versions(result.path, row["step"]) == {row["step"] - 1 - row["staleness"]} for row in rows)
    assert {row["staleness"] for row in rows} == {0, 1}
    for row in rows:  # the sampler's log-probabilities are the learner's unless the policy has moved in between
        assert (row["logprob_gap"] > 1e-3) == (row["staleness"] > 0)
    assert [row["step"] for row in result.evaluations] == [0, 2, 4, 6]


def test_ctrl_c_stops_a_run_ahead_and_it_goes_on(tiny_folder: Path, tmp_path: Path) -> None:
    def stop() -> None:
        while not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    stopped = run(tiny_folder, tmp_path / "run", steps=200, evaluation=None)
    assert 1 <= stopped.steps < 200
    assert not [thread for thread in threading.enumerate() if thread.name == "rollouts"]
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 200", f"steps: {stopped.steps + 2}"))
    assert run(tiny_folder, tmp_path / "run", resume=True).steps == stopped.steps + 2
    assert stopped.steps in versions(stopped.path, stopped.steps + 1)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, stopped.steps + 3))
