"""Rows of question files: JSON lines, plain or gzipped, read one by one with errors that name file, line and field."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from ovd_gym.errors import DataError
from ovd_gym.records import Task, first_problem

__all__ = ["Row", "file_tasks", "plain_task", "read_rows", "row_of", "take_text", "take_texts", "task_of"]

_ANSWERS = ("golden_answers", "answers", "answer")


class Row(NamedTuple):
    """One row, with where it came from."""

    where: str
    """``file:line``, or ``data set:split:index``: what an error begins with."""
    default_id: str
    """The id of a row that has none of its own."""
    fields: dict[str, Any]
    """The row's fields without those that are null; the reader takes out what it understands."""


def read_rows(path: str | Path, what: str = "tasks") -> Iterator[Row]:
    """The rows of a ``.jsonl`` or ``.jsonl.gz`` file; empty lines are skipped.

    Args:
        path: the file.
        what: what it should hold, for the message about an empty file.

    Raises:
        DataError: when it comes to a line that is no JSON object, or when the file cannot be read or is empty.
    """
    path = Path(path)
    stem, found = path.name.partition(".")[0], False
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: not valid JSON: {error}") from error
            yield row_of(value, where, f"{stem}-{number}")
            found = True
    if not found:
        raise DataError(f"{path}: no {what} in it: expected one JSON object a line")


def file_tasks(path: str | Path) -> Sequence[Task]:
    """The tasks of a JSON-lines file, plain or gzipped, read by :func:`plain_task`.

    Raises :class:`~ovd_gym.errors.DataError` naming file, line and field; no task of a faulty file is returned.
    """
    return tuple(map(plain_task, read_rows(path)))


def row_of(value: Any, where: str, default_id: str) -> Row:
    """``value`` as a row. Raises :class:`~ovd_gym.errors.DataError` when it is no JSON object."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return Row(where, default_id, {key: item for key, item in value.items() if item is not None})


def take_text(row: Row, *names: str) -> str:
    """Take the first field of ``names`` that is not empty out of ``row``: it must be a text."""
    value = next((v for name in names if (v := row.fields.pop(name, None))), None)
    if not isinstance(value, str):
        alternatives = "".join(f" (or {name!r})" for name in names[1:])
        raise DataError(f"{row.where}: field {names[0]!r}{alternatives} is missing or not a text")
    return value


def take_texts(row: Row, name: str) -> list[str]:
    """Take field ``name`` out of ``row``: a text or a list of texts (or numbers), none of them empty."""
    value = row.fields.pop(name)
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str | int | float) and str(v).strip() for v in values):
        raise DataError(f"{row.where}: field {name!r} must be a text or a list of texts, none empty, got {value!r:.80}")
    return [str(v).strip() for v in values]


def plain_task(row: Row, texts: Sequence[str] = ()) -> Task:
    """The task of a row with a ``question`` and its gold answers.

    These are ``golden_answers`` or ``answers`` (a list) or ``answer`` (a text or a list). ``id`` is optional. All other
    fields become metadata, those of an object called ``metadata`` among them; those of ``texts`` are lists of texts.
    """
    question = take_text(row, "question")
    field = next((name for name in _ANSWERS if name in row.fields), None)
    if field is None:
        raise DataError(f"{row.where}: no gold answers: expected one of the fields {', '.join(_ANSWERS)}")
    answers = dict.fromkeys(take_texts(row, field))
    unfold_metadata(row)
    for name in texts:
        if name in row.fields:
            row.fields[name] = take_texts(row, name)
    return task_of(row, question, tuple(answers))


def unfold_metadata(row: Row) -> None:
    """Put the fields of an object called ``metadata`` beside those of ``row``, which win."""
    nested = row.fields.pop("metadata", {})
    if not isinstance(nested, dict):
        raise DataError(f"{row.where}: field 'metadata' must be an object, got {type(nested).__name__}")
    row.fields.update({key: value for key, value in nested.items() if value is not None and key not in row.fields})


def task_of(row: Row, question: str, answers: Sequence[str]) -> Task:
    """The task of ``row``; what nobody took out of the row becomes its metadata."""
    name = str(row.fields.pop("id", row.default_id))
    try:
        return Task(id=name, question=question, answers=tuple(answers), metadata=row.fields)
    except ValidationError as error:
        raise DataError(f"{row.where}: {first_problem(error)}") from error


def _lines(path: Path) -> Iterator[str]:
    opener: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            yield from file
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON lines: {error}") from error
