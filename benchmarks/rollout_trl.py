"""The same four-turn episodes in TRL's GRPOTrainer, for ``rollout.py model``: its own rollout, tool loop and all.

Small models hardly ever write a tool call, so TRL's parser is replaced: any text is a call of ``look``. Timed is the
trainer's generation alone, from its prompts to its completions; nothing is trained.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any
from unittest.mock import patch

import torch
import trl
from datasets import Dataset
from trl.trainer import grpo_trainer


class _Asked(Exception):
    """The trainer is ready to generate: it need not go on."""


def prepare(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    group: int,
    turns: int,
    turn_tokens: int,
    page: Callable[[], str],
) -> Callable[[], dict[str, int]]:
    """A function that plays ``group`` episodes for each of ``questions``, and counts them and the sampled tokens."""

    def look(query: str) -> str:
        """Look up a page of the archive.

        Args:
            query: what the page should be about, in a few words; names and years help.
        """
        return page()

    def any_text_is_a_call(tokenizer: Any, ids: Sequence[int], **_: Any) -> dict[str, Any]:
        text = tokenizer.decode(ids, skip_special_tokens=True)
        call = {"type": "function", "function": {"name": "look", "arguments": {"query": text[:80]}}}
        return {"role": "assistant", "content": "", "tool_calls": [call]}

    tokenizer.chat_template = files("trl").joinpath("chat_templates", "qwen2_5.jinja").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            output_dir=folder, use_cpu=not torch.cuda.is_available(), bf16=False, gradient_checkpointing=False,
            per_device_train_batch_size=len(questions) * group, num_generations=group, max_steps=1,
            max_completion_length=2048, generation_kwargs={"max_new_tokens": turn_tokens},
            max_tool_calling_iterations=turns - 1, temperature=1.0, report_to=[], save_strategy="no",
            logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = trl.GRPOTrainer(
            model, lambda completions, **_: [0.0] * len(completions), args=config, processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": q}]} for q in questions]),
            tools=[look],
        )  # fmt: skip
    generate, prompts = trainer._generate, []

    def noted(asked: Any) -> Any:
        prompts.extend(asked)
        raise _Asked

    trainer._generate = noted
    with suppress(_Asked):
        trainer.train()
    assert len(prompts) == len(questions) * group, "not the whole batch at once"

    def play() -> dict[str, int]:
        with patch.object(grpo_trainer, "parse_response", any_text_is_a_call):
            masks = generate(prompts)[2]
        return {"episodes": len(prompts), "tokens": sum(map(sum, masks))}

    return play
