"""From a configuration to the parts of a run; everything that can be refused is refused here, before a run exists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from transformers import PreTrainedTokenizerBase

from ovd_gym.agents.base import Agent
from ovd_gym.agents.chat import Chat
from ovd_gym.agents.retold import Retold
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.config import DemonstratorConfig, EnvConfig, StudentConfig, TrainConfig
from ovd_gym.errors import ConfigError
from ovd_gym.learner import Learner, trainable_model
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model, load_tokenizer, quiet
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.players import LocalPlayers, Players, Stage
from ovd_gym.plugins import check_options, find_function
from ovd_gym.ranks import Ranks
from ovd_gym.records import Task
from ovd_gym.rollout import Env
from ovd_gym.sampler import make_sampler
from ovd_gym.teachers.base import Teacher
from ovd_gym.teachers.registry import make_teacher
from ovd_gym.worlds import family, tool_env
from ovd_gym.wrappers import TeacherFeedback

__all__ = [
    "Parts",
    "Voice",
    "World",
    "Worlds",
    "assemble",
    "build",
    "load_distiller",
    "load_player",
    "load_student",
    "make_envs",
    "make_learner",
    "make_players",
    "merge_options",
    "seeded_teacher",
]


class Voice(NamedTuple):
    """The student's model and how it talks."""

    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    chat: Chat


@dataclass(frozen=True)
class Parts:
    """The components of one run."""

    players: Players
    learner: Learner
    teacher: Teacher | None
    distiller: Decoder | None
    """The teacher model of arm ``token-opd``."""
    voice: Voice
    """A whole copy of the student, or the one that is trained."""
    tasks: Sequence[Task]
    """To train on; none of them asks a held-out question."""
    held_out_tasks: Sequence[Task]
    """Empty without an evaluation section."""
    canaries: str | None
    """Name of the canary set of this world."""
    release: Callable[[], None] = lambda: None
    """Let go of what is not the players': workers and processes."""

    def export(self, path: Path, card: str) -> None:
        """Write the trained model as a plain transformers (or peft) folder, with ``card`` as its README."""
        self.voice.decoder.load(self.learner.weights())
        model: Any = self.voice.decoder.model
        with quiet():
            model.save_pretrained(path)
        self.voice.tokenizer.save_pretrained(path)
        (path / "README.md").write_text(card, encoding="utf-8")

    def close(self) -> None:
        """Let go of everything the parts hold."""
        self.players.close()
        self.release()


class World(NamedTuple):
    """One environment and what makes more of its kind."""

    first: Env
    more: Callable[[], Env]

    def stage(self, prepare: Callable[[Env], Env]) -> Stage:
        """A supply of such environments, each of them prepared."""
        return Stage(lambda: prepare(self.more()), [prepare(self.first)])


@dataclass(frozen=True)
class Worlds:
    """The environments and tasks of a run."""

    training: World
    held_out: World | None
    tasks: Sequence[Task]
    held_out_tasks: Sequence[Task]

    @classmethod
    def of(cls, config: TrainConfig) -> Worlds:
        """Those of ``config``. Raises :class:`ConfigError` for an unknown environment or options it does not take."""
        training = _world(config.env)
        held_out, held_out_tasks = _held_out(config)
        return cls(training, held_out, _apart(tool_env(training.first).tasks, held_out_tasks), held_out_tasks)

    @property
    def canaries(self) -> str | None:
        """Name of the canary set of this world."""
        return tool_env(self.training.first).canaries


def build(config: TrainConfig, teacher: Teacher | None = None) -> Parts:
    """Make the parts in this process; ``teacher``, when given, takes the place of the configured one.

    Raises :class:`ConfigError` for an unknown environment, model or teacher and for options they do not take.
    """
    worlds = Worlds.of(config)
    teacher = seeded_teacher(config, teacher)
    voice = load_student(config)
    players = make_players(config, worlds, voice, teacher)
    learner = make_learner(config, voice.decoder, Learner)
    return assemble(config, worlds, voice, players, learner, teacher)


def assemble(
    config: TrainConfig,
    worlds: Worlds,
    voice: Voice,
    players: Players,
    learner: Learner,
    teacher: Teacher | None,
    release: Callable[[], None] = lambda: None,
) -> Parts:
    """The parts, and what is left to make of them."""
    distiller = load_distiller(config) if config.distillation else None
    return Parts(
        players, learner, teacher, distiller, voice, worlds.tasks, worlds.held_out_tasks, worlds.canaries, release
    )


def seeded_teacher(config: TrainConfig, given: Teacher | None) -> Teacher | None:
    """The ``given`` teacher or the configured one, its random draws made repeatable."""
    if given is None and config.teacher is not None:
        given = make_teacher(config.teacher.name, **config.teacher.options)
    if given is not None:
        given.seed(config.seed)
    return given


def load_student(config: TrainConfig) -> Voice:
    """The student with the weights that training begins with. Raises ConfigError for a model that cannot be used."""
    student = config.student
    four_bit = student.quantization is not None
    model, tokenizer = load_model(student.model, dtype=student.dtype, device=student.device, four_bit=four_bit)
    decoder = Decoder(trainable_model(model, config.learner, config.seed))
    return Voice(decoder, tokenizer, _chat(config.student, tokenizer, model))


def load_player(config: StudentConfig) -> Student:
    """A model as an agent, to be played and not trained. Raises ConfigError for a model that cannot be used."""
    model, tokenizer = load_model(config.model, dtype=config.dtype, device=config.device)
    return _student(config, Voice(Decoder(model), tokenizer, _chat(config, tokenizer, model)))


def _student(config: StudentConfig, voice: Voice) -> Student:
    lm = TransformersLM(voice.decoder, voice.tokenizer, config.max_context)
    return Student(lm, voice.chat, config.max_turn_tokens)


def _chat(config: StudentConfig, tokenizer: PreTrainedTokenizerBase, model: Any) -> Chat:
    """The layout, with the tokens that the model's own generation settings end a turn with."""
    chat = make_chat(tokenizer, config.chat, config.plain)
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    own = [ids] if isinstance(ids, int) else list(ids or ())
    chat.stop_ids = tuple(dict.fromkeys((*chat.stop_ids, *own)))
    return chat


def make_players(config: TrainConfig, worlds: Worlds, voice: Voice, teacher: Teacher | None) -> LocalPlayers:
    """Players of this process; ``teacher`` speaks in their environments if the configuration says so."""
    decoder = voice.decoder.twin() if config.rollout.staleness else voice.decoder
    lm, sender = make_sampler(config, decoder, voice.tokenizer)
    student = Student(lm, voice.chat, config.student.max_turn_tokens)
    demonstrator = _demonstrator(config, config.demonstrator, worlds.tasks, voice.chat) if config.demonstrator else None

    def plain(env: Env) -> Env:
        tool_env(env).count_tokens = voice.chat.count_tokens
        return env

    def advised(env: Env) -> Env:
        assert teacher is not None
        assert config.feedback is not None
        return TeacherFeedback(plain(env), teacher, when=config.feedback.when, threshold=config.feedback.threshold)

    helped = config.feedback is not None
    helped_held_out = config.feedback is not None and config.feedback.evaluation
    return LocalPlayers(
        student,
        demonstrator,
        decoder,
        worlds.training.stage(advised if helped else plain),
        worlds.held_out.stage(advised if helped_held_out else plain) if worlds.held_out else None,
        config.rollout,
        sender,
        config.student.max_context or voice.decoder.max_positions,
    )


L = TypeVar("L", bound=Learner)


def make_learner(config: TrainConfig, decoder: Decoder, kind: type[L], ranks: Ranks | None = None) -> L:
    """The learner that trains ``decoder``, of its class ``kind``."""
    value = config.value if config.credit.estimator == "gae" else None
    return kind(decoder, config.learner, config.steps, value, ranks)


def make_envs(config: EnvConfig, count: int, options: Mapping[str, Any] | None = None) -> list[Env]:
    """``count`` instances that share their tasks; ``options`` is laid over ``config.options``, mapping by mapping.

    Raises :class:`ConfigError` for an unknown id, a class that is not a ToolEnv, or options it does not take.
    """
    world = _world(config, options)
    return [world.first, *(world.more() for _ in range(count - 1))]


def _world(config: EnvConfig, options: Mapping[str, Any] | None = None) -> World:
    return World(*family(config.id, merge_options(config.options, options or {})))


def _demonstrator(config: TrainConfig, given: DemonstratorConfig, tasks: Sequence[Task], chat: Chat) -> Agent:
    """The demonstrator; it speaks in the student's tokens."""
    if given.model is None:
        made = _made_for(given, tasks)
        return Retold(made, chat) if callable(getattr(made, "open", None)) else ScriptedAgent(made, chat)
    teller = StudentConfig(
        model=given.model,
        max_turn_tokens=given.max_turn_tokens,
        dtype=config.student.dtype,
        device=config.student.device,
    )
    return Retold(load_player(teller), chat)


def load_distiller(config: TrainConfig) -> Decoder:
    """The model whose logits are distilled. Raises ConfigError unless its token ids mean what the student's do."""
    assert config.distillation is not None
    model, own = load_model(config.distillation.model, dtype=config.student.dtype, device=config.student.device)
    if own.get_vocab() != load_tokenizer(config.student.model).get_vocab():
        raise ConfigError(
            f"distillation.model {config.distillation.model!r} has another tokenizer than the student: token-level "
            "distillation cannot compare them (the other arms can)"
        )
    return Decoder(model.requires_grad_(False))


def _made_for(config: DemonstratorConfig, tasks: Sequence[Task]) -> Any:
    """The demonstrator's policy for ``tasks``, or an agent."""
    factory = find_function("demonstrator.policy", config.policy or "")
    check_options(f"demonstrator.policy {config.policy!r}", partial(factory, tasks), config.options)
    try:
        return factory(tasks, **config.options)
    except ValueError as error:
        raise ConfigError(f"demonstrator.policy {config.policy!r}: {error}") from None


def _held_out(config: TrainConfig) -> tuple[World | None, Sequence[Task]]:
    """The world and the tasks of the evaluation."""
    if config.evaluation is None:
        return None, ()
    count = config.evaluation.episodes
    world = _world(config.env, config.evaluation.options)
    available = tool_env(world.first).tasks
    if len(available) < count:
        raise ConfigError(f"evaluation.episodes is {count}, but there are only {len(available)} held-out tasks")
    return world, [available[i] for i in range(count)]


def _apart(tasks: Sequence[Task], held_out: Sequence[Task]) -> Sequence[Task]:
    """``tasks`` without those whose question is held out."""
    if not held_out:
        return tasks
    questions = {task.question for task in held_out}
    trained = [task for task in (tasks[i] for i in range(len(tasks))) if task.question not in questions]
    if not trained:
        raise ConfigError("every training task is an evaluation task; set evaluation.options to other tasks")
    return trained


def merge_options(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``, mapping by mapping."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge_options(merged[key], value) if both else value
    return merged
