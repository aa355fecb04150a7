"""The other side of ``learner.py``: the same steps by TRL's GRPOTrainer, run by an interpreter that has TRL.

It knows nothing of this project: one argument, the case as JSON; one line of output, the measurements as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Clock(TrainerCallback):
    """Seconds of each whole step, from the end of the one before, and of the sampling in it."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.sampling: list[float] = []
        self._since = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the first step."""
        self._since = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Close a step."""
        now = time.perf_counter()
        self.steps.append(now - self._since)
        self._since = now

    def around(self, trainer: Any) -> None:
        """Time what the trainer does before its loss: generation, rewards, advantages."""
        prepare = trainer._generate_and_score_completions

        def timed(inputs: Any) -> Any:
            began = time.perf_counter()
            found = prepare(inputs)
            self.sampling.append(time.perf_counter() - began)
            return found

        trainer._generate_and_score_completions = timed


def main(case: dict[str, Any]) -> None:
    """Run the steps of ``case`` and print what they took."""
    torch.set_num_threads(case["threads"])
    model = AutoModelForCausalLM.from_pretrained(case["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    answers = dict(zip(case["prompts"], case["answers"], strict=True))
    informative: list[float] = []

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        """The answer is right or, in a case without answers, the share of distinct tokens."""
        assert all(len(ids) == case["tokens"] for ids in completion_ids), "an early end: not the same work"
        if any(answers.values()):
            values = [float(c.strip().split("\n")[0] == answers[p]) for p, c in zip(prompts, completions, strict=True)]
        else:
            values = [len(set(ids)) / len(ids) for ids in completion_ids]
        groups = [values[i : i + case["samples"]] for i in range(0, len(values), case["samples"])]
        informative.append(sum(len(g) for g in groups if len(set(g)) > 1) / len(values))
        return values

    config = GRPOConfig(
        output_dir=case["folder"], use_cpu=True, bf16=False, gradient_checkpointing=case["checkpointing"],
        per_device_train_batch_size=len(case["prompts"]) * case["samples"], num_generations=case["samples"],
        max_completion_length=case["tokens"], generation_kwargs={"min_new_tokens": case["tokens"]},
        max_steps=case["steps"], learning_rate=case["learning_rate"], lr_scheduler_type="constant",
        report_to=[], save_strategy="no", logging_strategy="no", seed=0, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    rank = case["rank"]
    clock = Clock()
    trainer = GRPOTrainer(
        model, reward, args=config, processing_class=tokenizer, callbacks=[clock],
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in case["prompts"]]),
        peft_config=LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip
    clock.around(trainer)
    trainer.train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"steps": clock.steps, "sampling": clock.sampling, "peak": peak, "informative": informative}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
