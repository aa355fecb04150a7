"""The math world: word problems and exact answers, a Python sandbox with computer algebra, a symbolic grader."""

from ovd_gym.envs.math_qa.env import MathEnv
from ovd_gym.envs.math_qa.equivalence import equivalent
from ovd_gym.envs.math_qa.sandbox import Sandbox, SandboxLimits
from ovd_gym.envs.math_qa.tasks import hub_tasks, jsonl_tasks, load_tasks, reasoning_gym_tasks, split_tasks

__all__ = [
    "MathEnv",
    "Sandbox",
    "SandboxLimits",
    "equivalent",
    "hub_tasks",
    "jsonl_tasks",
    "load_tasks",
    "reasoning_gym_tasks",
    "split_tasks",
]
