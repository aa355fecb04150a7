"""How far searchers without a model get: ``python benchmarks/scripted.py [--json PATH]``.

Played through ``SearchEnv`` with its default tools: on the closed sets in ``../shared/data/qa``, whose gold titles are
known, and in the fictional world. The columns are what the scripted searchers of :mod:`ovd_gym.agents.searchers` know:

* ``question``: nothing but the question; one search, the first result is opened, a guess;
* ``titles``: what to look for; the answer is given only where it was read. "Yes" and "no" stand on no page, so that
  comparisons count as wrong;
* ``titles, told yes/no``: an oracle for these: told the gold answer of a comparison once all its titles were found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ovd_gym import ScriptedAgent, Task
from ovd_gym.agents.scripted import Policy
from ovd_gym.agents.searchers import follow_titles, single_search
from ovd_gym.envs.web_search.base import SearchBackend
from ovd_gym.envs.web_search.datasets import closed_passages, closed_questions
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.envs.web_search.world import World
from ovd_gym.rollout import rollout
from ovd_gym.statistics import wilson_interval

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "qa"
SETS = ("hotpotqa", "2wikimultihopqa", "musique", "nq_open")
WORLD_SIZE, WORLD_QUESTIONS = 1000, 200
TARGET = ("hotpotqa", "titles, told yes/no", 97.0)
"""Set, searcher and the least share of right answers in percent."""

SEARCHERS: dict[str, Callable[[Sequence[Task]], Policy]] = {
    "question": lambda tasks: single_search(open_top=1),
    "titles": lambda tasks: follow_titles(tasks, open_top=1),
    "titles, told yes/no": lambda tasks: follow_titles(tasks, open_top=1, oracle=True),
}


def main() -> None:
    """Play all sets with all searchers; exit code 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    results = measure_sets() if DATA.is_dir() else {}
    world = World.generate(size=WORLD_SIZE)
    results["world, held out"] = measure(
        world.tasks(count=WORLD_QUESTIONS, split="held_out"), LocalIndex.in_memory(world.passages())
    )
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    name, searcher, least = TARGET
    parser.exit(name in results and results[name][searcher]["percent"] < least)


def measure_sets() -> dict[str, dict[str, Any]]:
    """The closed sets, of each the questions whose gold titles are known."""
    index = LocalIndex.in_memory(closed_passages(DATA))
    titled = {
        name: [task for task in closed_questions(name, data_folder=DATA) if "gold_titles" in task.metadata]
        for name in SETS
    }
    return {name: measure(tasks, index) for name, tasks in titled.items()}


def measure(tasks: Sequence[Task], backend: SearchBackend) -> dict[str, Any]:
    """Per searcher: questions, right answers (EM) in percent with a 95 % interval, right ones without yes/no."""
    envs = [SearchEnv(tasks, backend=backend, max_turns=20, max_tokens=100_000) for _ in tasks]
    rows: dict[str, Any] = {}
    for name, policy in SEARCHERS.items():
        played = rollout(tasks, envs, ScriptedAgent(policy(tasks)))
        right = [t for t in played if t.reward == 1.0]
        low, high = wilson_interval(len(right), len(tasks))
        rows[name] = {
            "questions": len(tasks),
            "right": len(right),
            "percent": 100 * len(right) / len(tasks),
            "interval": [100 * low, 100 * high],
            "failed": sum(t.status == "failed" for t in played),
            "yes_no": sum(map(yes_or_no, tasks)),
            "right_without_yes_no": sum(not yes_or_no(t.task) for t in right),
        }
    return rows


def yes_or_no(task: Task) -> bool:
    """Whether the answer is one that stands on no page."""
    return {answer.casefold() for answer in task.answers} <= {"yes", "no"}


def show(results: dict[str, Any]) -> None:
    """Print ``results`` as a table."""
    table = Table("right answers, % (EM, 95 % interval)", "questions", "of them yes/no", *SEARCHERS)
    for name, rows in results.items():
        first = next(iter(rows.values()))
        cells = (f"{r['percent']:.1f} [{r['interval'][0]:.1f}, {r['interval'][1]:.1f}]" for r in rows.values())
        table.add_row(name, str(first["questions"]), str(first["yes_no"]), *cells)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
