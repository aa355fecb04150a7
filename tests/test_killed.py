"""A run that is killed, at whatever moment, and resumed gives the numbers of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

POINTS = {
    "sampling": ("ovd_gym.training:gather", 2),
    "before the optimiser's step": ("ovd_gym.learner:Learner._step", 4),
    "weights saved, optimiser not": ("ovd_gym.recorder:save_file", 2),
    "saved, not yet named": ("ovd_gym.recorder:_sync", 2),
    "older checkpoints not yet pruned": ("ovd_gym.recorder:Recorder.checkpoints", 2),
    "trajectories recorded, critiques not": ("ovd_gym.recorder:save_jsonl", 4),
    "while resuming": ("ovd_gym.recorder:_write_atomically", 2),
}
"""Functions, and at which of their calls in a life the process dies, before the call."""

LAUNCHER = """
import importlib, json, os, signal, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_training import Brevity, quiet, train

def dying(target, call):
    module, _, path = target.partition(":")
    owner = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    real, calls = getattr(owner, name), []
    def function(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, function)

def live(settings, death):
    if isinstance(death, list):
        dying(*death)
    path = Path(settings["run_dir"])
    if (path / "config.yaml").exists():
        train(teacher=Brevity(), resume=path, display=quiet())
    else:
        train(teacher=Brevity(), settings=settings, display=quiet())

for settings, death in json.loads(sys.argv[2]):
    child = os.fork()
    if child == 0:
        live(settings, death)
        os._exit(0)
    if isinstance(death, float):
        time.sleep(death)
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Every life is a fork: the libraries are imported once."""


def lives(*plan: tuple[dict[str, Any], Any]) -> list[int]:
    """Exit codes of the lives of one process, one after the other; minus a signal's number when it was killed."""
    command = [sys.executable, "-c", LAUNCHER, str(Path(__file__).parent), json.dumps(plan)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return [int(line) for line in done.stdout.split()]


def numbers(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "tokens_per_s", "peak_memory_gib")} for row in rows]


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bits(tiny_folder: Path, tmp_path: Path) -> None:
    def settings(name: str) -> dict[str, Any]:
        return {
            "student.model": str(tiny_folder),
            "student.chat": "plain",
            "student.max_turn_tokens": 6,
            "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 2},
            "evaluation": {"options": {"task_options": {"size": 2, "seed": 99}}, "episodes": 2, "every": 2},
            "rollout": {"tasks_per_step": 2, "group_size": 3},
            "learner": {"lora_rank": 2, "learning_rate": 0.01, "schedule": "cosine", "epochs": 2},
            "steps": 8,
            "checkpoint_every": 1,
            "keep_checkpoints": 1,
            "run_dir": str(tmp_path / name),
        }

    rng = random.Random(0)
    # The moments come last: on a fast machine nothing may be left to be killed in.
    deaths: list[Any] = [list(point) for point in POINTS.values()] + [rng.uniform(0.1, 2.0) for _ in range(3)]
    killed_then_left = [(settings("killed"), death) for death in (*deaths, None)]
    codes = lives((settings("whole"), None), *killed_then_left)
    assert codes[0] == codes[-1] == 0
    assert codes[1 : 1 + len(POINTS)] == [-signal.SIGKILL] * len(POINTS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert numbers(whole / name) == numbers(killed / name)
    for folder in ("trajectories", "critiques"):
        assert sorted(f.name for f in (whole / folder).iterdir()) == sorted(f.name for f in (killed / folder).iterdir())
        assert all((whole / folder / f.name).read_text() == f.read_text() for f in (killed / folder).iterdir())
    assert [p.name for p in (killed / "checkpoints").iterdir()] == ["step-00008"]  # and nothing half-written
    for name in ("weights.safetensors", "optimizer.safetensors"):
        one, other = (load_file(run / "checkpoints" / "step-00008" / name) for run in (whole, killed))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
