"""Time and memory of one training step of SmolLM2-135M, side by side with TRL's GRPOTrainer.

Both train the same LoRA adapters on the same prompts with as many samples of the same length, on the CPU in float32:
sample, reward, group-relative advantages, one optimiser step. Every side is a process of its own and repeats the step;
the first step warms up and is left out. Memory is the highest resident set of the whole process, weights and libraries
included. Both sides are run with and without gradient checkpointing: the one is leaner, the other faster.

- ``short``: 8 sums, 8 samples each, 4 new tokens; the reward is 1 where the sum is right
- ``long``: 1 prompt, 4 samples, 448 new tokens; the reward is the share of distinct tokens

Example: python benchmarks/learner.py --trl path/to/an/environment/with/trl/bin/python --json learner.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ovd_gym.batch import pack
from ovd_gym.config import LearnerConfig
from ovd_gym.credit import CreditConfig, assign_credit
from ovd_gym.learner import Learner, trainable_model
from ovd_gym.llm.base import Completion, Sampling
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model, resolve_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.records import Step, Task, Trajectory

CASES: dict[str, dict[str, int]] = {
    "short": {"tasks": 8, "samples": 8, "tokens": 4},
    "long": {"tasks": 1, "samples": 4, "tokens": 448},
}
TARGETS = {"short": (0.4, 0.7), "long": (1.0, 0.7)}
"""Shares of TRL's time and peak memory that a step may take."""


def case_of(name: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Everything that both sides are told."""
    rng = random.Random(0)
    sums = [(rng.randint(10, 99), rng.randint(1, 99)) for _ in range(8)]
    short = name == "short"
    shape = CASES[name]
    return {
        "model": str(resolve_model(chosen.model)),
        "prompts": [f"2 + 5 = 7\n13 + 24 = 37\n{a} + {b} =" for a, b in sums] if short else ["The bicycle was"],
        "answers": [str(a + b) for a, b in sums] if short else [""],
        "samples": shape["samples"],
        "tokens": shape["tokens"],
        "steps": 1 + chosen.steps,
        "threads": chosen.threads,
        "learning_rate": 2e-4,
        "rank": 16,
    }


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """The steps of ``case`` by this library, in this process."""
    torch.set_num_threads(case["threads"])
    model, tokenizer = load_model(case["model"])
    config = LearnerConfig(
        lora_rank=case["rank"], learning_rate=case["learning_rate"], gradient_checkpointing=case["checkpointing"]
    )
    decoder = Decoder(trainable_model(model, config, seed=0))
    lm, learner = TransformersLM(decoder, tokenizer), Learner(decoder, config, case["steps"])
    steps, sampling, informative = [], [], []
    for step in range(case["steps"]):
        began = time.perf_counter()
        trajectories = sample(lm, tokenizer, case, step)
        credits = assign_credit(trajectories, [], CreditConfig(arm="grpo", normalize=True))
        sampled = time.perf_counter()
        learner.update(pack(trajectories, credits), step)
        steps.append(time.perf_counter() - began)
        sampling.append(sampled - began)
        informative.append(sum(credit.informative for credit in credits) / len(credits))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"steps": steps, "sampling": sampling, "peak": peak, "informative": informative}


def sample(lm: TransformersLM, tokenizer: PreTrainedTokenizerBase, case: dict[str, Any], step: int) -> list[Trajectory]:
    """``samples`` episodes of one turn for every prompt."""
    prompts = [tokenizer.encode(prompt) for prompt in case["prompts"] for _ in range(case["samples"])]
    session = lm.open([step * len(prompts) + i for i in range(len(prompts))], Sampling(case["tokens"]))
    completions: dict[int, Completion] = {}
    with closing(session):
        session.submit(dict(enumerate(prompts)))
        while len(completions) < len(prompts):
            completions |= session.advance()
    return [episode(i, prompts[i], completion, case) for i, completion in sorted(completions.items())]


def episode(index: int, prompt: Sequence[int], completion: Completion, case: dict[str, Any]) -> Trajectory:
    """The record of one sampled completion, with its reward."""
    assert len(completion.ids) == case["tokens"], "an early end: not the same work"
    group = index // case["samples"]
    answer = case["answers"][group]
    right = float(completion.text.strip().split("\n")[0] == answer)
    return Trajectory(
        id=str(index),
        group_id=str(group),
        task=Task(id=str(group), question=case["prompts"][group], answers=(answer,)),
        steps=(Step(text=completion.text, start=len(prompt), end=len(prompt) + len(completion.ids)),),
        token_ids=(*prompt, *completion.ids),
        logprobs=(*[0.0] * len(prompt), *completion.logprobs),
        reward=right if answer else len(set(completion.ids)) / len(completion.ids),
        status="terminated",
    )


def spawn(interpreter: str, case: dict[str, Any]) -> dict[str, Any]:
    """One side in a process of its own."""
    ours = interpreter == sys.executable
    script = [__file__, "--one"] if ours else [str(Path(__file__).with_name("learner_trl.py"))]
    with tempfile.TemporaryDirectory() as folder:
        told = json.dumps({**case, "folder": folder})
        done = subprocess.run(
            [interpreter, *script, told],
            capture_output=True, text=True, check=False,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(case["threads"])},
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{interpreter} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every side of every case, then print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one that warms up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--trl", help="a Python interpreter that has TRL; without it TRL is skipped")
    parser.add_argument("--checkpointing", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        print(json.dumps(measure(json.loads(chosen.one))))
        return
    rows = []
    for name in chosen.cases:
        for switch in chosen.checkpointing:
            case = case_of(name, chosen) | {"checkpointing": switch == "on"}
            for side, interpreter in (("ovd_gym", sys.executable), ("TRL", chosen.trl)):
                if interpreter:
                    rows.append({"case": name, "checkpointing": switch, "side": side, **spawn(interpreter, case)})
    report = {
        "command": f"benchmarks/learner.py --cases {' '.join(chosen.cases)} --steps {chosen.steps} --trl PYTHON",
        "machine": {"device": platform.machine(), "threads": chosen.threads, "torch": torch.__version__},
        "rows": rows,
    }
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(rows)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Medians of the timed steps, peaks, and our shares of TRL's."""
    table = Table("case", "checkpointing", "side", "step, s", "sampling, s", "update, s", "peak, GB", "informative")
    for row in rows:
        step, sampling = timed(row, "steps"), timed(row, "sampling")
        update = statistics.median(a - b for a, b in zip(row["steps"][1:], row["sampling"][1:], strict=True))
        share = statistics.mean(row["informative"][1:])
        cells = (f"{step:.1f}", f"{sampling:.1f}", f"{update:.1f}", f"{row['peak'] / 1e9:.2f}", f"{share:.0%}")
        table.add_row(row["case"], row["checkpointing"], row["side"], *cells)
    console = Console(width=120)
    console.print(table)
    for ours, theirs in pairwise(rows):
        if (ours["side"], theirs["side"]) == ("ovd_gym", "TRL"):
            most_time, most_memory = TARGETS[ours["case"]]
            console.print(
                f"{ours['case']}, checkpointing {ours['checkpointing']}: "
                f"{timed(ours, 'steps') / timed(theirs, 'steps'):.2f} of TRL's time (target {most_time}), "
                f"{ours['peak'] / theirs['peak']:.2f} of its memory (target {most_memory})"
            )
    if all(row["side"] == "ovd_gym" for row in rows):
        console.print("TRL was not run: name an interpreter that has it with --trl")


def timed(row: dict[str, Any], key: str) -> float:
    """The median of the steps after the first, in seconds."""
    return float(statistics.median(row[key][1:]))


if __name__ == "__main__":
    main()
