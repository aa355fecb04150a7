"""Where the questions come from: embedded generators, files, the Hugging Face hub. Each source is a sequence of tasks.

Generated tasks are split into training and held-out sets by seed (different seeds draw independently), any other
source by :func:`split_tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ovd_gym.actions import last_boxed
from ovd_gym.envs.hub import Benchmark, benchmark_rows, hub_rows
from ovd_gym.envs.jsonl import Row, read_rows, take_text, take_texts, task_of, unfold_metadata
from ovd_gym.envs.math_qa.generated import GENERATORS, reasoning_gym_tasks
from ovd_gym.errors import ConfigError, DataError, unknown
from ovd_gym.records import Task

__all__ = ["BENCHMARKS", "GENERATORS", "benchmark", "hub_tasks", "jsonl_tasks", "load_tasks"]
__all__ += ["reasoning_gym_tasks", "split_tasks"]

BENCHMARKS: Mapping[str, Benchmark] = {
    "gsm8k": Benchmark(repository="openai/gsm8k", config="main", split="test"),
    "math500": Benchmark(repository="HuggingFaceH4/MATH-500", split="test"),
    "aime24": Benchmark(repository="HuggingFaceH4/aime_2024", split="train"),
    "aime25": Benchmark(repository="math-ai/aime25", split="test"),
    "amc23": Benchmark(repository="math-ai/amc23", split="test"),
    "minerva": Benchmark(repository="math-ai/minervamath", split="test"),
    "olympiadbench": Benchmark(repository="Hothan/OlympiadBench", config="OE_TO_maths_en_COMP", split="train"),
}
"""The field's benchmarks of mathematics; of OlympiadBench the open-ended English problems without pictures."""


def load_tasks(spec: str, **options: Any) -> Sequence[Task]:
    """The tasks that ``spec`` names.

    Args:
        spec: a name of :data:`BENCHMARKS`, ``"reasoning_gym:NAME"``, ``"hub:OWNER/NAME"``, or the path of a
            ``.jsonl`` or ``.jsonl.gz`` file.
        options: arguments of :func:`benchmark`, :func:`reasoning_gym_tasks`, :func:`hub_tasks`; a file takes none.
    """
    kind, _, name = spec.partition(":")
    sources: Mapping[str, Callable[..., Sequence[Task]]] = {"reasoning_gym": reasoning_gym_tasks, "hub": hub_tasks}
    try:
        if name and kind in sources:
            return sources[kind](name, **options)
        if spec.endswith((".jsonl", ".jsonl.gz")):
            return jsonl_tasks(spec, **options)
        return benchmark(spec, **options)
    except TypeError as error:
        raise ConfigError(f"tasks {spec!r} with options {sorted(options)}: {error}") from error


def benchmark(name: str, **options: Any) -> Sequence[Task]:
    """A benchmark from the hub.

    Args:
        name: one of :data:`BENCHMARKS`.
        options: ``split``, ``revision``, ``repository`` and others of :func:`~ovd_gym.envs.hub.benchmark_rows`.
    """
    if name not in BENCHMARKS:
        others = ("reasoning_gym:NAME", "hub:OWNER/NAME", "FILE.jsonl", "FILE.jsonl.gz")
        raise ConfigError(unknown("tasks", name, (*BENCHMARKS, *others)))
    return tuple(map(_task, benchmark_rows(name, BENCHMARKS[name], **options)))


def jsonl_tasks(path: str | Path) -> Sequence[Task]:
    r"""The tasks in a JSON-lines file, plain or gzipped.

    A row has a question (``question`` or ``problem``) and gold answers: ``answers`` or ``final_answer`` (a list),
    ``answer`` (GSM8K's "... #### 42" is understood), or a ``solution`` that ends in ``\boxed{}``. ``id`` is optional;
    all other fields become metadata, those of an object called ``metadata`` among them. A list of answers holds
    alternatives, unless ``is_multiple_answer`` is true: then it is one answer with several parts. ``error`` is the
    tolerance for a numerical answer.

    Raises :class:`~ovd_gym.errors.DataError` naming file, line and field; no task of a faulty file is returned.
    """
    return tuple(_task(row) for row in read_rows(path))


def hub_tasks(name: str, split: str = "train", config: str | None = None, **options: Any) -> Sequence[Task]:
    """The tasks of a Hugging Face data set with the fields :func:`jsonl_tasks` knows, e.g. ``openai/gsm8k``.

    Args:
        name: name on the hub, or anything else :func:`datasets.load_dataset` takes.
        split: part of the data set.
        config: the data set's configuration, such as "main" for GSM8K.
        options: further arguments of :func:`datasets.load_dataset`, such as ``data_files``.
    """
    return tuple(_task(row) for row in hub_rows(name, split, config, **options))


def split_tasks(tasks: Sequence[Task], held_out: float, seed: int) -> tuple[Sequence[Task], Sequence[Task]]:
    """``tasks`` as (training, held-out), disjoint and together complete; the same ``seed`` gives the same split.

    ``held_out`` is a fraction in (0, 1); both parts get at least one task.
    """
    if not 0 < held_out < 1 or len(tasks) < 2:
        raise ConfigError(f"held_out must lie in (0, 1) and tasks number at least 2, got {held_out} of {len(tasks)}")
    order = np.random.default_rng(seed).permutation(len(tasks))
    count = min(max(1, round(held_out * len(tasks))), len(tasks) - 1)
    return _Subset(tasks, np.sort(order[count:])), _Subset(tasks, np.sort(order[:count]))


class _Subset(Sequence[Task]):
    """Those of ``tasks`` at ``indices``, fetched when asked for."""

    def __init__(self, tasks: Sequence[Task], indices: np.ndarray[Any, Any]) -> None:
        self._tasks = tasks
        self._indices = indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return _Subset(self._tasks, self._indices[index])
        return self._tasks[int(self._indices[index])]


def _task(row: Row) -> Task:
    unfold_metadata(row)
    question = take_text(row, "question", "problem")
    answers = _answers(row)
    if "error" in row.fields:
        row.fields["error"] = _tolerance(row.fields["error"], row.where)
    return task_of(row, question, answers)


def _answers(row: Row) -> tuple[str, ...]:
    """Take the gold answers out of ``row``."""
    fields = row.fields
    field = next((name for name in ("answers", "final_answer", "answer") if name in fields), None)
    if field is None:
        boxed = last_boxed(str(fields.get("solution", "")))
        if not boxed:
            raise DataError(rf"{row.where}: no field 'answers' or 'answer', and no 'solution' with a \boxed{{}}")
        return (boxed,)
    values = take_texts(row, field)
    if field == "answer":
        values = [_after_hashes(value, fields) for value in values]
    if fields.get("is_multiple_answer") in (True, "true", "True"):
        return (", ".join(values),)
    return tuple(values)


def _after_hashes(answer: str, row: dict[str, Any]) -> str:
    """GSM8K's answer: the number behind ``####``; what stands before becomes the solution."""
    reasoning, hashes, number = answer.rpartition("####")
    if not hashes:
        return answer
    row.setdefault("solution", reasoning.strip())
    return number.strip().replace(",", "")


def _tolerance(value: Any, where: str) -> float:
    try:
        tolerance = float(value)
    except (TypeError, ValueError):
        tolerance = -1.0
    if not 0 <= tolerance < float("inf"):
        raise DataError(f"{where}: field 'error' must be a tolerance such as '1e-1', got {value!r:.80}")
    return tolerance
