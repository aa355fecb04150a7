"""From labelled data and stored runs to a fitted teacher that has been measured: what ``ovd-gym fit-teacher`` does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from ovd_gym.build import Worlds, load_student, make_learner, make_players
from ovd_gym.critique import score_attempts
from ovd_gym.errors import ConfigError
from ovd_gym.learner import Learner
from ovd_gym.recorder import Recorder, load_checkpoint
from ovd_gym.records import Trajectory, load_jsonl
from ovd_gym.teachers.fitted import FittedTeacher
from ovd_gym.teachers.labelled import Attempt, load_attempts
from ovd_gym.teachers.measure import Measurement, measure
from ovd_gym.values import StepValues, step_values

__all__ = ["is_run", "measured", "run_values", "training_attempts"]

_BATCH = 16
"""Attempts scored at once."""


def is_run(path: Path) -> bool:
    """Whether ``path`` is a run folder."""
    return (path / "config.yaml").is_file()


def training_attempts(path: Path, limit: int | None = None, source: str = "*") -> list[Attempt]:
    """The attempts in ``path`` to fit to; of a run folder the training episodes alone.

    The held-out questions of a run are kept from the teacher that may train it next. Arguments and errors are those of
    :func:`~ovd_gym.teachers.labelled.load_attempts`.
    """
    return load_attempts(path, limit, "*/step-*" if is_run(path) and source == "*" else source)


def run_values(
    run: Path,
    ids: Collection[str],
    continuations: int,
    on_episode: Callable[[int, int], None] = lambda done, total: None,
) -> list[StepValues]:
    """Values of the steps of a run's training episodes called ``ids``, for the student at its last checkpoint.

    Raises:
        ConfigError: no run folder, or one without a checkpoint. DataError: a damaged one.
    """
    recorder = Recorder.resume(run)
    if not (saved := recorder.checkpoints()):
        raise ConfigError(f"{run} has no checkpoint: its student cannot play on")
    files = sorted((run / "trajectories").glob("step-*.jsonl"))
    trajectories = [t for file in files for t in load_jsonl(file, Trajectory) if t.id in ids]
    config = recorder.config.model_copy(update={"teacher": None, "feedback": None})
    voice = load_student(config)
    players = make_players(config, Worlds.of(config), voice, None)
    try:
        load_checkpoint(saved[-1], make_learner(config, voice.decoder, Learner))
        return step_values(
            trajectories,
            players.training.take(
                min(config.rollout.tasks_per_step * config.rollout.group_size, config.rollout.max_rows)
            ),
            players.student,
            continuations=continuations,
            seed=(recorder.config.seed, 3),
            on_episode=on_episode,
        )
    finally:
        players.close()


def measured(
    teacher: FittedTeacher, attempts: Sequence[Attempt], on_batch: Callable[[int], None] = lambda done: None
) -> Measurement | None:
    """What ``teacher`` is worth on ``attempts``, with the threshold it was fitted with; None without attempts."""
    critiques = []
    for first in range(0, len(attempts), _BATCH):
        critiques += score_attempts(teacher, attempts[first : first + _BATCH])
        on_batch(len(critiques))
    return measure(attempts, critiques, threshold=teacher.card.threshold) if attempts else None
