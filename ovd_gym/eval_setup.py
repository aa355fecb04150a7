"""From the words of ``ovd-gym eval`` to who plays what: the agent, the worlds with their questions, the settings.

================================  ==================================================================================
agent                             options after it
================================  ==================================================================================
a run folder                      those of the student, such as ``max_turn_tokens=512``
a model: folder, package, hub id  the same
``package.module:function``       those of the function, which is called with the questions and returns a policy
                                  for a :class:`~ovd_gym.agents.scripted.ScriptedAgent`, or an agent
================================  ==================================================================================
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import numpy as np
from pydantic import JsonValue, ValidationError, model_validator

from ovd_gym.agents.base import Agent
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.build import load_player, make_envs, merge_options
from ovd_gym.config import EnvConfig, StudentConfig, TrainConfig
from ovd_gym.config_files import load_config, parse_spec
from ovd_gym.envs.math_qa.tasks import BENCHMARKS as MATH
from ovd_gym.envs.web_search.datasets import BENCHMARKS as SEARCH
from ovd_gym.envs.web_search.sources import require_backend
from ovd_gym.errors import ConfigError, DataError, unknown
from ovd_gym.llm.base import Decoding
from ovd_gym.llm.models import describe_model
from ovd_gym.plugins import check_options, find_function
from ovd_gym.provenance import tasks_hash, text_hash, versions
from ovd_gym.records import Message, Record, Task, first_problem
from ovd_gym.rollout import Env
from ovd_gym.worlds import tool_env

__all__ = ["Contest", "Entrant", "Plan", "Settings", "contests", "entrant", "open_contest", "training_of"]

_LIBRARIES = (
    "ovd-gym",
    "gymnasium",
    "numpy",
    "math-verify",
    "reasoning-gym",
    "tantivy",
    "torch",
    "transformers",
    "peft",
)
_WORLDS = {"ovd_gym/Math-v0": (*MATH, "reasoning_gym", "hub"), "ovd_gym/Search-v0": (*SEARCH, "closed", "world")}
"""Which questions belong to which of the embedded worlds, by the part of their name before a colon."""


@dataclass(frozen=True)
class Entrant:
    """Who is evaluated."""

    describe: Mapping[str, JsonValue]
    """Which agent this is, and all that was set."""
    play: Callable[[Sequence[Task]], Agent]
    """The agent for these questions."""
    prompt: Callable[[Sequence[Message], Sequence[str]], list[int]] | None = None
    """A conversation and the strings that end a turn to the token ids that the model reads; None: it reads no ids."""
    count_tokens: Callable[[str], int] | None = None


class Contest(NamedTuple):
    """Questions by name, in their world."""

    label: str
    """What they are called in tables and file names."""
    env: EnvConfig


class Plan(Record):
    """How the questions are asked."""

    samples: int = 1
    """Episodes per question."""
    temperature: float = 0.0
    """0: the likeliest token each time."""
    top_p: float = 1.0
    seed: int = 0
    batch: int = 64
    """Episodes at once."""
    limit: int | None = None
    """A fixed random choice of so many questions."""

    @property
    def decoding(self) -> Decoding:
        """How tokens are drawn. Raises :class:`ConfigError` for a temperature or top_p that means nothing."""
        return Decoding(self.temperature, self.top_p)

    @model_validator(mode="after")
    def _effective(self) -> Self:
        greedy = self.decoding.temperature == 0
        if greedy and self.samples > 1:
            raise ConfigError("at temperature 0 all samples are the same: raise the temperature, or ask for one")
        if greedy and self.top_p != 1:
            raise ConfigError("top_p has no effect at temperature 0")
        return self


class Settings(Record):
    """Everything that a figure has to be the same in to be compared with another."""

    agent: dict[str, JsonValue]
    data: dict[str, JsonValue]
    """Spec, number and hash of the questions, and where they were loaded from."""
    world: dict[str, JsonValue]
    """What the environment says of itself: turns, rule for answers, retriever with the hash of its corpus."""
    prompt: dict[str, JsonValue]
    """The instructions, their hash, and that of the token ids of the first question's prompt."""
    plan: Plan
    versions: dict[str, str]


# Who ------------------------------------------------------------------------------------------------------


def training_of(text: str) -> TrainConfig | None:
    """How the agent that ``text`` names was trained: the configuration of a run folder, None for any other agent."""
    file = Path(parse_spec(text, "agent")[0]) / "config.yaml"
    return load_config(file) if file.is_file() else None


def entrant(text: str) -> Entrant:
    """The agent that ``text`` names, options after it. Raises :class:`ConfigError` for an unknown one."""
    name, options = parse_spec(text, "agent")
    if (config := training_of(text)) is not None:
        return _trained(Path(name), config, options)
    if ":" in name and not name.startswith("package:"):
        return _scripted(name, options)
    return _model(StudentConfig, {"model": name}, options)


def _trained(run: Path, config: TrainConfig, options: Mapping[str, Any]) -> Entrant:
    """The student of a run folder as it was exported."""
    if not (run / "model").is_dir():
        raise ConfigError(f"{run} holds no finished model: go on with ovd-gym train --resume {run}")
    return _model(StudentConfig, config.student.model_dump() | {"model": str(run / "model")}, options)


def _model(kind: type[StudentConfig], base: Mapping[str, Any], options: Mapping[str, Any]) -> Entrant:
    if "model" in options:
        raise ConfigError(f"the agent {base['model']!r} is a model already: leave out the option model")
    if strange := [key for key in options if key not in kind.model_fields]:
        allowed = set(kind.model_fields) - {"model"}
        raise ConfigError(unknown(f"option of agent {base['model']!r}:", strange[0], allowed))
    try:
        config = kind.model_validate({**base, **options})
    except ValidationError as error:
        raise ConfigError(f"agent {base['model']!r}: {first_problem(error)}") from None
    weights = describe_model(config.model)
    student = load_player(config)
    commit = getattr(student.lm.decoder.config, "_commit_hash", None)  # type: ignore[attr-defined]
    return Entrant(
        describe={**config.model_dump(mode="json"), "weights": weights | ({"revision": commit} if commit else {})},
        play=lambda tasks: student,
        prompt=student.chat.prompt,
        count_tokens=student.chat.count_tokens,
    )


def _scripted(name: str, options: Mapping[str, Any]) -> Entrant:
    factory = find_function("agent", name)
    check_options(f"agent {name!r}", partial(factory, ()), options)
    return Entrant({"policy": name, "options": dict(options)}, partial(_play, name, factory, options))


def _play(name: str, factory: Callable[..., Any], options: Mapping[str, Any], tasks: Sequence[Task]) -> Agent:
    try:
        made = factory(tasks, **options)
    except ValueError as error:
        raise ConfigError(f"agent {name!r}: {error}") from None
    return cast(Agent, made) if callable(getattr(made, "open", None)) else ScriptedAgent(made)


# What -----------------------------------------------------------------------------------------------------


def contests(data: Sequence[str], env: str | None, run: TrainConfig | None) -> list[Contest]:
    """The questions that ``data`` names, each in its world.

    Args:
        data: names with options after them; empty takes the environment's own questions, of a run the held-out ones.
        env: id of the environment, options after it; None takes the run's, or the world that the questions belong to.
        run: where the agent was trained.

    Raises:
        ConfigError: nothing says which environment, or the questions belong to another one, or need a search backend.
    """
    base = None if run is None else run.env
    if env is not None:
        name, options = parse_spec(env, "environment")
        base = EnvConfig(id=name, options=options)
    if data:
        return _labelled([_contest(*parse_spec(text, "data"), base) for text in data])
    if base is None:
        raise ConfigError("say which questions: --data NAME or --env ID; only a run folder brings its own")
    if env is None and run is not None and run.evaluation is not None:
        held_out = merge_options(base.options, run.evaluation.options)
        return [Contest("held-out", EnvConfig(id=base.id, options=held_out))]
    return [Contest(_slug(base.id.rpartition(":")[2]), base)]


def _contest(name: str, options: Mapping[str, Any], base: EnvConfig | None) -> Contest:
    home = next((world for world, names in _WORLDS.items() if name.partition(":")[0] in names), None)
    if base is None and home is None:
        raise ConfigError(f"data {name!r}: which environment is it for? Say so, as in --env ovd_gym/Math-v0")
    if base is not None and home is not None and base.id != home and base.id in _WORLDS:
        raise ConfigError(f"data {name!r} belongs to {home}, the environment is {base.id}: give --env {home}")
    world = base or EnvConfig(id=str(home))
    if world.id == "ovd_gym/Search-v0":
        require_backend(world.options.get("backend"), name)
    kept = {key: value for key, value in world.options.items() if key not in ("tasks", "task_options")}
    asked: dict[str, JsonValue] = {"tasks": name, **({"task_options": dict(options)} if options else {})}
    label = Path(name).name.partition(".")[0] if name.endswith((".jsonl", ".jsonl.gz")) else name
    return Contest(_slug(label), EnvConfig(id=world.id, options={**kept, **asked}))


def _labelled(found: Sequence[Contest]) -> list[Contest]:
    """``found`` with labels of their own: the second of a name is ``name-2``."""
    seen: dict[str, int] = {}
    named = []
    for contest in found:
        seen[contest.label] = count = seen.get(contest.label, 0) + 1
        named.append(contest if count == 1 else contest._replace(label=f"{contest.label}-{count}"))
    return named


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "data"


# Settings -------------------------------------------------------------------------------------------------


def open_contest(contest: Contest, player: Entrant, plan: Plan) -> tuple[list[Env], list[Task], Settings]:
    """The environments, as many as play at once, the questions, and all that the figures depend on."""
    per_batch = max(1, plan.batch // plan.samples)
    envs = make_envs(contest.env, per_batch * plan.samples)
    world = tool_env(envs[0])
    if player.count_tokens is not None:
        for env in envs:
            tool_env(env).count_tokens = player.count_tokens
    tasks = _chosen(world.tasks, plan.limit)
    if twice := [name for name, count in Counter(task.id for task in tasks).items() if count > 1]:
        raise DataError(f"{contest.label}: two questions have the id {twice[0]!r}: figures are kept by id")
    world.reset(seed=0, options={"task": tasks[0]})
    system = world.opening()[0].content
    prompt: dict[str, JsonValue] = {"sha256": text_hash(system), "text": system}
    if player.prompt is not None:
        ids = player.prompt(world.opening(), world.action_format.stop)
        prompt["first_ids_sha256"] = text_hash(" ".join(map(str, ids)))
    asked: dict[str, JsonValue] = {
        "env": contest.env.model_dump(mode="json"),
        "questions": len(tasks),
        "sha256": tasks_hash(tasks),
        "loaded_from": tasks[0].metadata.get("loaded_from"),
    }
    settings = Settings(
        agent=dict(player.describe),
        data=asked,
        world=world.describe(),
        prompt=prompt,
        plan=plan,
        versions=versions(*_LIBRARIES),
    )
    return envs, tasks, settings


def _chosen(tasks: Sequence[Task], limit: int | None) -> list[Task]:
    if limit is None or limit >= len(tasks):
        return [tasks[i] for i in range(len(tasks))]
    return [tasks[int(i)] for i in sorted(np.random.default_rng(0).permutation(len(tasks))[:limit])]
