"""What a backend that hangs costs: ``python benchmarks/hung.py [--concurrent N] [--deadline SECONDS]``.

Scripted episodes in the fictional world, all at once, lock-step and free-running; in each schedule once with a healthy
backend, once with one search that never returns, once with none that ever returns. Expected: the time of the healthy
run and one deadline of the tool (where all searches hang, one per round of ``tool_threads`` episodes); the episodes
that hung fail, and all others are token for token what they were without. Exit code 1 if it is otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from ovd_gym import ScriptedAgent, Task, Trajectory
from ovd_gym.agents.searchers import follow_plans
from ovd_gym.envs.web_search.base import Hit, SearchBackend
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.rollout import Schedule, rollout

SCHEDULES: tuple[Literal["lock-step", "free-running"], ...] = ("lock-step", "free-running")
SLACK_S = 2.0
"""What a run may take beyond the deadlines and the healthy run: the machine has other things to do."""


class Hanging:
    """A backend that never answers certain queries, until it is released."""

    name = "hanging"

    def __init__(self, backend: SearchBackend, queries: Collection[str]) -> None:
        self.backend, self.queries = backend, queries
        self.released = threading.Event()

    def search(self, query: str, top_k: int) -> list[Hit]:
        """The hits; for one of ``queries`` when it is too late."""
        if query in self.queries:
            self.released.wait()
        return self.backend.search(query, top_k)

    def passage(self, id: str) -> Any:
        """The passage with that id."""
        return self.backend.passage(id)  # type: ignore[attr-defined]

    def describe(self) -> Mapping[str, JsonValue]:
        """What the backend says."""
        return self.backend.describe()

    def close(self) -> None:
        """Let everything go."""
        self.released.set()


def main() -> None:
    """Print all runs; exit code 1 if one is not as expected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrent", type=int, default=64)
    parser.add_argument("--deadline", type=float, default=5.0, help="of one search, in seconds")
    parser.add_argument("--threads", type=int, default=32, help="tools that may run side by side")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    chosen = parser.parse_args()
    world = SearchEnv(task_options={"count": chosen.concurrent})
    play(world, (), chosen.deadline, Schedule(tool_threads=chosen.threads))  # the first run pays for writing the pages
    rows = [
        {"schedule": name, **row}
        for name in SCHEDULES
        for row in measure(world, chosen.deadline, Schedule(schedule=name, tool_threads=chosen.threads))
    ]
    show(rows, chosen.deadline)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    sys.exit(not all(row["as_expected"] for row in rows))


def measure(world: SearchEnv, deadline_s: float, schedule: Schedule) -> Iterator[dict[str, Any]]:
    """A row for no, one and all searches that hang."""
    queries = [first_query(task) for task in world.tasks]
    lone = next(query for query in queries if queries.count(query) == 1)
    healthy, base_s, _ = play(world, (), deadline_s, schedule)
    for what, hanging in (("none", []), ("one search", [lone]), ("every search", queries)):
        played, seconds, behind = play(world, hanging, deadline_s, schedule)
        failed = sum(t.status == "failed" for t in played)
        others_equal = all(a == b for a, b in zip(healthy, played, strict=True) if b.status != "failed")
        expected = sum(query in hanging for query in queries)
        limit_s = base_s + math.ceil(expected / schedule.tool_threads) * deadline_s + SLACK_S
        yield {
            "hangs": what,
            "episodes": len(played),
            "seconds": seconds,
            "extra_deadlines": (seconds - base_s) / deadline_s,
            "failed": failed,
            "left_behind": behind,
            "others_equal": others_equal,
            "as_expected": failed == behind == expected and others_equal and seconds <= limit_s,
        }


def first_query(task: Task) -> str:
    """What the plan of ``task`` searches for."""
    return str(task.metadata["gold_titles"][0])  # type: ignore[index]


def play(
    world: SearchEnv, hanging: Collection[str], deadline_s: float, schedule: Schedule
) -> tuple[list[Trajectory], float, int]:
    """The episodes of all tasks, the seconds they took, and the calls that were left behind."""
    backend = Hanging(world.backend, frozenset(hanging))
    tasks: Sequence[Task] = world.tasks
    envs = [SearchEnv(tasks, backend=backend, tool_timeout_s=deadline_s) for _ in tasks]
    began = time.monotonic()
    played = rollout(tasks, envs, ScriptedAgent(follow_plans(tasks)), schedule=schedule)
    seconds = time.monotonic() - began
    late = [thread for thread in threading.enumerate() if thread.name == "ovd-gym search"]
    backend.close()
    for thread in late:
        thread.join()
    return played, seconds, len(late)


def show(rows: Sequence[Mapping[str, Any]], deadline_s: float) -> None:
    """Print ``rows`` as a table."""
    headings = ("schedule", "hangs", "episodes", "seconds", "deadlines more", "failed", "left behind", "others equal")
    table = Table(*headings, title=f"deadline of a search: {deadline_s:g} s")
    for row in rows:
        times = (f"{row['seconds']:.2f}", f"{row['extra_deadlines']:.2f}")
        counts = (str(row[what]) for what in ("failed", "left_behind", "others_equal"))
        table.add_row(row["schedule"], row["hangs"], str(row["episodes"]), *times, *counts)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
