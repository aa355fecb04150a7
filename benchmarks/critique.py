"""What it costs to score every step: ``python benchmarks/critique.py [DATA] [--model NAME] [--json PATH]``.

DATA holds attempts (whatever ``load_attempts`` reads). The digit teacher scores each attempt of ``--steps`` steps,
every step and the whole: in separate passes one by one, in separate passes padded to a batch, and packed, where the
prompts share what they begin with. All three run on the same threads of the same machine, one after the other.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from ovd_gym.llm.choice_local import LocalChoices
from ovd_gym.llm.local_reader import LocalReader
from ovd_gym.llm.models import load_model
from ovd_gym.teachers.base import View
from ovd_gym.teachers.digits import DigitTeacher
from ovd_gym.teachers.labelled import load_attempts
from ovd_gym.teachers.prompting import Prompts

DATA = Path(__file__).resolve().parents[1].parent / "shared/data/critic/search_trajectories_hotpotqa.jsonl.gz"
NONCE = "0123456789abcdef"
PADDED_TOKENS = 8192
"""Size of a padded batch."""


class Cost(NamedTuple):
    """What it took to score some views, and the scores."""

    tokens: int
    seconds: float
    cpu_s: float
    scores: list[float]


def main() -> None:
    """Score the attempts in all three ways and print what they cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=DATA, help="attempts")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct", help="the teacher")
    parser.add_argument("--steps", type=int, default=8, help="steps of an attempt")
    parser.add_argument("--attempts", type=int, default=4, help="how many attempts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", help="where to run; the first GPU or the CPU")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    chosen = [each for each in load_attempts(arguments.data) if len(each.steps) == arguments.steps][
        : arguments.attempts
    ]
    if not chosen:
        parser.error(f"{arguments.data}: no attempt of {arguments.steps} steps")
    pair = load_model(arguments.model, device=arguments.device)
    results = measure([attempt.views() for attempt in chosen], pair) | {
        "model": arguments.model,
        "device": str(pair[0].device),
        "threads": arguments.threads,
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def measure(attempts: Sequence[Sequence[View]], pair: Any) -> dict[str, Any]:
    """Totals over ``attempts``, each judged by itself, in all three ways."""
    teacher = DigitTeacher(LocalChoices(pair, min_mass=0.0), nonce=NONCE)
    padding = Padded(pair)
    ways: dict[str, Callable[[Sequence[View]], Cost]] = {
        "separate, one by one": lambda views: judge(teacher, [[view] for view in views]),
        "separate, padded": padding.judge,
        "packed": lambda views: judge(teacher, [views]),
    }
    for way in ways.values():
        way(attempts[0][:2])  # what only the first call does
    costs = {name: [way(views) for views in attempts] for name, way in ways.items()}
    reference = [score for cost in costs["separate, one by one"] for score in cost.scores]
    rows = {}
    for name, each in costs.items():
        scores = [score for cost in each for score in cost.scores]
        rows[name] = {
            "tokens": sum(cost.tokens for cost in each),
            "seconds": sum(cost.seconds for cost in each),
            "cpu_s": sum(cost.cpu_s for cost in each),
            "score_difference": max(abs(a - b) for a, b in zip(scores, reference, strict=True)),
        }
    return {"attempts": len(attempts), "views": len(reference), "ways": rows}


def judge(teacher: DigitTeacher, batches: Sequence[Sequence[View]]) -> Cost:
    """The teacher's scores, a batch at a time."""
    before, started, cpu = teacher.usage().prompt_tokens, time.perf_counter(), time.process_time()
    scores = [score.mean for batch in batches for score in teacher.score_batch(batch)]
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    return Cost(
        teacher.usage().prompt_tokens - before, seconds, cpu_s, [score for score in scores if score is not None]
    )


class Padded:
    """The usual way: prompts padded on the left to the longest, as many as fit a batch."""

    def __init__(self, pair: Any) -> None:
        self.model = pair[0]
        self.reader = LocalReader(pair)
        self.digits = [self.reader.encode(str(digit))[-1] for digit in range(10)]

    def judge(self, views: Sequence[View]) -> Cost:
        """Expected digits of ``views``; ``tokens`` counts the padding, which is computed as well."""
        started, cpu, tokens = time.perf_counter(), time.process_time(), 0
        prompts = [Prompts().render(view, nonce=NONCE, reserved=self.reader.reserved) for view in views]
        ids = [self.reader.encode(self.reader.chat(each.system, each.user) + each.prefill) for each in prompts]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        scores = [0.0] * len(ids)
        while order:
            longest = len(ids[order[0]])
            rows, order = order[: max(1, PADDED_TOKENS // longest)], order[max(1, PADDED_TOKENS // longest) :]
            tokens += longest * len(rows)
            for i, score in zip(rows, self.score([ids[i] for i in rows], longest), strict=True):
                scores[i] = score
        return Cost(tokens, time.perf_counter() - started, time.process_time() - cpu, scores)

    @torch.no_grad()
    def score(self, batch: Sequence[Sequence[int]], longest: int) -> list[float]:
        """[B] expected digits."""
        ids = torch.tensor([[0] * (longest - len(each)) + list(each) for each in batch], device=self.model.device)
        mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in batch], device=self.model.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        logits = self.model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1]
        expected = logits[:, self.digits].double().softmax(-1) @ torch.arange(10.0, device=logits.device).double()
        return [float(score) for score in expected]


def show(results: dict[str, Any]) -> None:
    """Print ``results`` as a table, ratios against separate passes one by one."""
    names = ("model", "device", "threads", "python", "torch", "transformers", "attempts", "views")
    console = Console()
    console.print("  ".join(f"{name} {results[name]}" for name in names))
    table = Table("way", "tokens", "fewer", "seconds", "CPU s", "faster (CPU)", "largest score difference")
    first = results["ways"]["separate, one by one"]
    for name, row in results["ways"].items():
        fewer, faster = first["tokens"] / row["tokens"], first["cpu_s"] / row["cpu_s"]
        seconds, difference = f"{row['seconds']:.1f}", f"{row['score_difference']:.1e}"
        table.add_row(
            name, f"{row['tokens']:,}", f"{fewer:.1f} x", seconds, f"{row['cpu_s']:.1f}", f"{faster:.1f} x", difference
        )
    console.print(table)


if __name__ == "__main__":
    main()
