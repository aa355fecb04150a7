"""The training loop, top to bottom: rollout, critique, credit, update.

Every random draw derives from (seed, training step, episode), so nothing but weights, optimiser state and the step
has to be kept to continue a run exactly (a teacher with randomness of its own has to derive it from what it judges).
Not so ahead of the updates (``rollout.staleness`` above 0): see :mod:`ovd_gym.pipeline`.
Departure from the paper (arXiv 2601.21968): beside its filters (arms ``ovd``
and ``ovd-prefix``) stands ``score-reward``, which mixes the teacher's scores into the reward.
"""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ovd_gym.batch import Batch, pack
from ovd_gym.build import Parts, build
from ovd_gym.config import TrainConfig
from ovd_gym.config_files import load_config
from ovd_gym.credit import Credit, assign_credit
from ovd_gym.errors import ConfigError, TrainingStopped
from ovd_gym.evaluate import evaluate, mean_logprob
from ovd_gym.experience import Experience, gather
from ovd_gym.folders import refuse_links
from ovd_gym.health import reason_to_stop, warnings_of
from ovd_gym.pipeline import Ahead, InStep, Source
from ovd_gym.progress import Display
from ovd_gym.recorder import Recorder
from ovd_gym.records import Trajectory
from ovd_gym.report.card import model_card
from ovd_gym.report.run import write_report
from ovd_gym.teachers.base import Teacher
from ovd_gym.teachers.canaries import probe
from ovd_gym.usage import peak_memory_gib

__all__ = ["RunResult", "demonstrations", "train"]

_OBJECT = "object:"
"""Prefix of ``teacher.name`` in the stored configuration of a run whose teacher was given as an object."""


@dataclass(frozen=True)
class RunResult:
    """Where a run stands and what it measured."""

    path: Path
    steps: int
    """Training steps done; fewer than configured after Ctrl-C."""
    evaluations: list[dict[str, Any]]
    outputs: list[Path]
    """The trained model's folder, then files made for reading."""


def train(
    config: TrainConfig | Mapping[str, Any] | str | Path | None = None,
    *,
    env: str | None = None,
    student: str | None = None,
    teacher: Teacher | str | None = None,
    settings: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    display: Display | None = None,
) -> RunResult:
    """Train a student; the run folder holds everything about it.

    Args:
        config: a YAML file, a mapping, or a TrainConfig; None starts from the defaults.
        env: short for ``env.id``.
        student: short for ``student.model``.
        teacher: short for ``teacher.name``; a Teacher object is used as it is.
        settings: dotted keys laid over the configuration, such as ``{"learner.learning_rate": 1e-4}``.
        resume: a run folder to continue, in place of all of the above; but a Teacher object is given again, and
            settings of ``scale`` may say where the run goes on.
        display: where progress goes.

    Started by torchrun, the process returns on rank 0 alone; on the others it ends when that does.

    Raises:
        ConfigError: nothing has been written. TrainingStopped: the last checkpoint stays valid.
        DataError: the folder to resume holds a link, or is damaged.
    """
    _follow()
    custom = teacher if isinstance(teacher, Teacher) else None
    names = {"env.id": env, "student.model": student, "teacher.name": None if custom else teacher}
    laid = {**{key: name for key, name in names.items() if name is not None}, **(settings or {})}
    if resume is not None:
        if config is not None or any(key.partition(".")[0] != "scale" for key in laid):
            raise ConfigError("a resumed run keeps its configuration, except for scale: give resume, or that beside it")
        refuse_links(*Path(resume).glob("*"))
        recorder = Recorder.resume(Path(resume), laid)
        _same_teacher(recorder.config, custom)
        parts = _parts(recorder.config, custom)
    else:
        tree = config.model_dump(exclude_unset=True) if isinstance(config, TrainConfig) else config
        if custom is not None:
            laid["teacher.name"], laid["teacher.options"] = f"{_OBJECT}{custom.name}", {}
        checked = load_config(tree or {}, laid)
        path = Recorder.free(Path(checked.run_dir or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"))
        parts = _parts(checked, custom)
        recorder = Recorder.create(path, checked, parts.voice.tokenizer)
    try:
        return _loop(recorder, parts, display or Display(recorder.config.steps))
    finally:
        recorder.close()
        parts.close()


def demonstrations(trajectories: Sequence[Trajectory]) -> Batch:
    """The right ones among ``trajectories``, each step with weight 1. Raises TrainingStopped if none is right."""
    right = [t for t in trajectories if t.reward == 1.0]
    if not right:
        raise TrainingStopped(f"none of {len(trajectories)} demonstrations is right: look at the demonstrator")
    return pack(right, _evenly(right))


def _follow() -> None:
    """Started by torchrun as another rank than 0: do what rank 0 says until it ends, and end with it."""
    if _processes() > 1 and int(os.environ["RANK"]) > 0:
        from ovd_gym.scale.learners import follow

        follow("env://", int(os.environ["RANK"]), _processes(), None)
        raise SystemExit(0)


def _processes() -> int:
    """How many processes torchrun has started; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def _parts(config: TrainConfig, teacher: Teacher | None) -> Parts:
    """The parts of this run, in this process or spread over others."""
    learners = config.scale.learners if config.scale else 1
    if _processes() not in (1, learners):
        raise ConfigError(f"torchrun started {_processes()} processes, but scale.learners is {learners}: say the same")
    if config.scale is None:
        return build(config, teacher)
    from ovd_gym.scale.parts import scaled_parts

    return scaled_parts(config, teacher)


def _same_teacher(config: TrainConfig, given: Teacher | None) -> None:
    """Raise ConfigError unless the run goes on with the teacher it began with."""
    name = config.teacher.name if config.teacher else None
    expected = name.removeprefix(_OBJECT) if name and name.startswith(_OBJECT) else None
    if expected != (given.name if given else None):
        wanted = f"the Teacher object {expected!r}: give it again as teacher=" if expected else f"teacher {name!r}"
        raise ConfigError(f"this run began with {wanted}{'' if expected else ', so give no other'}")


def _loop(recorder: Recorder, parts: Parts, display: Display) -> RunResult:
    config, learner = recorder.config, parts.learner
    done = recorder.restore(learner, display.say)
    recorder.rewind(done)
    warned: set[str] = set()
    with display, _interruptible(display) as interrupted, _source(config, parts, done) as source:

        def on_turn(finished: int, tokens: int) -> None:
            display.phase(f"{phase}: {finished} episodes done, {tokens} tokens")
            if interrupted():
                raise _Stopped

        try:
            if done == 0 and config.evaluation is None:
                _canaries(recorder, parts, done, display)
            while True:
                phase = "evaluating"
                source.publish(learner.weights(), done)
                if _due(done, config) and done not in {row["step"] for row in recorder.evaluations()}:
                    with source.paused(on_turn):
                        _hold_out(recorder, parts, done, display, on_turn)
                if done == config.steps:
                    break
                began, phase = time.monotonic(), "rollout"
                found = source.take(done, on_turn)
                display.phase("update")
                row = found.row
                trained, credits = _update(parts, found, config, done)
                row |= trained
                done += 1
                sampled = sum(t.num_sampled for t in found.played)
                # The mean of -logprob over sampled tokens is an unbiased estimate of the entropy they were drawn with.
                mean = mean_logprob(found.played)
                row |= {"entropy": None if mean is None else -mean}
                row |= {"sampled_tokens": sampled, "tokens_per_s": sampled / found.seconds}
                row |= {"step": done, "seconds": time.monotonic() - began}
                row |= {"peak_memory_gib": peak_memory_gib(learner.decoder.device)}
                recorder.record("step", row, [*found.played, *found.demonstrations], found.critiques, credits)
                display.step(row)
                for kind, warning in warnings_of(row).items():
                    if kind not in warned:
                        display.say(f"step {done}: {warning}")
                        warned.add(kind)
                if reason := reason_to_stop(recorder.metrics(), config.health):
                    raise TrainingStopped(f"{reason}; the last checkpoint is in {recorder.path / 'checkpoints'}")
                if done == config.steps or done % config.checkpoint_every == 0:
                    recorder.checkpoint(learner, done)
        except _Stopped:
            if done % config.checkpoint_every:
                recorder.checkpoint(learner, done)
            display.say(f"stopped after {done} steps; continue with: ovd-gym train --resume {recorder.path}")
            return RunResult(recorder.path, done, recorder.evaluations(), [])
    model = recorder.path / "model"
    parts.export(model, model_card(recorder))
    return RunResult(recorder.path, done, recorder.evaluations(), [model, *write_report(recorder)])


def _source(config: TrainConfig, parts: Parts, done: int) -> Source:
    """Where the steps after ``done`` get their experience from."""
    gathered, staleness = partial(gather, config, parts), config.rollout.staleness
    if staleness:
        return Ahead(gathered, parts.players, range(done, config.steps), staleness)
    return InStep(gathered, parts.players)


def _update(parts: Parts, found: Experience, config: TrainConfig, step: int) -> tuple[dict[str, Any], list[Credit]]:
    """One update of the arm's kind, and the credits it followed, in arms that assign some.

    There is no update if resampling left no group to compare.
    """
    if config.credit.arm == "imitation":
        return dict(parts.learner.imitate(demonstrations(found.learned), step)), []
    if parts.distiller is not None and config.distillation is not None:
        batch = pack(found.learned, _evenly(found.learned))
        return dict(parts.learner.distill(batch, step, parts.distiller, config.distillation)), []
    credits = assign_credit(found.learned, found.critiques, config.credit)
    if not credits:
        return {"trained_tokens": 0.0}, []
    return dict(parts.learner.update(pack(found.learned, credits), step)), credits


def _evenly(trajectories: Sequence[Trajectory]) -> list[Credit]:
    """Weight 1 for every step of every trajectory that did not fail."""
    return [Credit(trajectory_id=t.id, advantages=(1.0,) * len(t.steps)) for t in trajectories if t.status != "failed"]


class _Stopped(Exception):
    """Ctrl-C or SIGTERM, noticed during a rollout: weights and optimiser are those of the last complete step."""


def _due(done: int, config: TrainConfig) -> bool:
    """Whether the held-out tasks are asked after ``done`` steps."""
    if config.evaluation is None:
        return False
    every = config.evaluation.every
    return done in (0, config.steps) or (every > 0 and done % every == 0)


def _canaries(recorder: Recorder, parts: Parts, step: int, display: Display) -> dict[str, float | None]:
    """Try the teacher on what it must not be fooled by. Raises TrainingStopped beyond the configured limit."""
    config = recorder.config.teacher
    if parts.teacher is None or config is None or not config.canaries or parts.canaries is None:
        return {}
    display.phase("canaries")
    report = probe(parts.teacher, parts.canaries)
    recorder.record_canaries(report, step)
    faults = report.faults()
    if config.max_canary_faults is not None and len(faults) > config.max_canary_faults:
        raise TrainingStopped(f"the teacher is not to be trusted ({len(faults)} canary faults): " + "; ".join(faults))
    if faults:
        display.say(f"{len(faults)} canary faults of teacher {parts.teacher.name}, the first: {faults[0]}")
    return report.metrics()


def _hold_out(recorder: Recorder, parts: Parts, step: int, display: Display, on_turn: Any) -> None:
    result = evaluate(
        parts.held_out_tasks, parts.players, teacher=parts.teacher, step=step,
        seed=(recorder.config.seed, 2, step), on_turn=on_turn,
    )  # fmt: skip
    row = result.row | _canaries(recorder, parts, step, display)
    recorder.record("eval", row, result.trajectories, result.critiques)
    display.evaluation(row)


@contextmanager
def _interruptible(display: Display) -> Iterator[Any]:
    """Within it the first Ctrl-C or SIGTERM (what a scheduler sends) only raises a flag; the second interrupts at once,
    and nothing more is saved."""
    flag: list[int] = []

    def note(number: int, frame: Any) -> None:
        if flag:
            raise KeyboardInterrupt
        flag.append(number)
        display.say("stopping; once more stops at once and saves nothing of the steps since the last checkpoint")

    signals = (signal.SIGINT, signal.SIGTERM)
    try:
        before = [signal.signal(number, note) for number in signals]
    except ValueError:  # not in the main thread: signals are somebody else's business
        yield lambda: False
        return
    try:
        yield lambda: bool(flag)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
