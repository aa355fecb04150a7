"""Where the questions come from: embedded generators, files, the Hugging Face hub. Each source is a sequence of tasks.

Generated tasks are split into training and held-out sets by seed (different seeds draw independently), any other
source by :func:`split_tasks`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from ovd_gym.actions import last_boxed
from ovd_gym.envs.math_qa.generated import GENERATORS, reasoning_gym_tasks
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Task

__all__ = ["GENERATORS", "hub_tasks", "jsonl_tasks", "load_tasks", "reasoning_gym_tasks", "split_tasks"]


def load_tasks(spec: str, **options: Any) -> Sequence[Task]:
    """The tasks that ``spec`` names.

    Args:
        spec: ``"reasoning_gym:NAME"``, ``"hub:OWNER/NAME"``, or the path of a ``.jsonl`` or ``.jsonl.gz`` file.
        options: arguments of :func:`reasoning_gym_tasks`, :func:`hub_tasks`; a file takes none.
    """
    kind, colon, name = spec.partition(":")
    sources: Mapping[str, Callable[..., Sequence[Task]]] = {"reasoning_gym": reasoning_gym_tasks, "hub": hub_tasks}
    source = sources.get(kind) if colon else None
    try:
        return source(name, **options) if source else jsonl_tasks(spec, **options)
    except TypeError as error:
        raise ConfigError(f"tasks {spec!r} with options {sorted(options)}: {error}") from error


def jsonl_tasks(path: str | Path) -> Sequence[Task]:
    r"""The tasks in a JSON-lines file, plain or gzipped.

    A row has a question (``question`` or ``problem``) and gold answers: ``answers`` or ``final_answer`` (a list),
    ``answer`` (GSM8K's "... #### 42" is understood), or a ``solution`` that ends in ``\boxed{}``. ``id`` is optional;
    all other fields become metadata. A list of answers holds alternatives, unless ``is_multiple_answer`` is true:
    then it is one answer with several parts. ``error`` is the tolerance for a numerical answer.

    Raises :class:`~ovd_gym.errors.DataError` naming file, line and field; no task of a faulty file is returned.
    """
    path = Path(path)
    tasks = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where}: not valid JSON: {error}") from error
            tasks.append(_task(row, where, f"{path.name.partition('.')[0]}-{number}"))
    if not tasks:
        raise DataError(f"{path}: no tasks in it: expected one JSON object a line")
    return tuple(tasks)


def hub_tasks(name: str, split: str = "train", config: str | None = None, **options: Any) -> Sequence[Task]:
    """The tasks of a Hugging Face data set with the fields :func:`jsonl_tasks` knows, e.g. ``openai/gsm8k``.

    Args:
        name: name on the hub, or anything else :func:`datasets.load_dataset` takes.
        split: part of the data set.
        config: the data set's configuration, such as "main" for GSM8K.
        options: further arguments of :func:`datasets.load_dataset`, such as ``data_files``.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("tasks from the hub need the 'datasets' package: pip install ovd-gym[train]") from error
    try:
        rows = datasets.load_dataset(name, config, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"cannot load data set {name!r} (config {config!r}, split {split!r}): {error}") from error
    return tuple(_task(dict(row), f"{name}:{split}:{k}", f"{name}-{split}-{k}") for k, row in enumerate(rows))


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


def _lines(path: Path) -> Iterator[str]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON lines: {error}") from error


def _task(row: Any, where: str, default_id: str) -> Task:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    row = {key: value for key, value in row.items() if value is not None}
    question = row.pop("question", None) or row.pop("problem", None)
    if not isinstance(question, str):
        raise DataError(f"{where}: field 'question' (or 'problem') is missing or not a text")
    answers = _answers(row, where)
    if "error" in row:
        row["error"] = _tolerance(row["error"], where)
    return Task(id=str(row.pop("id", default_id)), question=question, answers=answers, metadata=row)


def _answers(row: dict[str, Any], where: str) -> tuple[str, ...]:
    """Take the gold answers out of ``row``."""
    field = next((name for name in ("answers", "final_answer", "answer") if name in row), None)
    if field is None:
        boxed = last_boxed(str(row.get("solution", "")))
        if not boxed:
            raise DataError(rf"{where}: no field 'answers' or 'answer', and no 'solution' with a \boxed{{}}")
        return (boxed,)
    value = row.pop(field)
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str | int | float) and str(v).strip() for v in values):
        raise DataError(f"{where}: field {field!r} must be a text or a list of texts, none empty, got {value!r:.80}")
    if field == "answer":
        values = [_after_hashes(str(v), row) for v in values]
    if row.get("is_multiple_answer") in (True, "true", "True"):
        return (", ".join(str(v).strip() for v in values),)
    return tuple(str(v).strip() for v in values)


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
