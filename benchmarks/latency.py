"""Free-running against lock-step rollouts over the same episodes, with a tool whose latency has a heavy tail.

Latencies are log-normal with median 50 ms and 99th percentile 5 s, cut at a deadline of 10 s (all ``--scale``), drawn
from the task, so that both schedules wait for exactly the same calls. Lock-step plays batch after batch of
``--concurrent`` episodes; free-running lets as many tools run at once and nobody waits for a neighbour.

Example: python benchmarks/latency.py --episodes 4096 --concurrent 256 --scale 0.1
"""

from __future__ import annotations

import argparse
import math
import platform
import time
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from ovd_gym import Message, ScriptedAgent, Task, ToolEnv, Trajectory, tool
from ovd_gym.rollout import Schedule, rollout

MEDIAN_S, P99_S, DEADLINE_S = 0.05, 5.0, 10.0
SIGMA = math.log(P99_S / MEDIAN_S) / 2.326


class Waiting(ToolEnv):
    """A tool that takes its time."""

    scale = 1.0

    @tool
    def wait(self) -> str:
        """Wait as long as this episode's next latency says."""
        latency_s = MEDIAN_S * math.exp(SIGMA * float(self._latencies.standard_normal()))
        time.sleep(self.scale * min(latency_s, DEADLINE_S))
        return "done"

    def start_episode(self, task: Task) -> None:
        """Draw this task's latencies."""
        self._latencies = np.random.default_rng(int(task.id))

    def grade(self, task: Task, answer: str) -> float:
        """Every answer is right."""
        return 1.0


def play(count: int, turns: int, run: Callable[[Sequence[Task], Sequence[ToolEnv]], list[Trajectory]]) -> float:
    """Steps per second of ``run`` over ``count`` episodes."""
    tasks = [Task(id=str(i), question="?", answers=("",)) for i in range(count)]
    envs = [Waiting(tasks[:1], action_format="line", max_turns=turns + 1) for _ in tasks]
    began = time.monotonic()
    steps = sum(len(t.steps) for t in run(tasks, envs))
    return steps / (time.monotonic() - began)


def main() -> None:
    """Print both schedules and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=4096)
    parser.add_argument("--concurrent", type=int, default=256)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--scale", type=float, default=0.1)
    chosen = parser.parse_args()
    Waiting.scale = chosen.scale

    def policy(messages: Sequence[Message]) -> str:
        calls = sum(message.role == "tool" for message in messages)
        return "wait: {}" if calls < chosen.turns - 1 else "answer: done"

    agent = ScriptedAgent(policy)

    def lock_step(tasks: Sequence[Task], envs: Sequence[ToolEnv]) -> list[Trajectory]:
        size, schedule = chosen.concurrent, Schedule(tool_threads=chosen.concurrent)
        starts = range(0, len(tasks), size)
        played = [rollout(tasks[i : i + size], envs[i : i + size], agent, schedule=schedule) for i in starts]
        return [trajectory for batch in played for trajectory in batch]

    def free(tasks: Sequence[Task], envs: Sequence[ToolEnv]) -> list[Trajectory]:
        free_running = Schedule(
            schedule="free-running", max_rows=len(envs), tool_threads=chosen.concurrent, tool_timeout_s=None
        )
        return rollout(tasks, envs, agent, schedule=free_running)

    results = {
        name: play(chosen.episodes, chosen.turns, run) for name, run in (("lock-step", lock_step), ("free", free))
    }
    table = Table("schedule", "steps/s", "ratio", title=f"{chosen.episodes} episodes, {chosen.concurrent} at a time")
    for name, rate in results.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / results['lock-step']:.1f}")
    Console().print(table)
    print(f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}, scale {chosen.scale}")


if __name__ == "__main__":
    main()
