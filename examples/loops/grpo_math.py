"""GRPO on sums with a tool: the training loop itself, four steps, with checkpoints from which it goes on.

`ovd_gym.train` does the same with more around it. Stop this one and start it again: it continues where it was, to the
same numbers, since every draw follows from the seed and the step.

Example: python examples/loops/grpo_math.py runs/grpo --steps 4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ovd_gym.agents.chat import PlainChat
from ovd_gym.agents.student import Student
from ovd_gym.batch import pack
from ovd_gym.config import LearnerConfig, PlainTemplate
from ovd_gym.credit import CreditConfig, assign_credit
from ovd_gym.envs.math_qa import MathEnv
from ovd_gym.experience import task_batch
from ovd_gym.learner import Learner, trainable_model
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.recorder import load_checkpoint, save_checkpoint
from ovd_gym.rollout import rollout

TASKS, GROUP = 4, 4
LEARNER = LearnerConfig(learning_rate=2e-4, lora_rank=16, micro_batch_tokens=1024)
SUMS = {"min_terms": 3, "max_terms": 3, "min_digits": 2, "max_digits": 2, "operators": ["+", "-", "*"]}
FEW_SHOT = """Q: Calculate 7 + 5.
answer: 12
Q: Calculate 38 * 74.
python: 38 * 74
2812
answer: 2812
"""
LAYOUT = PlainTemplate(few_shot=FEW_SHOT, system="", user="Q: {content}\n", tool="{content}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, and save after every step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for checkpoints")
    parser.add_argument("--student", default="SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=4)
    chosen = parser.parse_args(arguments)

    model, tokenizer = load_model(chosen.student)
    decoder = Decoder(trainable_model(model, LEARNER, seed=0))
    student = Student(TransformersLM(decoder, tokenizer), PlainChat(tokenizer, LAYOUT), max_turn_tokens=16)
    learner = Learner(decoder, LEARNER, chosen.steps)
    options = {"size": 2000, "seed": 1, "allow_parentheses": False, "allow_negation": False, **SUMS}
    world = MathEnv("reasoning_gym:basic_arithmetic", task_options=options, action_format="line", max_turns=2)
    envs = [world, *(MathEnv(world.tasks, action_format="line", max_turns=2) for _ in range(TASKS * GROUP - 1))]

    saved = sorted(chosen.folder.glob("step-*"))
    done = load_checkpoint(saved[-1], learner) if saved else 0
    for step in range(done, chosen.steps):
        tasks = task_batch(world.tasks, step, TASKS, seed=0)
        groups = rollout(tasks, envs, student, group_size=GROUP, seed=(0, step), policy_version=step)
        credits = assign_credit(groups, [], CreditConfig(arm="grpo"))  # compares the members of a group
        metrics = learner.update(pack(groups, credits), step)
        save_checkpoint(chosen.folder / f"step-{step + 1:05d}", learner, step + 1)
        reward = sum(t.reward or 0.0 for t in groups) / len(groups)
        print(f"step {step + 1}: reward {reward:.2f}, trained tokens {metrics['trained_tokens']:.0f}")
    for env in envs:
        env.close()


if __name__ == "__main__":
    main()
