"""Agents put to question sets, batch by batch: what ``ovd-gym eval`` keeps on disk, and how it goes on.

::

    FOLDER/NAME/settings.json        all that the figures depend on; the same, or the folder is refused
                episodes.jsonl       one line an episode: what came of it, in numbers
                trajectories.jsonl   the same episodes token by token, for reading and for teachers
                batches.jsonl        one line a finished batch, with seconds and usage
    FOLDER/results.jsonl             a line of figures per question set
           results.md                the same as a table

A batch counts once its line is there; what a kill left of another is dropped, and played again. Batches and seeds
follow from the settings alone, so an evaluation that was stopped ends with the figures of one that was not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ovd_gym.agents.base import Agent
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.eval_setup import Plan, Settings
from ovd_gym.folders import refuse_links
from ovd_gym.llm.choice import Usage
from ovd_gym.records import Record, Task, Text, Trajectory, load_appended, save_jsonl
from ovd_gym.rollout import Env, rollout, turns_of
from ovd_gym.worlds import tool_env

__all__ = ["Episode", "EvalBatch", "EvalFolder", "differences", "evaluate_tasks", "load_settings"]


class Episode(Record):
    """What came of one episode, in numbers."""

    batch: int
    question: str
    """Id of the task."""
    sample: int
    reward: float | None
    """None where the episode failed for a reason outside the agent's power."""
    measures: dict[str, float]
    """What the world reports beside the reward, such as ``em``; empty for a failed episode."""
    answer: Text | None
    status: str
    reason: str
    turns: int
    tool_calls: int
    """Valid ones, the answer aside."""
    invalid_calls: int
    tokens: int
    """Written by the agent."""
    context: int
    """Tokens in all, read and written."""

    @property
    def right(self) -> bool:
        """Whether it got the whole reward."""
        return self.reward == 1.0


class EvalBatch(Record):
    """One batch of finished episodes."""

    index: int
    episodes: int
    failed: int
    seconds: float
    usage: Usage | None = None
    """What the agent's server reported, if it does."""


class EvalFolder:
    """The episodes of one agent at one set of questions.

    Raises:
        ConfigError: the folder holds episodes played under other settings.
        DataError: a damaged file, a link in the folder, a full disk.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        refuse_links(path)
        self.path = path
        file = path / "settings.json"
        if file.exists():
            _insist_on_the_same(load_settings(path), settings, path)
        else:
            with _writing(path):
                path.mkdir(parents=True, exist_ok=True)
                file.write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        self._keep({batch.index for batch in self.batches()})

    def batches(self) -> list[EvalBatch]:
        """Finished batches."""
        return load_appended(self.path / "batches.jsonl", EvalBatch)

    def episodes(self) -> list[Episode]:
        """Finished episodes, in the order of the questions."""
        return sorted(load_appended(self.path / "episodes.jsonl", Episode), key=lambda episode: episode.batch)

    def record(self, batch: EvalBatch, episodes: Sequence[Episode], trajectories: Sequence[Trajectory]) -> None:
        """Add a batch; its own line comes last."""
        with _writing(self.path):
            save_jsonl(self.path / "trajectories.jsonl", trajectories)
            save_jsonl(self.path / "episodes.jsonl", episodes)
            save_jsonl(self.path / "batches.jsonl", [batch])

    def forget_failed(self) -> None:
        """Drop the batches in which an episode failed, so that they are played again."""
        self._keep({batch.index for batch in self.batches() if not batch.failed})

    def _keep(self, indices: set[int]) -> None:
        """Drop what belongs to other batches. The batches go first: they say what counts."""
        marks = tuple(f'{{"id":"{self.path.name}/{index:06d}/' for index in indices)
        self._filter("batches", lambda line: EvalBatch.model_validate_json(line).index in indices)
        self._filter("episodes", lambda line: Episode.model_validate_json(line).batch in indices)
        self._filter("trajectories", lambda line: line.startswith(marks))

    def _filter(self, name: str, keep: Callable[[str], bool]) -> None:
        """Leave the whole lines that ``keep`` takes in a file, if there is one."""
        file, staged = self.path / f"{name}.jsonl", self.path / f".{name}.new"
        if not file.exists():
            return
        with _writing(self.path):
            try:
                with file.open(encoding="utf-8") as lines, staged.open("w", encoding="utf-8") as kept:
                    kept.writelines(line for line in lines if line.endswith("\n") and keep(line))
            except ValueError as error:  # also what is no UTF-8
                raise DataError(f"{file} is damaged: {' '.join(str(error).split())[:200]}") from None
            os.replace(staged, file)


def evaluate_tasks(
    agent: Agent,
    envs: Sequence[Env],
    tasks: Sequence[Task],
    plan: Plan,
    folder: EvalFolder,
    on_turn: Callable[[Sequence[Episode], int, int], None] = lambda finished, playing, tokens: None,
) -> list[Episode]:
    """Have ``agent`` play what it has not played yet; all episodes, in the order of the questions.

    Args:
        agent: a :class:`ScriptedAgent` says the same every time, so it plays each question once.
        envs: the instances that a batch is played in, one batch after another.
        tasks: the questions.
        plan: how they are asked.
        folder: where the episodes are kept.
        on_turn: is told the episodes of finished batches, the number done in this one and its tokens so far.
    """
    if isinstance(agent, ScriptedAgent) and plan.temperature > 0:
        raise ConfigError("a scripted policy says the same every time: --samples and --temperature have no effect")
    per_batch = len(envs) // plan.samples
    finished, done = folder.episodes(), {batch.index for batch in folder.batches()}
    on_turn(finished, 0, 0)
    for index in range(-(-len(tasks) // per_batch)):
        if index not in done:
            asked = tasks[index * per_batch : (index + 1) * per_batch]
            finished += _play(agent, envs, asked, plan, folder, index, partial(on_turn, finished))
    return folder.episodes()


def _play(
    agent: Agent,
    envs: Sequence[Env],
    tasks: Sequence[Task],
    plan: Plan,
    folder: EvalFolder,
    index: int,
    on_turn: Callable[[int, int], None],
) -> list[Episode]:
    before, began = _usage(agent), time.monotonic()
    played = rollout(
        tasks,
        envs[: len(tasks) * plan.samples],
        agent,
        group_size=plan.samples,
        seed=(plan.seed, index),
        label=f"{folder.path.name}/{index:06d}",
        decoding=plan.decoding,
        on_turn=on_turn,
    )
    episodes = [_episode(one, envs[0], index, n % plan.samples) for n, one in enumerate(played)]
    batch = EvalBatch(
        index=index,
        episodes=len(played),
        failed=sum(one.status == "failed" for one in played),
        seconds=time.monotonic() - began,
        usage=None if before is None else (_usage(agent) or before) - before,
    )
    folder.record(batch, episodes, played)
    return episodes


def _episode(trajectory: Trajectory, env: Env, batch: int, sample: int) -> Episode:
    world, steps = tool_env(env), trajectory.steps
    final = {spec.name for spec in world.tools if spec.final}
    return Episode(
        batch=batch,
        question=trajectory.task.id,
        sample=sample,
        reward=trajectory.reward,
        measures={} if trajectory.reward is None else world.measures(trajectory),
        answer=trajectory.answer,
        status=trajectory.status,
        reason=trajectory.reason,
        turns=sum(1 for _ in turns_of(steps)),
        tool_calls=sum(step.call is not None and step.call.name not in final for step in steps),
        invalid_calls=sum(step.error is not None for step in steps),
        tokens=trajectory.num_sampled,
        context=len(trajectory.token_ids),
    )


def load_settings(path: Path) -> Settings:
    """The settings of the question set in ``path``. Raises :class:`DataError` for a file that is not readable."""
    file = path / "settings.json"
    try:
        return Settings.model_validate_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not the settings of an evaluation: {str(error).splitlines()[0]}") from None


def differences(first: Settings, second: Settings) -> dict[str, tuple[object, object]]:
    """What is not the same in two settings, by dotted name."""
    return dict(_differences(first.model_dump(mode="json"), second.model_dump(mode="json"), ""))


def _differences(first: object, second: object, name: str) -> Iterator[tuple[str, tuple[object, object]]]:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in dict.fromkeys([*first, *second]):
            yield from _differences(first.get(key), second.get(key), f"{name}.{key}".lstrip("."))
    elif first != second:
        yield name, (first, second)


def _insist_on_the_same(stored: Settings, given: Settings, path: Path) -> None:
    """Raise ConfigError unless the episodes in ``path`` were played under the settings given."""
    for name, (there, here) in differences(stored, given).items():
        raise ConfigError(
            f"{path} holds episodes played with {name} {_short(there)}, this command has {_short(here)}: "
            "choose another --out"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _usage(agent: Agent) -> Usage | None:
    usage = getattr(agent, "usage", None)
    return usage if isinstance(usage, Usage) else None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full or vanished disk into one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot write to {path} ({error.strerror}): make room and give the same command") from None
