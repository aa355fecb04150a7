"""Makes tiny-adder: a language model of 0.3 million parameters over 16 characters, from scratch.

It learns from right solutions until it solves a given share of fresh questions: a fifth makes a student with much to
learn, nearly all a teacher. The same seed, machine and number of threads give the same model.

Example: python examples/sums/tiny_adder.py runs/tiny-adder --until 0.2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sums import solution, sums
from tokenizers import Tokenizer, decoders, models
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.llm.tiny import save_model, tiny_llama, tokenizer_of

IGNORED = -100
"""Target of a token that is read, but not learned to be written."""
ROWS = 64
"""Solutions in a lesson."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the model and save it as a transformers folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--until", type=float, default=0.2, help="share of fresh questions to be solved greedily")
    parser.add_argument("--lessons", type=int, default=4000, help=f"optimiser steps of {ROWS} solutions each, at most")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    tokenizer = characters()
    model = tiny_llama(tokenizer, chosen.seed, max_position_embeddings=128)
    questions = sums(min(20_000, 256 + ROWS * chosen.lessons), seed=1_000_000 + chosen.seed)
    pool = [lesson(tokenizer, task.question) for task in questions]
    learn(model, pool[256:], pool[:256], chosen.lessons, chosen.until, np.random.default_rng(chosen.seed))
    save_model(model, tokenizer, chosen.folder)


def characters() -> PreTrainedTokenizerFast:
    """A token for each character of the world, and one for the end."""
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("0123456789+=;#>^")}, merges=[]))
    core.decoder = decoders.Fuse()
    return tokenizer_of(core)


def lesson(tokenizer: PreTrainedTokenizerFast, question: str) -> list[tuple[int, int]]:
    """Tokens of a right episode as ``train.yaml`` lays it out, each with its target: itself, or IGNORED."""
    pieces = [(f"^{question}", False)]
    for turn in solution(question):
        pieces += [(">", False), (turn, True)]
    encoded = ((tokenizer(text).input_ids, learned) for text, learned in pieces)
    return [(token, token if learned else IGNORED) for ids, learned in encoded for token in ids]


def batch(rows: Sequence[list[tuple[int, int]]]) -> tuple[Tensor, Tensor]:
    """[B, T] tokens and targets, right-padded."""
    width = max(map(len, rows))
    tokens_BT, targets_BT = torch.tensor([[*row, *[(0, IGNORED)] * (width - len(row))] for row in rows]).unbind(dim=-1)
    return tokens_BT, targets_BT


def learn(
    model: LlamaForCausalLM,
    rows: Sequence[list[tuple[int, int]]],
    fresh: Sequence[list[tuple[int, int]]],
    lessons: int,
    until: float,
    rng: np.random.Generator,
    peak: float = 2e-3,
) -> None:
    """Optimiser steps until ``until`` of the ``fresh`` rows are solved; the rate falls from ``peak`` towards zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(lessons):
        for group in optimizer.param_groups:
            group["lr"] = peak * min((step + 1) / 50, 1 - step / lessons)
        tokens_BT, targets_BT = batch([rows[i] for i in rng.integers(len(rows), size=ROWS)])
        logits_BTV = model(input_ids=tokens_BT).logits
        loss = cross_entropy(logits_BTV[:, :-1].flatten(0, 1), targets_BT[:, 1:].flatten(), ignore_index=IGNORED)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            share = solved(model, fresh)
            print(f"lesson {step + 1}: {loss:.3f} nats per token, {share:.2f} solved", flush=True)
            if share >= until:
                return


@torch.no_grad()
def solved(model: LlamaForCausalLM, rows: Sequence[list[tuple[int, int]]]) -> float:
    """Share of ``rows`` that greedy decoding would write: every learned token is the likeliest one."""
    tokens_BT, targets_BT = batch(rows)
    guesses_BT = model(input_ids=tokens_BT).logits[:, :-1].argmax(dim=-1)
    right_BT = (guesses_BT == targets_BT[:, 1:]) | (targets_BT[:, 1:] == IGNORED)
    return float(right_BT.all(dim=1).float().mean())


if __name__ == "__main__":
    main()
