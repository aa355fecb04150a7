"""OVD Gym: train language-model agents from a teacher's digits (On-policy Verbal Distillation).

Importing it registers the environments with Gymnasium and loads nothing heavy; every public name is imported on
first use.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ovd_gym.registry import register_envs

if TYPE_CHECKING:
    from ovd_gym.agents.scripted import ScriptedAgent
    from ovd_gym.config import TrainConfig
    from ovd_gym.config_files import load_config
    from ovd_gym.envs.base import ToolEnv
    from ovd_gym.envs.tools import tool
    from ovd_gym.errors import OvdGymError, TeacherError, ToolError
    from ovd_gym.records import Critique, Message, Score, Step, Task, ToolCall, Trajectory
    from ovd_gym.teachers.base import Teacher, View
    from ovd_gym.teachers.registry import make_teacher
    from ovd_gym.training import train
    from ovd_gym.wrappers import TeacherScores

__version__ = "0.1.0"

_HOMES = {
    "Critique": "records",
    "Message": "records",
    "OvdGymError": "errors",
    "Score": "records",
    "ScriptedAgent": "agents.scripted",
    "Step": "records",
    "Task": "records",
    "Teacher": "teachers.base",
    "TeacherError": "errors",
    "TeacherScores": "wrappers",
    "ToolCall": "records",
    "ToolEnv": "envs.base",
    "ToolError": "errors",
    "TrainConfig": "config",
    "Trajectory": "records",
    "View": "teachers.base",
    "load_config": "config_files",
    "make_teacher": "teachers.registry",
    "tool": "envs.tools",
    "train": "training",
}
"""Public name to the module that holds it."""

__all__ = [
    "Critique",
    "Message",
    "OvdGymError",
    "Score",
    "ScriptedAgent",
    "Step",
    "Task",
    "Teacher",
    "TeacherError",
    "TeacherScores",
    "ToolCall",
    "ToolEnv",
    "ToolError",
    "TrainConfig",
    "Trajectory",
    "View",
    "__version__",
    "load_config",
    "make_teacher",
    "tool",
    "train",
]

# Before torch is loaded: spinning threads make small matrix products many times slower beside any other process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
register_envs()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ovd_gym' has no attribute {name!r}")
    return getattr(import_module(f"ovd_gym.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
