"""The parts of a run that is spread over processes and machines."""

from __future__ import annotations

from contextlib import ExitStack
from typing import NamedTuple

from ovd_gym.build import Parts, Voice, Worlds, assemble, load_student, make_learner, make_players, seeded_teacher
from ovd_gym.config import TrainConfig
from ovd_gym.errors import ConfigError
from ovd_gym.learner import Learner
from ovd_gym.placement import ScaleConfig
from ovd_gym.players import Players
from ovd_gym.scale.learners import leading
from ovd_gym.teachers.base import Teacher

__all__ = ["scaled_parts"]


class _Cast(NamedTuple):
    players: Players
    teacher: Teacher | None


def scaled_parts(config: TrainConfig, given: Teacher | None = None) -> Parts:
    """As :func:`~ovd_gym.build.build`, with workers and learners where ``config.scale`` asks for them.

    Raises :class:`ConfigError` as that does, also for what only another process finds out.
    """
    assert config.scale is not None
    worlds = Worlds.of(config)
    voice = load_student(config)
    with ExitStack() as stack:
        distributed = config.scale.workers + config.scale.teachers > 0
        cast = (_on_ray if distributed else _here)(config, worlds, voice, given, stack)
        learner: Learner
        if config.scale.learners > 1:  # the student samples with a whole copy: shards are the learner's
            learner = stack.enter_context(leading(config, load_student(config).decoder))
        else:
            learner = make_learner(config, voice.decoder, Learner)
        release = stack.pop_all().close
    return assemble(config, worlds, voice, cast.players, learner, cast.teacher, release)


def _here(config: TrainConfig, worlds: Worlds, voice: Voice, given: Teacher | None, stack: ExitStack) -> _Cast:
    teacher = seeded_teacher(config, given)
    return _Cast(make_players(config, worlds, voice, teacher), teacher)


def _on_ray(config: TrainConfig, worlds: Worlds, voice: Voice, given: Teacher | None, stack: ExitStack) -> _Cast:
    """Players or teacher, or both, on a Ray cluster."""
    try:
        from ovd_gym.scale.cluster import connected
        from ovd_gym.scale.workers import RayPlayers, RayTeacher
    except ImportError as error:
        raise ConfigError(f"scale.workers and scale.teachers need Ray ({error}): pip install 'ovd-gym[ray]'") from None
    scale = config.scale or ScaleConfig(workers=1)
    weights = sum(p.numel() * p.element_size() for p in voice.decoder.trained.values())
    stack.enter_context(connected(scale, weights))
    teacher: Teacher | None
    if scale.teachers:
        teacher = RayTeacher(config, given)
        stack.callback(teacher.close)
    else:
        teacher = seeded_teacher(config, given)
    if not scale.workers:
        return _Cast(make_players(config, worlds, voice, teacher), teacher)
    players = RayPlayers(config, given if config.feedback else None)
    stack.callback(players.close)
    return _Cast(players, teacher)
