"""A teacher inside the environment: its scores in the reward, or its words in the observation."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal
from weakref import WeakKeyDictionary

import gymnasium as gym

from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError
from ovd_gym.records import Score, ToolCall
from ovd_gym.sanitize import escape_markers
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.registry import make_teacher

__all__ = ["TeacherFeedback", "TeacherScores"]


_LOCKS: WeakKeyDictionary[Teacher, threading.Lock] = WeakKeyDictionary()
"""Episodes act in threads of their own; a teacher that they share is asked by one at a time."""


class _Watched(gym.Wrapper[str, str, str, str], gym.utils.RecordConstructorArgs):
    """A tool environment whose episode is kept as the teacher would read it."""

    teacher: Teacher

    def __init__(self, env: gym.Env[str, str], teacher: Teacher | str | Mapping[str, Any], **settings: Any) -> None:
        name = type(self).__name__
        if not isinstance(env.unwrapped, ToolEnv):
            raise ConfigError(f"{name} needs a ToolEnv, got {type(env.unwrapped).__name__}")
        # Not copied: a teacher may hold a model.
        gym.utils.RecordConstructorArgs.__init__(self, _disable_deepcopy=True, teacher=teacher, **settings)
        gym.Wrapper.__init__(self, env)
        self.teacher = make_teacher(teacher)
        if self.teacher.relative:
            raise ConfigError(
                f"{name}: teacher {self.teacher.name!r} compares the episodes of a group; here is only one"
            )
        self._one_at_a_time = _LOCKS.setdefault(self.teacher, threading.Lock())
        self._question = ""
        self._steps: list[StepText] = []

    @property
    def world(self) -> ToolEnv:
        """The environment itself."""
        assert isinstance(self.env.unwrapped, ToolEnv)
        return self.env.unwrapped

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; nothing is scored yet."""
        question, info = super().reset(seed=seed, options=options)
        self._question, self._steps = question, []
        return question, info

    def _watch(self, action: str, observation: str, info: Mapping[str, Any]) -> None:
        call = None if info["call"] is None else ToolCall.model_validate(info["call"])
        self._steps.append(StepText.of(action, observation, call))

    def _judge(self, views: Sequence[View]) -> list[Score]:
        with self._one_at_a_time:
            return self.teacher.judge(views)

    def _view(self, kind: Literal["step", "trajectory"], info: Mapping[str, Any]) -> View:
        return View(
            kind=kind,
            question=self._question,
            steps=tuple(self._steps),
            answer=info["answer"],
            gold=self.world.task.answers if self.teacher.privileged else None,
        )


class TeacherScores(_Watched):
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
        if not 0.0 <= lam <= 1.0 or not w >= 0.0:
            raise ConfigError(f"TeacherScores needs lam in [0, 1] and w >= 0, got lam={lam}, w={w}")
        super().__init__(env, teacher, lam=lam, w=w)
        self.lam = lam
        self.w = w
        self._potential = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; nothing is scored yet."""
        self._potential = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the call in ``action`` and have it scored; at the end, the trajectory as well."""
        observation, reward, terminated, truncated, info = super().step(action)
        self._watch(action, observation, info)
        over = terminated or truncated
        views = [self._view("step", info)] + ([self._view("trajectory", info)] if over else [])
        scores = self._judge(views)
        info["env_reward"] = float(reward)
        info["score"] = scores[0].model_dump(exclude_none=True)
        shaped = float(reward)
        if over:
            info["trajectory_score"] = scores[1].model_dump(exclude_none=True)
            shaped = self._blend(float(reward), scores[1])
        return observation, shaped + self._progress(scores[0]), terminated, truncated, info

    def _progress(self, score: Score) -> float:
        if not score.valid:
            return 0.0
        before, self._potential = self._potential, score.u
        return self.w * (self._potential - before)

    def _blend(self, reward: float, score: Score) -> float:
        return (1 - self.lam) * reward + self.lam * score.u if score.valid else reward


class TeacherFeedback(_Watched):
    """The teacher tells the student what it thinks, in its score and its rationale.

    ``when="step"``: after every step that does not end the episode, at the end of the observation.
    ``when="retry"``: an answer scored below ``threshold`` is not final; the student reads why and may answer once
    more. If it gives no second answer, the first one stands.

    ``info`` gets ``feedback``, the text by which the observation was lengthened ("" for none). For ``retry`` the
    refused answer is left out of ``answer`` until it stands; ``refused`` is then (answer, reward), for whoever ends
    the episode before another answer. A score that could not be had gives no feedback, and with it an answer is final.
    Episodes with feedback are helped: report their results apart.

    Args:
        env: a :class:`~ovd_gym.envs.base.ToolEnv`, possibly wrapped.
        teacher: a teacher, or whatever :func:`~ovd_gym.teachers.registry.make_teacher` takes.
        when: see above.
        threshold: mean score, 0-9, below which an answer is refused; only with ``retry``.

    Raises:
        ConfigError: the environment is no tool environment, an argument is out of range, or the teacher is shown the
            gold answers: it could give them away.
    """

    def __init__(
        self,
        env: gym.Env[str, str],
        teacher: Teacher | str | Mapping[str, Any],
        *,
        when: Literal["step", "retry"] = "step",
        threshold: float = 5.0,
    ) -> None:
        if when not in ("step", "retry") or not 0.0 <= threshold <= 9.0:
            raise ConfigError(f"TeacherFeedback needs when 'step' or 'retry', threshold 0..9, got {when}, {threshold}")
        super().__init__(env, teacher, when=when, threshold=threshold)
        if self.teacher.privileged:
            raise ConfigError(f"teacher {self.teacher.name!r} is shown the gold answers: its feedback would leak them")
        self.when = when
        self.threshold = threshold
        self._refused: tuple[str, float] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; nothing is said yet."""
        self._refused = None
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the call in ``action``; the teacher may have a word."""
        observation, reward, terminated, truncated, info = super().step(action)
        self._watch(action, observation, info)
        info["feedback"] = ""
        if self.when == "step" and not terminated and not truncated:
            info["feedback"] = self._words(self._judged("step", info))
        elif self.when == "retry" and terminated and self._refused is None:
            score = self._judged("trajectory", info)
            if score.valid and score.u * 9 < self.threshold and self.world.reopen():
                self._refused = info["refused"] = info["answer"], float(reward)
                info["feedback"] = self._words(score) + " Your answer was not accepted: you may answer once more."
                info["answer"], reward, terminated = None, 0.0, False
        elif truncated and self._refused is not None:
            info["answer"], reward = self._refused
        return observation + info["feedback"], float(reward), terminated, truncated, info

    def _judged(self, kind: Literal["step", "trajectory"], info: Mapping[str, Any]) -> Score:
        return self._judge([self._view(kind, info)])[0]

    def _words(self, score: Score) -> str:
        """The score as the student reads it: a tool result like any other, with every reserved marker escaped."""
        if not score.valid:
            return ""
        return escape_markers(f"\n[teacher: {score.u * 9:.0f} of 9] {score.rationale}".rstrip())
