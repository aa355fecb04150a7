"""Rollouts on Ray workers: how fast 1, 2 and 4 of them are when they compute, and up to 64 when they wait.

``--part compute``: a tiny Llama plays arithmetic with tools, in the trainer's process and on workers. All of them share
this machine's cores, so more workers than cores cannot be faster; what they cost is what is measured.

``--part wait``: no model; a tool that takes log-normal time with a heavy tail (median 50 ms, 99th percentile 5 s, cut
at 10 s, all times ``--scale``), one episode at a time per worker. Workers share the cores while they wait, so this is
what a cluster would do as long as its environments are slow and its models are not.

Example: python benchmarks/scale.py --part wait --workers 1 4 16 64
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
from rich.console import Console
from rich.table import Table

from ovd_gym import Message, ScriptedAgent, Task, ToolEnv, Trajectory, tool
from ovd_gym.config_files import load_config
from ovd_gym.placement import ScaleConfig
from ovd_gym.players import LocalPlayers, Players, Round, Stage
from ovd_gym.scale.cluster import connected
from ovd_gym.scale.pool import Pool

MEDIAN_S, P99_S, LONGEST_S = 0.05, 5.0, 10.0
SIGMA = math.log(P99_S / MEDIAN_S) / 2.326
TURNS = 4


class Waiting(ToolEnv):
    """A tool that takes its time."""

    scale = 1.0

    @tool
    def wait(self) -> str:
        """Wait as long as this episode's next latency says."""
        latency_s = MEDIAN_S * math.exp(SIGMA * float(self._latencies.standard_normal()))
        time.sleep(self.scale * min(latency_s, LONGEST_S))
        return "done"

    def start_episode(self, task: Task) -> None:
        """Draw this task's latencies."""
        self._latencies = np.random.default_rng(int(task.id))

    def grade(self, task: Task, answer: str) -> float:
        """Every answer is right."""
        return 1.0


def patient(messages: Sequence[Message]) -> str:
    """Wait a few times, then answer."""
    return "wait: {}" if sum(m.role == "tool" for m in messages) < TURNS - 1 else "answer: done"


class Waiter:
    """A worker without a model, which is why it is light."""

    def prepare(self, scale: float) -> None:
        """Make the environment."""
        Waiting.scale = scale
        tasks = [Task(id="0", question="?", answers=("",))]
        stage = Stage(lambda: Waiting(tasks, action_format="line", max_turns=TURNS + 1))
        self._players = LocalPlayers(ScriptedAgent(patient), None, None, stage)

    def play(self, part: Round) -> list[Trajectory]:
        """Play one part."""
        return self._players.play(part)


def waiting(workers: int, episodes: int, scale: float) -> float:
    """Steps a second of ``workers`` processes that mostly wait, after all of them have started."""
    with connected(ScaleConfig(workers=workers), weights=0):
        make = ray.remote(Waiter).options(num_cpus=1)
        pool = Pool("worker", workers, make.remote, lambda actor: actor.prepare.remote(scale), timeout_s=600)
        tasks = tuple(Task(id=str(i), question="?", answers=("",)) for i in range(episodes))
        asked = Round(tasks, (0,), "wait", 0)
        pool.settle()
        began = time.monotonic()
        results = pool.run("play", [(part,) for part in asked.parts(1)])
        seconds = time.monotonic() - began
        pool.close()
    return sum(len(t.steps) for result in results for t in result) / seconds


def tiny_student(folder: Path) -> str:
    """A random Llama of two layers with a byte tokenizer."""
    from ovd_gym.llm.tiny import byte_tokenizer, save_model, tiny_llama

    tokenizer = byte_tokenizer()
    save_model(tiny_llama(tokenizer, max_position_embeddings=1024), tokenizer, folder)
    return str(folder)


def computing(workers: int, student: str, rounds: int) -> float:
    """Sampled tokens a second of ``workers`` processes, or of this one for 0; the first round is not counted."""
    from ovd_gym.build import build
    from ovd_gym.scale.parts import scaled_parts

    config = load_config(
        {
            "student": {"model": student, "chat": "plain", "max_turn_tokens": 32},
            "env": {"options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 4}},
            "rollout": {"tasks_per_step": 16, "group_size": 4},
            **({"scale": {"workers": workers}} if workers else {}),
        }
    )
    parts = scaled_parts(config) if workers else build(config)
    try:
        parts.players.load_weights(parts.learner.weights(), 0)
        tasks = tuple(parts.tasks[i] for i in range(16))
        _played(parts.players, Round(tasks, (0,), "warm", 0, group_size=4))
        began = time.monotonic()
        tokens = sum(_played(parts.players, Round(tasks, (i,), "round", 0, group_size=4)) for i in range(1, rounds + 1))
        return tokens / (time.monotonic() - began)
    finally:
        parts.close()


def _played(players: Players, asked: Round) -> int:
    return sum(t.num_sampled for t in players.play(asked))


def main() -> None:
    """Print one table per part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("compute", "wait"), required=True)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--scale", type=float, default=1.0)
    chosen = parser.parse_args()
    table = Table("workers", "per second", "ratio", title=chosen.part)
    first: float | None = None
    with tempfile.TemporaryDirectory() as folder:
        student = tiny_student(Path(folder)) if chosen.part == "compute" else ""
        for count in ([0] if chosen.part == "compute" else []) + chosen.workers:
            rate = (
                computing(count, student, chosen.rounds)
                if chosen.part == "compute"
                else waiting(count, chosen.episodes, chosen.scale)
            )
            first = first or rate
            table.add_row(str(count or "in process"), f"{rate:,.1f}", f"{rate / first:.2f}")
    unit = "sampled tokens" if chosen.part == "compute" else "environment steps"
    Console().print(table, f"{unit} a second; the ratio is to the first row", sep="\n")


if __name__ == "__main__":
    main()
