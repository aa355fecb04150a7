"""A teacher's scores inside the reward, for any learner that speaks Gymnasium."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import gymnasium as gym

from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError
from ovd_gym.records import Score, ToolCall
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.registry import make_teacher

__all__ = ["TeacherScores"]


class TeacherScores(gym.Wrapper[str, str, str, str], gym.utils.RecordConstructorArgs):
    """Adds what a teacher thinks of each step, and of the whole, to the reward of a tool environment.

    With ``u`` a score on [0, 1] and ``E`` the environment's reward, step k of an episode is rewarded with::

        w * (Phi_k - Phi_{k-1})                        Phi_k = u of step k, Phi_0 = 0   (potential-based)
        + E                                            before the end
        + (1 - lam) * E + lam * u of the trajectory    at the end, answered or truncated

    An invalid score adds nothing: Phi keeps its last value, or E stays as it is, and the status stands in ``info``.

    ``info`` gets ``score`` and, at the end, ``trajectory_score`` (the fields of :class:`~ovd_gym.records.Score` that
    are not None) and ``env_reward`` (E).

    Args:
        env: a :class:`~ovd_gym.envs.base.ToolEnv`, possibly wrapped.
        teacher: a teacher, or whatever :func:`~ovd_gym.teachers.registry.make_teacher` takes.
        lam: weight of the trajectory's score, in [0, 1]; below 0.5 a right episode outranks every wrong one.
        w: weight of the step potential, at least 0.

    Raises:
        ConfigError: the environment is no tool environment, or an argument is out of range.
    """

    def __init__(
        self,
        env: gym.Env[str, str],
        teacher: Teacher | str | Mapping[str, Any],
        *,
        lam: float = 0.2,
        w: float = 0.5,
    ) -> None:
        if not isinstance(env.unwrapped, ToolEnv):
            raise ConfigError(f"TeacherScores needs a ToolEnv, got {type(env.unwrapped).__name__}")
        if not 0.0 <= lam <= 1.0 or not w >= 0.0:
            raise ConfigError(f"TeacherScores needs lam in [0, 1] and w >= 0, got lam={lam}, w={w}")
        # Not copied: a teacher may hold a model.
        gym.utils.RecordConstructorArgs.__init__(self, _disable_deepcopy=True, teacher=teacher, lam=lam, w=w)
        gym.Wrapper.__init__(self, env)
        self.teacher = make_teacher(teacher)
        self.lam = lam
        self.w = w
        self._question = ""
        self._steps: list[StepText] = []
        self._potential = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; nothing is scored yet."""
        question, info = super().reset(seed=seed, options=options)
        self._question, self._steps, self._potential = question, [], 0.0
        return question, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the call in ``action`` and have it scored; at the end, the trajectory as well."""
        observation, reward, terminated, truncated, info = super().step(action)
        call = None if info["call"] is None else ToolCall.model_validate(info["call"])
        self._steps.append(StepText.of(action, observation, call))
        over = terminated or truncated
        views = [self._view("step", info)] + ([self._view("trajectory", info)] if over else [])
        scores = self.teacher.judge(views)
        info["env_reward"] = float(reward)
        info["score"] = scores[0].model_dump(exclude_none=True)
        shaped = float(reward)
        if over:
            info["trajectory_score"] = scores[1].model_dump(exclude_none=True)
            shaped = self._blend(float(reward), scores[1])
        return observation, shaped + self._progress(scores[0]), terminated, truncated, info

    def _view(self, kind: Literal["step", "trajectory"], info: Mapping[str, Any]) -> View:
        env = self.env.unwrapped
        assert isinstance(env, ToolEnv)
        return View(
            kind=kind,
            question=self._question,
            steps=tuple(self._steps),
            answer=info["answer"],
            gold=env.task.answers if self.teacher.privileged else None,
        )

    def _progress(self, score: Score) -> float:
        if not score.valid:
            return 0.0
        before, self._potential = self._potential, score.u
        return self.w * (self._potential - before)

    def _blend(self, reward: float, score: Score) -> float:
        return (1 - self.lam) * reward + self.lam * score.u if score.valid else reward
