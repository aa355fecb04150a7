"""What plays and judges on a cluster. A worker owns its environments and its copy of the student; rounds come as data,
weights through the object store, and trajectories go back as records."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import ray
from safetensors.torch import load, save
from torch import Tensor

from ovd_gym.build import Worlds, load_student, make_players, seeded_teacher
from ovd_gym.config import TrainConfig
from ovd_gym.errors import ConfigError, InfrastructureError
from ovd_gym.llm.choice import Usage
from ovd_gym.players import LocalPlayers, OnTurn, Round
from ovd_gym.records import Score, Trajectory
from ovd_gym.scale.pool import Lost, Pool
from ovd_gym.teachers.base import Teacher, View

__all__ = ["RayPlayers", "RayTeacher"]


class Weights(NamedTuple):
    """One version of the student's trained weights, in the object store."""

    version: int
    sha256: str
    blob: list[Any]
    """A reference to them in safetensors format; in a list, so that a worker fetches it only if it needs it."""


class Card(NamedTuple):
    """What there is to know of a teacher that lives elsewhere."""

    name: str
    privileged: bool
    explains: bool
    relative: bool


class Judged(NamedTuple):
    """What a teacher's worker gives back."""

    scores: list[Score]
    worker: str
    usage: Usage
    """All that this worker has used until now."""


class PlayWorker:
    """A process that plays."""

    def prepare(self, config: TrainConfig, teacher: Teacher | None) -> None:
        """Load the student and make the environments; ``teacher``, if given, takes the configured one's place."""
        speaks = seeded_teacher(config, teacher) if config.feedback else None
        in_step = config.rollout.model_copy(update={"staleness": 0})  # ahead or not is the trainer's to decide
        config = config.model_copy(update={"rollout": in_step})
        self._players: LocalPlayers = make_players(config, Worlds.of(config), load_student(config), speaks)
        self._version = -1

    def play(self, part: Round, weights: Weights) -> list[Trajectory]:
        """Play a part of a round, with these weights."""
        if weights.version != self._version:
            blob = ray.get(weights.blob[0])
            if hashlib.sha256(blob).hexdigest() != weights.sha256:
                raise InfrastructureError(f"the weights of version {weights.version} arrived damaged")
            self._players.load_weights(load(blob), weights.version)
            self._version = weights.version
        return self._players.play(part)


class TeachWorker:
    """A process that judges."""

    def prepare(self, config: TrainConfig, teacher: Teacher | None) -> Card:
        """Make the teacher; ``teacher``, if given, is it."""
        made = seeded_teacher(config, teacher)
        assert made is not None, "scale.teachers without a teacher is refused by the configuration"
        self._teacher = made
        return Card(made.name, made.privileged, made.explains, made.relative)

    def score(self, views: Sequence[View]) -> Judged:
        """Judge ``views``."""
        scores = self._teacher.score_batch(views)
        return Judged(scores, str(ray.get_runtime_context().get_actor_id()), self._teacher.usage())


class RayPlayers:
    """Players on a cluster; see :class:`~ovd_gym.players.Players`.

    The part of a round that a worker plays at a time is the unit: a worker that is lost takes the episodes of its
    part with it, and they are played again by another one, from the same seeds. A part that has cost several workers
    comes back as failed episodes.

    Args:
        teacher: an object that speaks in the environments in place of the configured teacher; None without one.
    """

    def __init__(self, config: TrainConfig, teacher: Teacher | None) -> None:
        assert config.scale is not None
        self._episodes_per_part = config.scale.episodes_per_part
        self._workers = config.scale.workers
        self._weights: Weights | None = None
        make = ray.remote(PlayWorker).options(
            num_cpus=config.scale.cpus_per_worker, num_gpus=config.scale.gpus_per_worker
        )
        given = (config, _stored(teacher))
        self._pool = Pool(
            "worker", self._workers, make.remote, lambda actor: actor.prepare.remote(*given),
            config.scale.start_timeout_s,
        )  # fmt: skip

    def play(self, played: Round, on_turn: OnTurn = lambda done, tokens: None) -> list[Trajectory]:
        """See :class:`~ovd_gym.players.Players`; finished parts are what is counted."""
        share = math.ceil(len(played.tasks) / self._workers) * played.group_size
        parts = list(played.parts(self._episodes_per_part or share))
        finished: list[Trajectory] = []

        def count(result: list[Trajectory] | Lost) -> None:
            finished.extend([] if isinstance(result, Lost) else result)

        results = self._pool.run(
            "play", [(part, self._weights) for part in parts], count,
            lambda: on_turn(len(finished), sum(t.num_sampled for t in finished)),
        )  # fmt: skip
        return [t for part, result in zip(parts, results, strict=True) for t in _episodes(part, result)]

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Put the weights into the object store, once for all workers."""
        blob = save({name: weight.detach().cpu().contiguous() for name, weight in weights.items()})
        self._weights = Weights(version, hashlib.sha256(blob).hexdigest(), [ray.put(blob)])

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


class RayTeacher(Teacher):
    """The teacher of a run, on a cluster: many views are judged side by side, those of one group by one worker."""

    name = "ray"

    def __init__(self, config: TrainConfig, teacher: Teacher | None) -> None:
        assert config.scale is not None
        self._workers = config.scale.teachers
        self._used: dict[str, Usage] = {}
        make = ray.remote(TeachWorker).options(
            num_cpus=config.scale.cpus_per_teacher, num_gpus=config.scale.gpus_per_teacher
        )
        given = (config, _stored(teacher))
        self._pool = Pool(
            "teacher", self._workers, make.remote, lambda actor: actor.prepare.remote(*given),
            config.scale.start_timeout_s,
        )  # fmt: skip
        card: Card = self._pool.prepared
        self.name, self.privileged, self.explains, self.relative = card

    def score(self, view: View) -> Score:
        """See :class:`~ovd_gym.teachers.base.Teacher`."""
        return self.score_batch([view])[0]

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """See :class:`~ovd_gym.teachers.base.Teacher`."""
        parts = _by_group(views, math.ceil(len(views) / self._workers))
        results: list[Judged | Lost] = self._pool.run("score", [(part,) for part in parts])
        scores: list[Score] = []
        for part, result in zip(parts, results, strict=True):
            if isinstance(result, Lost):
                scores += [Score.invalid("error", result.reason)] * len(part)
            else:
                scores += result.scores
                self._used[result.worker] = result.usage
        return scores

    def usage(self) -> Usage:
        """See :class:`~ovd_gym.teachers.base.Teacher`; what a lost worker used since its last answer is not known."""
        return sum(self._used.values(), Usage())

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


def _stored(teacher: Teacher | None) -> Any:
    """A reference to a Teacher object in the object store. Raises ConfigError if it cannot be sent."""
    try:
        return ray.put(teacher)
    except TypeError as error:
        raise ConfigError(
            f"the Teacher object {teacher.name if teacher else None!r} cannot be sent to another process ({error}): "
            "name its class as teacher.name, or set scale.teachers to 0"
        ) from error


def _by_group(views: Sequence[View], count: int) -> list[list[View]]:
    """``views`` in pieces of at least ``count``, in order; those of one group stay together."""
    pieces: list[list[View]] = [[]]
    for _, group in groupby(views, key=lambda view: view.group):
        if len(pieces[-1]) >= count:
            pieces.append([])
        pieces[-1] += group
    return pieces


def _episodes(part: Round, result: list[Trajectory] | Lost) -> list[Trajectory]:
    """What was played; for a part that was given up, a failed episode each."""
    if not isinstance(result, Lost):
        return result
    groups = [f"{part.label}/{part.first + i}" for i in range(len(part.tasks))]
    return [
        Trajectory(
            id=f"{group}/{member}",
            group_id=group,
            task=task,
            steps=(),
            token_ids=(),
            logprobs=(),
            reward=None,
            answer=None,
            status="failed",
            reason=result.reason,
            policy_version=part.policy_version,
        )
        for group, task in zip(groups, part.tasks, strict=True)
        for member in range(part.group_size)
    ]
