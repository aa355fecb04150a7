"""Whether memory and open files stay flat over many episodes: ``python benchmarks/endurance.py [--episodes N]``.

64 episodes at a time in the same environments, as in a training run; between two intervals nothing is kept. A scripted
agent follows the gold plans of the fictional world; ``--agent tiny`` is a language model of some thousand random
weights, which writes nonsense in a world of sums through the whole machinery of sampling. Exit code 1 if the resident
memory after the first tenth, when caches are full, and at the end differ by more than 10 MB, or the open files or
threads at all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ovd_gym import ScriptedAgent, Task, ToolEnv, tool
from ovd_gym.agents.base import Agent
from ovd_gym.agents.searchers import follow_plans
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.rollout import Schedule, rollout

CONCURRENT = 64
INTERVALS = 20
MOST_GROWTH_MB = 10.0


def main() -> None:
    """Play, and print what the process holds at intervals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--agent", choices=("scripted", "tiny"), default="scripted")
    parser.add_argument("--schedule", choices=("lock-step", "free-running"), default="lock-step")
    arguments = parser.parse_args()
    rows = measure(arguments.episodes, arguments.agent, Schedule(schedule=arguments.schedule))
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    sys.exit(not is_flat(rows))


def measure(episodes: int, kind: str, schedule: Schedule) -> list[dict[str, Any]]:
    """A row at the start and after every twentieth of ``episodes``."""
    envs, agent = scripted_search() if kind == "scripted" else tiny_sums()
    tasks = envs[0].tasks
    rows, began, played, right = [held(0, 0, 0.0)], time.monotonic(), 0, 0
    while played < episodes:
        batch = [tasks[(played + i) % len(tasks)] for i in range(CONCURRENT)]
        right += sum(t.reward == 1.0 for t in rollout(batch, envs, agent, seed=(played,), schedule=schedule))
        played += CONCURRENT
        if played >= len(rows) * episodes / INTERVALS:
            rows.append(held(played, right, time.monotonic() - began))
    return rows


def scripted_search() -> tuple[Sequence[ToolEnv], Agent]:
    """The fictional world, and plans that solve it."""
    first = SearchEnv(task_options={"count": 500})
    envs = [first, *(SearchEnv(**first.shared_options()) for _ in range(CONCURRENT - 1))]
    return envs, ScriptedAgent(follow_plans(first.tasks))


class Sums(ToolEnv):
    """A world with short prompts."""

    @tool
    def add(self, text: str) -> str:
        """Add numbers."""
        return str(sum(int(word) for word in text.split() if word.isdecimal()))

    def grade(self, task: Task, answer: str) -> float:
        """Whether the sum is right."""
        return float(answer == task.answers[0])


def tiny_sums() -> tuple[Sequence[ToolEnv], Agent]:
    """Sums, and a Llama of two layers with random weights and a tokenizer of bytes."""

    from ovd_gym.agents.student import Student, make_chat
    from ovd_gym.llm.decoder import Decoder
    from ovd_gym.llm.tiny import byte_tokenizer, tiny_llama
    from ovd_gym.llm.transformers_lm import TransformersLM

    tokenizer = byte_tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 4096,
        "initializer_range": 0.2,
    }
    lm = TransformersLM(Decoder(tiny_llama(tokenizer, **shape)), tokenizer)
    tasks = [Task(id=str(i), question=f"{i} + {i}", answers=(str(2 * i),)) for i in range(500)]
    envs = [Sums(tasks, action_format="line", max_turns=2) for _ in range(CONCURRENT)]
    return envs, Student(lm, make_chat(tokenizer, "plain"), max_turn_tokens=6)


def held(played: int, right: int, seconds: float) -> dict[str, Any]:
    """What this process holds; sizes in MB, threads once those of the last rollout have ended."""
    for thread in [thread for thread in threading.enumerate() if thread.name.startswith("tools")]:
        thread.join()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return {
        "episodes": played,
        "right": right,
        "rss_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
        "open_files": len(os.listdir("/proc/self/fd")) - 1,  # the listing itself is one
        "threads": threading.active_count(),
        "seconds": seconds,
    }


def is_flat(rows: list[dict[str, Any]]) -> bool:
    """Whether nothing has grown since the first tenth."""
    early, last = rows[max(1, INTERVALS // 10)], rows[-1]
    same = all(early[what] == last[what] for what in ("open_files", "threads"))
    return same and abs(last["rss_mb"] - early["rss_mb"]) <= MOST_GROWTH_MB


def show(rows: list[dict[str, Any]]) -> None:
    """Print ``rows`` as a table."""
    table = Table("episodes", "right", "RSS MB", "open files", "threads", "episodes/s")
    for row in rows:
        rate = f"{row['episodes'] / row['seconds']:.0f}" if row["seconds"] else "-"
        counts = (str(row[what]) for what in ("open_files", "threads"))
        table.add_row(f"{row['episodes']:,}", f"{row['right']:,}", f"{row['rss_mb']:.1f}", *counts, rate)
    Console().print(table)


if __name__ == "__main__":
    main()
