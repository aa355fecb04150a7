"""What bridges share: episodes of a tool environment for frameworks with a loop of their own, text in, text out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym

from ovd_gym.errors import ConfigError, EpisodeOver
from ovd_gym.records import Message, Task
from ovd_gym.teachers.base import Teacher
from ovd_gym.teachers.registry import make_teacher
from ovd_gym.worlds import family, tool_env
from ovd_gym.wrappers import TeacherScores

__all__ = ["Play", "Worlds"]


class Worlds:
    """Any number of instances of one tool environment, which share its tasks and one teacher.

    Args:
        env: Gymnasium id of a tool environment (``module:id`` imports the module that registers it).
        teacher: what :func:`~ovd_gym.teachers.registry.make_teacher` takes; its scores go into the reward as in
            :class:`~ovd_gym.wrappers.TeacherScores`. None: the environment's reward alone.
        lam: weight of the trajectory's score.
        w: weight of the step potential.
        options: of the environment.

    Raises:
        ConfigError: no such tool environment or teacher, options it does not take, or weights without a teacher.
    """

    def __init__(
        self,
        env: str,
        options: Mapping[str, Any],
        teacher: Teacher | str | Mapping[str, Any] | None,
        lam: float,
        w: float,
    ) -> None:
        if teacher is None and (lam, w) != (0.2, 0.0):
            raise ConfigError(f"lam={lam} and w={w} weigh a teacher's scores: name a teacher, or leave them out")
        first, self._more = family(env, options)
        self.first = tool_env(first)
        """Holds what all share; it is never played."""
        self.tasks = self.first.tasks
        self._teacher = None if teacher is None else make_teacher(teacher)
        self._weights = {"lam": lam, "w": w}
        self.play().close()  # what cannot work is refused now, not in an episode

    def play(self) -> Play:
        """An episode, which is not begun yet."""
        env = self._more()
        return Play(env if self._teacher is None else TeacherScores(env, self._teacher, **self._weights))


class Play:
    """One episode. What breaks outside the student's power is raised, and ``reward`` then stays None.

    ``reward`` is the sum of the episode's rewards: None before it began and once it broke, never a 0 for either.
    """

    def __init__(self, env: gym.Env[str, str]) -> None:
        self.world = tool_env(env)
        self.reward: float | None = None
        self.over = True
        self.info: dict[str, Any] = {}
        """Of the last step, see :meth:`ToolEnv.step` and :class:`~ovd_gym.wrappers.TeacherScores`."""
        self._env = env
        self._env_reward = 0.0

    def open(self, index: int, seed: int | None = None) -> tuple[Message, ...]:
        """Ask the task number ``index``; what the student reads first."""
        self.reward, self.info, self._env_reward = None, {}, 0.0
        self._env.reset(seed=seed, options={"task_index": index})
        self.reward, self.over = 0.0, False
        return self.world.opening()

    @property
    def task(self) -> Task:
        """What is asked."""
        return self.world.task

    def act(self, text: str) -> str | None:
        """Carry out the call in the student's own words; the observation, or None when the episode is over."""
        if self.over or self.reward is None:
            raise EpisodeOver("the episode is over or broke: open another one")
        before, self.reward = self.reward, None
        observation, reward, terminated, truncated, self.info = self._env.step(text)
        self.reward, self.over = before + float(reward), terminated or truncated
        self._env_reward += self.info.get("env_reward", float(reward))
        return None if self.over else observation

    def measures(self) -> dict[str, float]:
        """What is worth a line in a log: E, whether there was an answer, and the teacher's score in [0, 1] if any."""
        told = {"env_reward": self._env_reward, "answered": float(self.info.get("answer") is not None)}
        if (mean := self.info.get("trajectory_score", {}).get("mean")) is not None:
            told["teacher_score"] = mean / 9
        return told

    def close(self) -> None:
        """Give back what the environment holds."""
        self._env.close()
