"""Our vLLM backend against vLLM called directly, over the same conversations, turn by turn.

Every conversation has ``--turns`` turns of ``--tokens`` sampled tokens, and reads ``--read`` tokens before each further
one. Directly: ``LLM.generate`` on all rows of ids, once a turn, with what was sampled and read appended. Ours: a
session in which all rows are fed at once. Both sample the same number of tokens from the same engine, in turns,
``--repeats`` times; prefix caching is on, and its cache is emptied before each run.

Example (in an environment with vLLM): python benchmarks/vllm_sampling.py --model SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from ovd_gym.llm.base import Sampling
from ovd_gym.llm.models import load_tokenizer
from ovd_gym.llm.vllm_lm import VllmLM

Ids = list[int]


def directly(lm: VllmLM, prompts: Sequence[Ids], reads: Sequence[Ids], tokens: int) -> int:
    """Sampled tokens of one run with ``LLM.generate``."""
    params = lm.vllm.SamplingParams(
        max_tokens=tokens, temperature=1.0, ignore_eos=True, logprobs=0, detokenize=False, seed=1
    )
    rows, sampled = [list(prompt) for prompt in prompts], 0
    for read in ([], *reads):
        rows = [row + read for row in rows]
        outputs = lm.llm.generate([{"prompt_token_ids": row} for row in rows], params, use_tqdm=False)
        rows = [row + list(output.outputs[0].token_ids) for row, output in zip(rows, outputs, strict=True)]
        sampled += sum(len(output.outputs[0].token_ids) for output in outputs)
    return sampled


def ours(lm: VllmLM, prompts: Sequence[Ids], reads: Sequence[Ids], tokens: int) -> int:
    """Sampled tokens of one run with a session."""
    session = lm.open(range(len(prompts)), Sampling(tokens))
    sampled = 0
    feeds = dict(enumerate(prompts))
    for read in (*reads, None):
        session.submit(feeds)
        waiting = set(feeds)
        while waiting:
            said = session.advance()
            waiting -= said.keys()
            sampled += sum(len(turn.ids) for turn in said.values())
        feeds = dict.fromkeys(feeds, read or [])
    session.close()
    return sampled


def texts(tokenizer: PreTrainedTokenizerBase, count: int, length: int) -> list[Ids]:
    """Rows of ``length`` ids each, no two alike."""
    rng = np.random.default_rng(0)
    return [rng.integers(10, len(tokenizer) - 10, length).tolist() for _ in range(count)]


def main() -> None:
    """Print tokens per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="SmolLM2-135M-Instruct")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--read", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={"enforce_eager": True}, help="of vllm.LLM, as JSON")
    chosen = parser.parse_args()
    tokenizer = load_tokenizer(chosen.model)
    longest = chosen.prompt + chosen.turns * (chosen.tokens + chosen.read) + 1
    lm = VllmLM(chosen.model, tokenizer, longest, options=chosen.options)
    prompts = texts(tokenizer, chosen.rows, chosen.prompt)
    reads = texts(tokenizer, chosen.turns - 1, chosen.read)
    ways: dict[str, Any] = {"vLLM directly": directly, "ours": ours}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    directly(lm, prompts[:2], [], 4)  # warm-up
    for _ in range(chosen.repeats):
        for name, run in ways.items():
            lm.llm.reset_prefix_cache()
            began = time.monotonic()
            sampled = run(lm, prompts, reads, chosen.tokens)
            rates[name].append(sampled / (time.monotonic() - began))
    table = Table("", "sampled tokens/s, median", "from - to", "ratio", title=f"{chosen.model}, {chosen.rows} rows")
    base = statistics.median(rates["vLLM directly"])
    for name, values in rates.items():
        middle = statistics.median(values)
        table.add_row(name, f"{middle:.1f}", f"{min(values):.1f} - {max(values):.1f}", f"{middle / base:.2f}")
    Console().print(table)
    lm.close()


if __name__ == "__main__":
    main()
