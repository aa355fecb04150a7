"""Training ahead of its updates against training in step, in a world with a slow tool.

The same run of a random two-layer model, ``--steps`` steps, once with ``rollout.staleness: 0`` and once with
``--staleness``, in turns, ``--repeats`` times. Every call of the tool takes ``--tool-s`` seconds; the learner makes
``--epochs`` passes over each batch. Nothing is learned here: what counts is how long a step takes.

Example: python benchmarks/ahead.py --steps 12 --tool-s 0.5
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.table import Table

from ovd_gym import Task, ToolEnv, tool, train
from ovd_gym.llm.tiny import byte_tokenizer, save_model, tiny_llama
from ovd_gym.progress import Display
from ovd_gym.recorder import Recorder


class Slow(ToolEnv):
    """Whatever is said is an answer, and grading it takes its time."""

    seconds = 0.5

    @tool
    def wait(self) -> str:
        """Do nothing."""
        return "done"

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """As ever, but slowly."""
        time.sleep(self.seconds)
        return super().step(action)

    def grade(self, task: Task, answer: str) -> float:
        """By length: rewards differ within a group."""
        return (len(answer) % 7) / 6


def tiny(folder: Path) -> Path:
    """A random model over bytes."""
    tokenizer = byte_tokenizer()
    save_model(tiny_llama(tokenizer, max_position_embeddings=1024), tokenizer, folder)
    return folder


def run(model: Path, folder: Path, chosen: argparse.Namespace, staleness: int) -> tuple[float, float]:
    """Seconds per step after the first, and mean staleness."""
    laid: dict[str, Any] = {
        "student": {"model": str(model), "chat": "plain", "max_turn_tokens": 32, "device": "cpu"},
        "env": {"id": "Slow-v0", "options": {"action_format": "line", "max_turns": 3}},
        "teacher": None,
        "credit.arm": "grpo",
        "rollout": {"tasks_per_step": 4, "group_size": 4, "staleness": staleness},
        "learner": {"lora_rank": 0, "learning_rate": 1e-5, "epochs": chosen.epochs},
        "steps": chosen.steps,
        "run_dir": str(folder),
    }
    train(settings=laid, display=Display(chosen.steps, Console(file=io.StringIO())))
    rows = Recorder.resume(folder).metrics()[1:]
    return statistics.mean(row["seconds"] for row in rows), statistics.mean(row.get("staleness", 0) for row in rows)


def main() -> None:
    """Print seconds per step of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--tool-s", type=float, default=0.5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--staleness", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    Slow.seconds = chosen.tool_s
    tasks = [Task(id=str(i), question=f"{i}?", answers=("",)) for i in range(64)]
    gym.register("Slow-v0", f"{__name__}:Slow", kwargs={"tasks": tasks})
    seconds: dict[int, list[float]] = {0: [], chosen.staleness: []}
    old: dict[int, list[float]] = {0: [], chosen.staleness: []}
    with tempfile.TemporaryDirectory() as home:
        model = tiny(Path(home) / "model")
        for repeat in range(chosen.repeats):
            for staleness in seconds:
                took, mean = run(model, Path(home) / f"{staleness}-{repeat}", chosen, staleness)
                seconds[staleness].append(took)
                old[staleness].append(mean)
    table = Table("rollout.staleness", "s/step, median", "from - to", "speed-up", "mean staleness")
    base = statistics.median(seconds[0])
    for staleness, values in seconds.items():
        middle = statistics.median(values)
        span = f"{min(values):.2f} - {max(values):.2f}"
        mean = statistics.mean(old[staleness])
        table.add_row(str(staleness), f"{middle:.2f}", span, f"{base / middle:.2f}", f"{mean:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
