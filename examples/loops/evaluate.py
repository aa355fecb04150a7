"""Evaluation as a loop: greedy episodes on held-out questions, right answers with their interval, by kind of question.

`ovd-gym eval` does the same with more around it (docs/evaluation.md).

Example: python examples/loops/evaluate.py --questions 64
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence

from ovd_gym import ScriptedAgent
from ovd_gym.agents.base import Agent
from ovd_gym.agents.searchers import single_search
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.llm.base import GREEDY
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.rollout import rollout
from ovd_gym.statistics import wilson_interval

AT_ONCE = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate a model, or the searcher that needs none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", help="a model; without one a program searches once and guesses")
    parser.add_argument("--questions", type=int, default=64)
    chosen = parser.parse_args(arguments)

    agent: Agent = ScriptedAgent(single_search(action_format="line"))
    if chosen.student:
        model, tokenizer = load_model(chosen.student)
        agent = Student(TransformersLM(Decoder(model), tokenizer), make_chat(tokenizer, "plain"), max_turn_tokens=24)
    world = SearchEnv(task_options={"count": chosen.questions, "split": "held_out"}, action_format="line")
    envs = [SearchEnv(world.tasks, backend=world.backend, action_format="line") for _ in range(AT_ONCE)]

    # Fewer environments than episodes: an episode begins when another has ended.
    played = rollout(world.tasks, envs, agent, decoding=GREEDY)
    by_hops: dict[str, list[bool]] = defaultdict(list)
    for trajectory in played:
        if trajectory.reward is not None:  # an episode that broke says nothing about the agent
            for kind in ("all", f"{trajectory.task.metadata['hops']} hops"):
                by_hops[kind].append(trajectory.reward == 1.0)
    for kind, right in sorted(by_hops.items(), reverse=True):
        low, high = wilson_interval(sum(right), len(right))
        print(f"{kind}: {sum(right) / len(right):.3f} [{low:.3f}, {high:.3f}] of {len(right)}")


if __name__ == "__main__":
    main()
