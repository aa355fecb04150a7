"""PPO with a value head on questions that are answered by searching: the training loop itself.

A teacher of rules gives every step and every episode a digit; the digits are rewards at the ends of the steps, and the
value head estimates from them what each token was worth. Groups are of size 1: nothing is compared.

Example: python examples/loops/ppo_search.py --steps 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ovd_gym import make_teacher
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.batch import pack
from ovd_gym.config import LearnerConfig, ValueConfig
from ovd_gym.credit import CreditConfig, assign_credit
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.experience import task_batch
from ovd_gym.learner import Learner, trainable_model
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.rollout import rollout

EPISODES = 8
LEARNER = LearnerConfig(learning_rate=1e-5, lora_rank=16, epochs=2, micro_batch_tokens=2048)
CREDIT = CreditConfig(arm="score-reward", estimator="gae")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=2)
    chosen = parser.parse_args(arguments)

    model, tokenizer = load_model(chosen.student)
    decoder = Decoder(trainable_model(model, LEARNER, seed=0))
    student = Student(TransformersLM(decoder, tokenizer), make_chat(tokenizer, "plain"), max_turn_tokens=24)
    learner = Learner(decoder, LEARNER, chosen.steps, ValueConfig())
    teacher = make_teacher("search-rules")
    world = SearchEnv(task_options={"size": 200, "count": 100}, tools=["search"], action_format="line", max_turns=2)
    envs = [
        SearchEnv(world.tasks, backend=world.backend, tools=["search"], action_format="line", max_turns=2)
        for _ in range(EPISODES)
    ]

    for step in range(chosen.steps):
        tasks = task_batch(world.tasks, step, EPISODES, seed=0)
        played = rollout(tasks, envs, student, seed=(0, step), policy_version=step)
        critiques = teacher.critique(played)
        rewards = assign_credit(played, critiques, CREDIT)
        metrics = learner.update(pack(played, rewards), step)
        score = sum(c.trajectory.mean or 0.0 for c in critiques) / len(critiques)
        print(f"step {step + 1}: score {score:.2f}, value loss {metrics['value_loss']:.4f}")


if __name__ == "__main__":
    main()
