"""On-policy verbal distillation by filter: where the teacher rejects an attempt, a demonstrator's takes its place.

The teacher here is a program that reads the attempt, the demonstrator one that knows where to look. What remains of the
student's own attempts and the demonstrations are compared by the environment's reward alone.

Example: python examples/loops/ovd_filter.py --steps 2
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ovd_gym import ScriptedAgent, make_teacher
from ovd_gym.agents.searchers import follow_titles
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.batch import pack
from ovd_gym.config import LearnerConfig
from ovd_gym.credit import CreditConfig, assign_credit
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.experience import task_batch
from ovd_gym.learner import Learner, trainable_model
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.rollout import rollout
from ovd_gym.selection import SelectionConfig, rejected, to_replace

TASKS, GROUP = 2, 4
LEARNER = LearnerConfig(learning_rate=1e-5, lora_rank=16, micro_batch_tokens=2048, teacher_tokens="nll")
FILTER = SelectionConfig(theta=5)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train for a few steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="SmolLM2-135M-Instruct")
    parser.add_argument("--steps", type=int, default=2)
    chosen = parser.parse_args(arguments)

    model, tokenizer = load_model(chosen.student)
    decoder = Decoder(trainable_model(model, LEARNER, seed=0))
    chat = make_chat(tokenizer, "plain")
    student = Student(TransformersLM(decoder, tokenizer), chat, max_turn_tokens=24)
    learner = Learner(decoder, LEARNER, chosen.steps)
    teacher = make_teacher("search-rules")
    facts = {"size": 200, "count": 100, "hops": [1]}
    world = SearchEnv(task_options=facts, tools=["search"], action_format="line", max_turns=3)
    envs = [
        SearchEnv(world.tasks, backend=world.backend, tools=["search"], action_format="line", max_turns=3)
        for _ in range(TASKS * GROUP)
    ]
    # Its words in the student's tokens: the layout is the student's.
    demonstrator = ScriptedAgent(follow_titles(world.tasks, action_format="line"), chat)

    for step in range(chosen.steps):
        tasks = task_batch(world.tasks, step, TASKS, seed=0)
        groups = rollout(tasks, envs, student, group_size=GROUP, seed=(0, step), policy_version=step)
        critiques = teacher.critique(groups)
        below = rejected(groups, critiques, FILTER, "ovd")
        places = to_replace(below, groups, critiques, FILTER, step)  # worst first, two of a group stay
        again = [groups[i].task for i in places]
        seed, room = (1, step), decoder.max_positions  # what the student could not read is no demonstration
        shown = rollout(again, envs, demonstrator, seed=seed, policy_version=step, source="teacher", max_context=room)
        for i, demonstration in zip(places, shown, strict=True):
            groups[i] = demonstration.model_copy(update={"id": groups[i].id, "group_id": groups[i].group_id})
        credits = assign_credit(groups, [], CreditConfig(arm="ovd"))
        metrics = learner.update(pack(groups, credits), step)
        right = sum(t.reward == 1.0 for t in shown)
        print(
            f"step {step + 1}: {len(below)} of {len(groups)} rejected, {len(places)} replaced, {right} of these right, "
            f"trained tokens {metrics['trained_tokens']:.0f}"
        )


if __name__ == "__main__":
    main()
