"""What a rollout costs, side by side in one run: ``python benchmarks/rollout.py [model] [steps] [tails]``.

- ``model``: four-turn episodes of a language model. Our backend, whose cache is kept across turns and shared between
  prompts, against a plain loop that encodes the whole conversation again and calls ``model.generate`` for every turn.
  Same model, tasks, environment and sampling, and as many episodes at a time.
- ``steps``: environment steps per second with no model at all, for a trivial tool and 256 episodes at a time.
- ``tails``: lock-step against free-running with tools whose latency has a heavy tail: log-normal, median 50 ms, 99th
  percentile 5 s, cut at 10 s (all ``--scale``), drawn from the task, so that all wait for exactly the same calls.

Where TRL is installed, ``model`` is also played by its GRPOTrainer's own rollout (``rollout_trl.py``), all episodes at
once. Where the package ``gem-llm`` is installed, ``steps`` and ``tails`` are also played by its thread-pool vector
environment (a step of all environments returns when the slowest has), with the same tools and latencies.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ovd_gym import Message, ScriptedAgent, Task, ToolEnv, tool
from ovd_gym.actions.base import Found
from ovd_gym.actions.hermes import Hermes
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.records import ToolCall, ToolSpec
from ovd_gym.rollout import FREE_RUNNING, LOCK_STEP, Schedule, rollout

Row = dict[str, Any]
Play = Callable[[], dict[str, int]]
"""Plays, and says how much there was of what."""
TURNS = 4
MEDIAN_S, P99_S, DEADLINE_S = 0.05, 5.0, 10.0
SIGMA = math.log(P99_S / MEDIAN_S) / 2.326
WORDS = ["the", "river", "city", "of", "harbour", "was", "founded", "in", "a", "year", "by", "its", "first", "mayor"]


def main() -> None:
    """Print the chosen parts, and perhaps write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["model", "steps", "tails"], choices=["model", "steps", "tails"])
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--tasks", type=int, default=8, help="of the model, each asked --group times")
    parser.add_argument("--group", type=int, default=4)
    parser.add_argument("--rows", type=int, default=32, help="the model's episodes at a time")
    parser.add_argument("--turn-tokens", type=int, default=48, help="the most that the model may say in a turn")
    parser.add_argument("--episodes", type=int, default=4096, help="of steps and tails")
    parser.add_argument("--concurrent", type=int, default=256, help="episodes of steps and tails at a time")
    parser.add_argument("--scale", type=float, default=0.1, help="of the latencies")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    chosen = parser.parse_args()
    parts = {"model": of_models, "steps": of_steps, "tails": of_tails}
    rows = [row for part in chosen.parts for row in timed(part, parts[part](chosen))]
    show(rows)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def timed(part: str, kinds: dict[str, Play]) -> Iterator[Row]:
    """A row for each of ``kinds``; ``ratio`` compares the last of their rates with that of the first."""
    base = None
    for kind, play in kinds.items():
        torch.manual_seed(0)
        began = time.monotonic()
        counts = play()
        seconds = time.monotonic() - began
        rates = {f"{what}_per_s": count / seconds for what, count in counts.items()}
        rate = list(rates.values())[-1]
        base = base or rate
        yield {"part": part, "kind": kind, **counts, "seconds": seconds, **rates, "ratio": rate / base}


def show(rows: Sequence[Row]) -> None:
    """Print ``rows`` as a table."""
    table = Table("part", "kind", "episodes", "seconds", "episodes/s", "computed", "tokens/s", "steps/s", "ratio")
    for row in rows:
        rates = (f"{row[what]:,.1f}" if what in row else "" for what in ("tokens_per_s", "steps_per_s"))
        table.add_row(
            row["part"], row["kind"], f"{row['episodes']:,}", f"{row['seconds']:.1f}", f"{row['episodes_per_s']:,.2f}",
            f"{row['computed']:,}" if "computed" in row else "",
            *rates, f"{row['ratio']:.2f}",
        )  # fmt: skip
    Console(width=110).print(table)
    print(f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    print(torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} torch threads")


# With a language model -----------------------------------------------------------------------------------


def page(words: np.random.Generator) -> str:
    """60 words."""
    return " ".join(words.choice(WORDS, size=60))


class EveryTextIsACall(Hermes):
    """Explains calls as Hermes does, and takes any text for one: episodes have as many turns for any model."""

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:
        """One call of ``look``."""
        return [Found(0, ToolCall(name="look", arguments={"query": text[:80]}))]


class Reading(ToolEnv):
    """Whatever is said, a page of 60 words comes back, until the turns are over."""

    @tool
    def look(self, query: str) -> str:
        """Look up a page of the archive.

        Args:
            query: what the page should be about, in a few words; names and years help.
        """
        return page(self._words)

    def start_episode(self, task: Task) -> None:
        """Draw this task's pages."""
        self._words = np.random.default_rng(int(task.id))

    def grade(self, task: Task, answer: str) -> float:
        """Nobody gets here."""
        return 0.0


def of_models(chosen: argparse.Namespace) -> dict[str, Play]:
    """The plain loop, and our backend in both schedules."""
    model: Any
    model, tokenizer = load_model(chosen.model)
    tokenizer.padding_side = "left"  # for the plain loop
    student = Student(TransformersLM(Decoder(model), tokenizer), make_chat(tokenizer, "template"), chosen.turn_tokens)
    tasks = [Task(id=str(i), question=f"Who founded city {i}, and when?", answers=("?",)) for i in range(chosen.tasks)]
    envs = [Reading(tasks, action_format=EveryTextIsACall(), max_turns=TURNS) for _ in range(chosen.rows)]

    def ours(schedule: Schedule) -> dict[str, int]:
        played = rollout(tasks, envs, student, group_size=chosen.group, schedule=schedule)
        return {"episodes": len(played), "tokens": sum(t.num_sampled for t in played)}

    def counted(play: Play, model: Any = model) -> Play:
        """``play``, and how many tokens went through the model for it, padding included: what no other load changes."""

        def played() -> dict[str, int]:
            read = 0

            def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
                nonlocal read
                read += kwargs["input_ids"].numel()

            hook = model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
            counts = play()
            hook.remove()
            return {"episodes": counts["episodes"], "computed": read, "tokens": counts["tokens"]}

        return played

    kinds: dict[str, Play] = {
        "plain generate": lambda: generate_loop(model, tokenizer, tasks, envs, chosen),
        "ours, lock-step": lambda: ours(LOCK_STEP),
        "ours, free-running": lambda: ours(FREE_RUNNING),
    }
    return {kind: counted(play) for kind, play in kinds.items()} | of_trl(chosen, tasks, counted)


def of_trl(chosen: argparse.Namespace, tasks: Sequence[Task], counted: Callable[[Play, Any], Play]) -> dict[str, Play]:
    """TRL's rollout, with a copy of the model, if TRL is installed."""
    if importlib.util.find_spec("trl") is None:
        return {}
    from rollout_trl import prepare

    model, tokenizer = load_model(chosen.model)
    words = np.random.default_rng(0)
    questions = [task.question for task in tasks]
    play = prepare(model, tokenizer, questions, chosen.group, TURNS, chosen.turn_tokens, lambda: page(words))
    return {"TRL": counted(play, model)}


@torch.inference_mode()
def generate_loop(
    model: Any, tokenizer: Any, tasks: Sequence[Task], envs: Sequence[Reading], chosen: argparse.Namespace
) -> dict[str, int]:
    """Batches that call ``model.generate`` on the whole conversation, turn after turn."""
    questions, tokens = [task for task in tasks for _ in range(chosen.group)], 0
    for first in range(0, len(questions), len(envs)):
        batch = list(zip(questions[first : first + len(envs)], envs, strict=False))
        talks: list[list[dict[str, str]]] = []
        for task, env in batch:
            env.reset(options={"task": task})
            talks.append([{"role": message.role, "content": message.content} for message in env.opening()])
        for _ in range(TURNS):
            inputs = tokenizer.apply_chat_template(
                talks, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
            ).to(model.device)
            output = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=chosen.turn_tokens)
            for (_, env), talk, ids in zip(batch, talks, output[:, inputs["input_ids"].shape[1] :], strict=True):
                ended = (ids == tokenizer.eos_token_id).nonzero()
                said = ids[: int(ended[0]) + 1] if len(ended) else ids
                tokens += len(said)
                text = tokenizer.decode(said, skip_special_tokens=True)
                talk += [{"role": "assistant", "content": text}, {"role": "user", "content": env.step(text)[0]}]
    return {"episodes": len(questions), "tokens": tokens}


# Without one ---------------------------------------------------------------------------------------------


class Waiting(ToolEnv):
    """A tool that does nothing, or takes its time."""

    scale = 0.0

    @tool
    def wait(self) -> str:
        """Wait as long as this episode's next latency says."""
        wait(self._latencies, self.scale)
        return "done"

    def start_episode(self, task: Task) -> None:
        """Draw this task's latencies."""
        self._latencies = np.random.default_rng(int(task.id))

    def grade(self, task: Task, answer: str) -> float:
        """Every answer is right."""
        return 1.0


def wait(latencies: np.random.Generator, scale: float) -> None:
    """Sleep for the next latency, not at all with scale 0."""
    if scale:
        time.sleep(scale * min(MEDIAN_S * math.exp(SIGMA * float(latencies.standard_normal())), DEADLINE_S))


def policy(messages: Sequence[Message]) -> str:
    """Three calls, then the answer."""
    return "wait: {}" if len(messages) < 2 * TURNS else "answer: done"


def of_steps(chosen: argparse.Namespace) -> dict[str, Play]:
    """Both schedules with a trivial tool."""
    return without_model(chosen, 0.0, Schedule().tool_threads)


def of_tails(chosen: argparse.Namespace) -> dict[str, Play]:
    """Both schedules with slow tools, as many at a time as there are episodes."""
    return without_model(chosen, chosen.scale, chosen.concurrent)


def without_model(chosen: argparse.Namespace, scale: float, threads: int) -> dict[str, Play]:
    """Scripted episodes in both schedules, and by GEM where it is installed."""
    tasks = [Task(id=str(i), question="?", answers=("",)) for i in range(chosen.episodes)]
    envs = [Waiting(tasks[:1], action_format="line", max_turns=TURNS) for _ in range(chosen.concurrent)]
    for env in envs:
        env.scale = scale

    def ours(schedule: Schedule) -> dict[str, int]:
        played = rollout(tasks, envs, ScriptedAgent(policy), schedule=schedule)
        return {"episodes": len(played), "steps": sum(len(t.steps) for t in played)}

    kinds: dict[str, Play] = {
        kind: lambda schedule=schedule: ours(schedule.model_copy(update={"tool_threads": threads}))  # type: ignore[misc]
        for kind, schedule in (("ours, lock-step", LOCK_STEP), ("ours, free-running", FREE_RUNNING))
    }
    if importlib.util.find_spec("gem"):
        kinds = {"GEM, AsyncVectorEnv": lambda: gem_loop(chosen, scale), **kinds}
    return kinds


def gem_loop(chosen: argparse.Namespace, scale: float) -> dict[str, int]:
    """The same calls in GEM's thread-pool vector environment, batch after batch of episodes."""
    from gem.core import Env  # type: ignore[import-not-found]
    from gem.vector.async_vector_env import AsyncVectorEnv  # type: ignore[import-not-found]

    class GemWaiting(Env):  # type: ignore[misc]
        def reset(self, seed: int | None = None) -> tuple[str, dict[str, Any]]:
            super().reset(seed)
            self._latencies, self._turn = np.random.default_rng(seed), 0
            return "?", {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            self._turn += 1
            if self._turn < TURNS:
                wait(self._latencies, scale)
            return "done", 0.0, self._turn == TURNS, False, {}

    vector = AsyncVectorEnv([str(i) for i in range(chosen.concurrent)], [GemWaiting] * chosen.concurrent)
    for first in range(0, chosen.episodes, chosen.concurrent):
        vector.reset(seed=list(range(first, first + chosen.concurrent)))
        for _ in range(TURNS):
            vector.step(["wait: {}"] * chosen.concurrent)
    return {"episodes": chosen.episodes, "steps": chosen.episodes * TURNS}


if __name__ == "__main__":
    main()
