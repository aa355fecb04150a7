"""Peak memory of one update: token-level distillation against verbal scores, for the same student and batch.

Every measurement is a process of its own. On the CPU it is the growth of the resident set over the update, on a GPU
the growth of what torch has allocated. The student is small and its vocabulary large, so that what is measured is the
signal, not the network; the teacher of the token-level arms is a second model of the same size, and its weights are
not counted.

- ``naive``: both models' logits at once, as straightforward implementations have them
- ``full``, ``top-k``, ``sampled``: arm ``token-opd`` of this library, its logits in chunks
- ``ovd``: arm ``score-reward``

On a GPU the sizes are those of a real case unless given: 151,936 tokens (Qwen2.5), up to 8,192 tokens of context.

Example: python benchmarks/memory.py --lengths 512 1024 2048 4096 --json memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from ovd_gym.batch import Batch
from ovd_gym.config import DistillationConfig, LearnerConfig
from ovd_gym.learner import Learner
from ovd_gym.llm.decoder import Decoder

KINDS = ("naive", "full", "top-k", "sampled", "ovd")
LAYERS, WIDTH = 2, 64


def model(vocabulary: int, length: int, device: str, dtype: torch.dtype) -> Decoder:
    """A small network under a large vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=length, tie_word_embeddings=True,
    )  # fmt: skip
    network: torch.nn.Module = LlamaForCausalLM(config)
    return Decoder(network.to(device=device, dtype=dtype))


def batch_of(vocabulary: int, length: int) -> Batch:
    """One trajectory of ``length`` tokens, all but the first sampled."""
    ids = torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(length)[None] > 0
    ones = mask.float()
    none = torch.zeros_like(mask)
    return Batch(ids, torch.tensor([length]), mask, 0.5 * ones, -ones, none, torch.tensor([True]), *[0 * ones] * 3)


def naive(student: Decoder, teacher: Decoder, batch: Batch) -> None:
    """Reverse KL over the whole vocabulary, with plain tensor operations."""
    with torch.no_grad():
        theirs = torch.log_softmax(teacher.head(teacher.hidden(batch.token_ids_BT)).float(), -1)
    ours = torch.log_softmax(student.head(student.hidden(batch.token_ids_BT)).float(), -1)
    loss = (ours.exp() * (ours - theirs)).sum(-1)[:, 1:].mean()
    loss.backward()  # type: ignore[no-untyped-call]


def measure(kind: str, vocabulary: int, length: int, chunk: int, device: str) -> dict[str, float]:
    """Bytes and seconds of one update, in this process."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    student, teacher = (model(vocabulary, length, device, dtype) for _ in range(2))
    student.model.requires_grad_(True)
    teacher.model.requires_grad_(False)
    config = LearnerConfig(lora_rank=0, micro_batch_tokens=length, logit_chunk=chunk)
    learner = Learner(student, config, 2)

    def update(batch: Batch) -> None:
        if kind == "naive":
            naive(student, teacher, batch.to(student.device))
        elif kind == "ovd":
            learner.update(batch, 0)
        else:
            learner.distill(batch, 0, teacher, DistillationConfig(model="-", variant=kind))  # type: ignore[arg-type]

    update(batch_of(vocabulary, 16))  # gradients, optimiser state and libraries are there before the measurement
    with Peak(device) as peak:
        began = time.perf_counter()
        update(batch_of(vocabulary, length))
        seconds = time.perf_counter() - began
    return {"bytes": peak.grown, "seconds": seconds}


class Peak:
    """How much more memory is in use at most than on entry."""

    def __init__(self, device: str) -> None:
        self.grown = 0
        self._cuda = device == "cuda"
        self._stop = threading.Event()

    def __enter__(self) -> Peak:
        if self._cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
            return self
        self._before = self._highest = resident()
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._cuda:
            torch.cuda.synchronize()
            self.grown = torch.cuda.max_memory_allocated() - self._before
            return
        self._stop.set()
        self._watch.join()
        self.grown = self._highest - self._before

    def _sample(self) -> None:
        while not self._stop.wait(0.001):
            self._highest = max(self._highest, resident())


def resident() -> int:
    """Bytes of this process in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def formula(kind: str, vocabulary: int, length: int, chunk: int) -> int:
    """Bytes of the signal's own tensors: fp32 logits and log-probabilities of those tokens that exist at a time."""
    per_token = {"naive": 5, "full": 4, "top-k": 4, "sampled": 3, "ovd": 3}[kind] * 4 * vocabulary
    return per_token * (length if kind == "naive" else min(chunk, length))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every kind at every length, then print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument(
        "--lengths", nargs="+", type=int, default=[1024, 4096, 8192] if cuda else [512, 1024, 2048, 4096]
    )
    parser.add_argument("--vocabulary", type=int, default=151936 if cuda else 32768)
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.vocabulary, chosen.lengths[0], chosen.chunk, chosen.device)))
        return
    rows = [
        {"kind": kind, "length": length, "formula": formula(kind, chosen.vocabulary, length, chosen.chunk)}
        | _apart(kind, length, chosen)
        for length in chosen.lengths
        for kind in KINDS
    ]
    machine = {
        "device": torch.cuda.get_device_name() if chosen.device == "cuda" else platform.machine(),
        "torch": torch.__version__,
    }
    setting = {"vocabulary": chosen.vocabulary, "chunk": chosen.chunk, "layers": LAYERS, "width": WIDTH}
    report = {"command": " ".join(sys.argv), "machine": machine, "setting": setting, "rows": rows}
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    show(rows, chosen.lengths)


def show(rows: Sequence[dict[str, float | str]], lengths: Sequence[int]) -> None:
    """MiB per kind and length, the formula's beside it, and the growth per token between first and last length."""
    table = Table("update", *(f"L = {length}" for length in lengths), "KiB per further token", "ratio to naive")
    by = {(row["kind"], row["length"]): row for row in rows}
    further = lengths[-1] - lengths[0] or lengths[0]  # of one length, all of its tokens
    least = {k: by[k, lengths[0]]["bytes"] if len(lengths) > 1 else 0 for k in KINDS}
    slope = {k: (by[k, lengths[-1]]["bytes"] - least[k]) / further for k in KINDS}  # type: ignore[operator]
    for kind in KINDS:
        cells = [f"{by[kind, n]['bytes'] / 2**20:,.0f} ({by[kind, n]['formula'] / 2**20:,.0f})" for n in lengths]  # type: ignore[operator]
        table.add_row(kind, *cells, f"{slope[kind] / 1024:,.1f}", f"{slope[kind] / slope['naive']:.3f}")
    console = Console(width=140)
    console.print(table)
    console.print("MiB measured (MiB of the signal's tensors by formula)")


def _apart(kind: str, length: int, chosen: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", kind, "--lengths", str(length), "--device", chosen.device]
    command += ["--vocabulary", str(chosen.vocabulary), "--chunk", str(chosen.chunk)]
    # Large tensors go back to the system when they are freed: what is resident is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
