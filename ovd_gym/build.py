"""From a configuration to the parts of a run; everything that can be refused is refused here, before a run exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
from transformers import PreTrainedTokenizerBase

from ovd_gym.agents.base import Agent
from ovd_gym.agents.chat import Chat
from ovd_gym.agents.retold import Retold
from ovd_gym.agents.scripted import Policy, ScriptedAgent
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.config import DemonstratorConfig, EnvConfig, FeedbackConfig, TrainConfig
from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError, OvdGymError, unknown
from ovd_gym.learner import Learner, trainable_model
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.plugins import check_options, find_function
from ovd_gym.records import Task
from ovd_gym.rollout import Env
from ovd_gym.teachers.base import Teacher
from ovd_gym.teachers.registry import make_teacher
from ovd_gym.wrappers import TeacherFeedback

__all__ = ["Parts", "build", "make_envs"]


@dataclass(frozen=True)
class Parts:
    """The components of one run."""

    student: Student
    learner: Learner
    teacher: Teacher | None
    demonstrator: Agent | None
    distiller: Decoder | None
    """The teacher model of arm ``token-opd``."""
    tokenizer: PreTrainedTokenizerBase
    envs: Sequence[Env]
    """One per episode of a step, and at most ``rollout.max_rows``."""
    tasks: Sequence[Task]
    """To train on; none of them asks a held-out question."""
    held_out_envs: Sequence[Env]
    """One per held-out task, and at most ``rollout.max_rows``; empty without an evaluation section."""
    held_out_tasks: Sequence[Task]

    def export(self, path: Path, card: str) -> None:
        """Write the trained model as a plain transformers (or peft) folder, with ``card`` as its README."""
        model: Any = self.learner.decoder.model
        model.save_pretrained(path)
        self.tokenizer.save_pretrained(path)
        (path / "README.md").write_text(card, encoding="utf-8")

    @property
    def canaries(self) -> str | None:
        """Name of the canary set of this world."""
        return _tool_env(self.envs[0]).canaries

    def at_update(self, updates: int) -> None:
        """Tell the training environments how many learner updates there have been."""
        for env in self.envs:
            _tool_env(env).at_update(updates)

    def close(self) -> None:
        """Close all environments."""
        for env in (*self.envs, *self.held_out_envs):
            env.close()


def build(config: TrainConfig, teacher: Teacher | None = None) -> Parts:
    """Make the parts; ``teacher``, when given, takes the place of the configured one.

    Raises :class:`ConfigError` for an unknown environment, model or teacher and for options they do not take.
    """
    episodes = config.rollout.tasks_per_step * config.rollout.group_size
    envs = make_envs(config.env, min(episodes, config.rollout.max_rows))
    held_out_envs, held_out_tasks = _held_out(config)
    tasks = _apart(_tool_env(envs[0]).tasks, held_out_tasks)
    if teacher is None and config.teacher is not None:
        teacher = make_teacher(config.teacher.name, **config.teacher.options)
    if teacher is not None:
        teacher.seed(config.seed)
        if config.feedback is not None:
            envs = _advised(envs, teacher, config.feedback)
            held_out_envs = (
                _advised(held_out_envs, teacher, config.feedback) if config.feedback.evaluation else held_out_envs
            )
    model, tokenizer = load_model(config.student.model, dtype=config.student.dtype, device=config.student.device)
    decoder = Decoder(trainable_model(model, config.learner, config.seed))
    chat = make_chat(tokenizer, config.student.chat, config.student.plain)
    chat.stop_ids = tuple(dict.fromkeys((*chat.stop_ids, *_end_ids(model))))
    student = Student(
        TransformersLM(decoder, tokenizer, config.student.max_context), chat, config.student.max_turn_tokens
    )
    for env in (*envs, *held_out_envs):
        _tool_env(env).count_tokens = chat.count_tokens
    value = config.value if config.credit.estimator == "gae" else None
    learner = Learner(decoder, config.learner, config.steps, value)
    demonstrator = _demonstrator(config, config.demonstrator, tasks, chat) if config.demonstrator else None
    distiller = _distiller(config, tokenizer) if config.distillation else None
    return Parts(
        student, learner, teacher, demonstrator, distiller, tokenizer, envs, tasks, held_out_envs, held_out_tasks
    )


def make_envs(config: EnvConfig, count: int, options: Mapping[str, Any] | None = None) -> list[Env]:
    """``count`` instances that share their tasks; ``options`` is laid over ``config.options``, mapping by mapping.

    Raises :class:`ConfigError` for an unknown id, a class that is not a ToolEnv, or options it does not take.
    """
    merged = _merge(config.options, options or {})
    first = _make(config.id, merged)
    shared = {key: value for key, value in merged.items() if key not in ("tasks", "task_options")}
    shared |= _tool_env(first).shared_options()
    return [first, *(_make(config.id, shared) for _ in range(count - 1))]


def _make(name: str, options: Mapping[str, Any]) -> Env:
    try:
        env = gym.make(name, disable_env_checker=True, **options)
    except OvdGymError:
        raise
    except gym.error.Error as error:
        known = [spec for spec in gym.registry if spec.startswith("ovd_gym/")]
        raise ConfigError(f"{unknown('environment', name, known)} ({_line(error)})") from None
    except Exception as error:  # a plug-in may raise anything while it is made; it becomes one line
        raise ConfigError(f"environment {name!r} cannot be made: {type(error).__name__}: {_line(error)}") from error
    _tool_env(env)
    return cast(Env, env)


def _advised(envs: Sequence[Env], teacher: Teacher, config: FeedbackConfig) -> list[Env]:
    """``envs`` in which the teacher speaks."""
    return [TeacherFeedback(env, teacher, when=config.when, threshold=config.threshold) for env in envs]


def _demonstrator(config: TrainConfig, given: DemonstratorConfig, tasks: Sequence[Task], chat: Chat) -> Agent:
    """The demonstrator; it speaks in the student's tokens."""
    if given.model is None:
        return ScriptedAgent(_policy(given, tasks), chat)
    model, tokenizer = load_model(given.model, dtype=config.student.dtype, device=config.student.device)
    own = make_chat(tokenizer, "auto")
    own.stop_ids = tuple(dict.fromkeys((*own.stop_ids, *_end_ids(model))))
    return Retold(Student(TransformersLM(Decoder(model), tokenizer), own, given.max_turn_tokens), chat)


def _distiller(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> Decoder:
    """The model whose logits are distilled. Raises ConfigError unless its token ids mean what the student's do."""
    assert config.distillation is not None
    model, own = load_model(config.distillation.model, dtype=config.student.dtype, device=config.student.device)
    if own.get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"distillation.model {config.distillation.model!r} has another tokenizer than the student: token-level "
            "distillation cannot compare them (the other arms can)"
        )
    return Decoder(model.requires_grad_(False))


def _policy(config: DemonstratorConfig, tasks: Sequence[Task]) -> Policy:
    """The demonstrator's policy for ``tasks``."""
    factory = find_function("demonstrator.policy", config.policy or "")
    check_options(f"demonstrator.policy {config.policy!r}", partial(factory, tasks), config.options)
    try:
        policy: Policy = factory(tasks, **config.options)
    except ValueError as error:
        raise ConfigError(f"demonstrator.policy {config.policy!r}: {error}") from None
    return policy


def _end_ids(model: Any) -> list[int]:
    """Tokens with which the model's own generation settings end a turn."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [ids] if isinstance(ids, int) else list(ids or ())


def _line(error: Exception) -> str:
    """The message in one line, without the arguments that Gymnasium appends."""
    return " ".join(str(error).partition(" was raised from")[0].split())


def _tool_env(env: gym.Env[Any, Any]) -> ToolEnv:
    if not isinstance(env.unwrapped, ToolEnv):
        raise ConfigError(f"{type(env.unwrapped).__name__} is not an ovd_gym.envs.base.ToolEnv")
    return env.unwrapped


def _held_out(config: TrainConfig) -> tuple[Sequence[Env], Sequence[Task]]:
    """Environments and tasks of the evaluation."""
    if config.evaluation is None:
        return (), ()
    count = config.evaluation.episodes
    envs = make_envs(config.env, min(count, config.rollout.max_rows), config.evaluation.options)
    available = _tool_env(envs[0]).tasks
    if len(available) < count:
        raise ConfigError(f"evaluation.episodes is {count}, but there are only {len(available)} held-out tasks")
    return envs, [available[i] for i in range(count)]


def _apart(tasks: Sequence[Task], held_out: Sequence[Task]) -> Sequence[Task]:
    """``tasks`` without those whose question is held out."""
    if not held_out:
        return tasks
    questions = {task.question for task in held_out}
    trained = [task for task in (tasks[i] for i in range(len(tasks))) if task.question not in questions]
    if not trained:
        raise ConfigError("every training task is an evaluation task; set evaluation.options to other tasks")
    return trained


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
