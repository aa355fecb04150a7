"""Attempts whose errors are known: what a teacher is measured on, calibrated on and fitted to.

``load_attempts`` reads run folders, trajectory files and JSON lines of any schema in :data:`SCHEMAS`; data of one's
own is best written as :class:`Attempt` records, one a line.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from ovd_gym.actions import FORMATS
from ovd_gym.actions.boxed import last_boxed
from ovd_gym.errors import DataError
from ovd_gym.records import Record, Text, ToolCall, Trajectory, first_problem
from ovd_gym.teachers.base import StepText, View

__all__ = ["SCHEMAS", "Attempt", "load_attempts", "sample_groups"]

_NONE_OF_THESE = -1
"""``first_error`` of an attempt without one."""


class Attempt(Record):
    """One attempt at a question, with what is known about its errors."""

    id: str
    question: Text
    steps: tuple[StepText, ...]
    """[T] as the teacher reads them."""
    answer: Text | None = None
    """The attempt's final answer; None if it gave none."""
    gold: tuple[Text, ...] = ()
    """Gold answers; empty where they are not known. Only a privileged teacher is shown them."""
    group: str = ""
    """Attempts at the same question share it."""
    model: str = ""
    """Who made the attempt."""
    source: str = ""
    """Where it comes from, such as ``processbench/gsm8k``."""
    correct: bool | None = None
    """Whether the final answer is right; None where that is not known."""
    first_error: Annotated[int, Field(ge=_NONE_OF_THESE)] | None = None
    """0-based index of the first wrong step, -1 if no step is wrong, None where nobody has looked."""

    @model_validator(mode="after")
    def _inside(self) -> Self:
        if self.first_error is not None and self.first_error >= len(self.steps):
            raise ValueError(f"first_error is {self.first_error}, but there are {len(self.steps)} steps")
        return self

    @classmethod
    def of(cls, trajectory: Trajectory, source: str = "") -> Attempt:
        """An episode of one's own: right when its reward is 1, unknown when it failed; no step is labelled."""
        return cls(
            id=trajectory.id,
            question=trajectory.task.question,
            steps=tuple(StepText.of(step.text, step.observation, step.call) for step in trajectory.steps),
            answer=trajectory.answer,
            gold=trajectory.task.answers,
            group=trajectory.group_id,
            source=source,
            correct=None if trajectory.reward is None else trajectory.reward == 1.0,
        )

    @property
    def step_labels(self) -> tuple[bool | None, ...]:
        """[T] whether each step is right. What follows the first wrong step was not labelled: None."""
        if self.first_error is None:
            return (None,) * len(self.steps)
        if self.first_error == _NONE_OF_THESE:
            return (True,) * len(self.steps)
        return (True,) * self.first_error + (False,) + (None,) * (len(self.steps) - self.first_error - 1)

    def views(self, privileged: bool = False) -> list[View]:
        """[T + 1] a view of every step, then one of the whole; the answer stands in the last two.

        Raises:
            DataError: ``privileged``, but the gold answer is not known.
        """
        if privileged and not self.gold:
            raise DataError(f"attempt {self.id!r} has no gold answer: a privileged teacher cannot judge it")
        whole = View(
            kind="trajectory",
            question=self.question,
            steps=self.steps,
            answer=self.answer,
            gold=self.gold if privileged else None,
            group=self.group,
        )
        return [*(self._step_view(whole, k) for k in range(len(self.steps))), whole]

    def _step_view(self, whole: View, k: int) -> View:
        answer = self.answer if k == len(self.steps) - 1 else None
        return whole.model_copy(update={"kind": "step", "steps": self.steps[: k + 1], "answer": answer})


def load_attempts(path: str | Path, limit: int | None = None, source: str = "*") -> list[Attempt]:
    """The attempts in ``path``, in order.

    Args:
        path: a run folder (all its episodes), or a ``.jsonl`` or ``.jsonl.gz`` file of trajectories, of
            :class:`Attempt` records or of a schema in :data:`SCHEMAS`.
        limit: take only so many, chosen by :func:`sample_groups`.
        source: take only those whose ``source`` matches this pattern, such as ``processbench/gsm8k`` or ``mr-ben/*``.

    Raises:
        DataError: a file that cannot be read, a line that is none of these, two attempts with the same id, or nothing
            that matches ``source``.
    """
    path = Path(path)
    attempts = [attempt for file in _files(path) for attempt in _read(file, path)]
    chosen = [attempt for attempt in attempts if fnmatch(attempt.source, source)]
    if not chosen:
        found = ", ".join(sorted({attempt.source for attempt in attempts})) or "none"
        raise DataError(f"{path}: no attempts of source {source!r}; its sources: {found}")
    if twice := [name for name, count in Counter(attempt.id for attempt in chosen).items() if count > 1]:
        raise DataError(f"{path}: two attempts have the id {twice[0]!r}: scores are kept by id")
    return chosen if limit is None else sample_groups(chosen, limit)


def sample_groups(attempts: Sequence[Attempt], limit: int) -> list[Attempt]:
    """``limit`` of ``attempts``, in order: groups drawn at random (the same ones every time), each taken whole.

    Files are often sorted by subset, so their first lines would speak for one subset only; and pairs of attempts at
    one question, on which a teacher is measured, must not be torn. Only the last group drawn may be cut.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, attempt in enumerate(attempts):
        groups[attempt.group or attempt.id].append(index)
    names = sorted(groups)
    random.Random(0).shuffle(names)
    drawn = [index for name in names for index in groups[name]][:limit]
    return [attempts[index] for index in sorted(drawn)]


# Files -----------------------------------------------------------------------------------------------------


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    if not (files := sorted((path / "trajectories").glob("*.jsonl"))):
        raise DataError(f"{path}: not a run folder with episodes: no trajectories/*.jsonl in it")
    return files


def _read(file: Path, path: Path) -> Iterator[Attempt]:
    source = file.name.partition(".")[0] if file == path else f"{path.name}/{file.stem}"
    for number, line in enumerate(_lines(file), start=1):
        if line.strip():
            try:
                yield _attempt(json.loads(line), source)
            except ValidationError as error:
                raise DataError(f"{file}:{number}: {first_problem(error)}") from None
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise DataError(f"{file}:{number}: {error}") from None


def _lines(file: Path) -> Iterator[str]:
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8") as lines:
            yield from lines
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as JSON lines: {error}") from None


def _attempt(row: Any, source: str) -> Attempt:
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, got {type(row).__name__}")
    if "token_ids" in row:
        return Attempt.of(Trajectory.model_validate(row), source)
    for fields, read in SCHEMAS.values():
        if fields <= row.keys():
            return read(row)
    if {"question", "steps"} <= row.keys():
        return Attempt.model_validate({"source": source, "group": _group(str(row["question"])), **row})
    raise ValueError(f"not a labelled attempt: fields {sorted(row)}; known: {', '.join(SCHEMAS)}, Attempt, Trajectory")


# Schemas ---------------------------------------------------------------------------------------------------


def _processbench(row: Mapping[str, Any]) -> Attempt:
    return Attempt(
        id=row["id"],
        question=row["problem"],
        steps=_texts(row["steps"]),
        answer=_stated(row["steps"]),
        group=_group(row["problem"]),
        model=row["generator"],
        source=f"processbench/{row['subset']}",
        correct=row["final_answer_correct"],
        first_error=row["first_error"],
    )


def _mr_ben(row: Mapping[str, Any]) -> Attempt:
    question = f"{row['problem']}\n{row['options']}".strip()
    return Attempt(
        id=row["id"],
        question=question,
        steps=_texts(row["steps"]),
        answer=_stated(row["steps"]),
        gold=(row["gold"],),
        group=_group(question),
        model=row["generator"],
        source=f"mr-ben/{row['subject']}",
        correct=row["solution_correct"],
        first_error=row["first_error"],
    )


def _big_bench_mistake(row: Mapping[str, Any]) -> Attempt:
    return Attempt(
        id=row["id"],
        question=row["input"],
        steps=_texts(row["steps"]),
        answer=row["answer"],
        gold=(row["target"],),
        group=_group(row["input"]),
        source=f"big-bench-mistake/{row['task']}",
        correct=row["answer"] == row["target"],
        first_error=row["first_error"],
    )


def _gsm8k_solution(row: Mapping[str, Any]) -> Attempt:
    # These solutions have no blank lines: each line takes the place of a paragraph.
    lines = [line for line in row["solution"].split("\n") if line.strip()]
    last = lines[-1] if lines else ""
    return Attempt(
        id=row["id"],
        question=row["problem"],
        steps=_texts(lines),
        answer=last[2:].strip() if last.startswith("A:") else None,
        gold=(row["gold"].rpartition("\nA:")[2].strip(),),
        group=_group(row["problem"]),
        model=row["model"],
        source="gsm8k-solutions",
        correct=row["is_correct"],
    )


def _search_run(row: Mapping[str, Any]) -> Attempt:
    turns = [turn["content"] for turn in row["turns"]]
    calls = [_react_call(text) for text in turns[::2]]
    last = calls[-1] if calls else None
    return Attempt(
        id=row["id"],
        question=row["question"],
        steps=tuple(StepText.of(*turn) for turn in zip(turns[::2], turns[1::2], calls, strict=True)),
        answer=str(last.arguments["text"]) if last is not None and last.name == "answer" else None,
        gold=(row["gold"],),
        group=_group(row["question"]),
        model=row["model"],
        source=f"search-runs/{row['dataset']}",
        correct=row["em"],
    )


SCHEMAS: dict[str, tuple[frozenset[str], Callable[[Mapping[str, Any]], Attempt]]] = {
    "ProcessBench": (
        frozenset({"subset", "problem", "generator", "first_error", "final_answer_correct"}),
        _processbench,
    ),
    "MR-Ben": (frozenset({"subject", "problem", "options", "first_error", "solution_correct"}), _mr_ben),
    "BIG-Bench Mistake": (frozenset({"task", "input", "target", "answer", "first_error"}), _big_bench_mistake),
    "GSM8K solutions": (frozenset({"problem", "solution", "gold", "model", "is_correct"}), _gsm8k_solution),
    "search runs": (frozenset({"question", "gold", "turns", "em", "dataset"}), _search_run),
}
"""Name of a schema -> the fields that tell it, and what reads a row of it.

Sources: ProcessBench (Zheng et al., arXiv 2412.06559), MR-Ben (Zeng et al., arXiv 2406.13975), BIG-Bench Mistake (Tyen
et al., arXiv 2311.08516), example solutions of GSM8K (Cobbe et al., arXiv 2110.14168), ReAct runs of FireAct (Chen et
al., arXiv 2310.05915) and Reflexion (Shinn et al., arXiv 2303.11366). The first three label steps up to the first
wrong one, the last two only the answer.
"""


def _texts(steps: Iterable[str]) -> tuple[StepText, ...]:
    return tuple(StepText(text=text, observation="") for text in steps)


def _stated(steps: Sequence[str]) -> str | None:
    """The answer of a written solution: its last box, or else its last step."""
    if not steps:
        return None
    return last_boxed("\n".join(steps)) or steps[-1].removeprefix("Solution:").strip()


def _react_call(text: str) -> ToolCall | None:
    """The one call of a ReAct turn, under the names of the search environment's tools."""
    calls = FORMATS["react"].extract(text)
    if len(calls) != 1:
        return None
    name, argument = {"finish": ("answer", "text"), "search": ("search", "query"), "lookup": ("find", "text")}.get(
        calls[0].name, (calls[0].name, "input")
    )
    return ToolCall(name=name, arguments={argument: calls[0].arguments["input"]})


def _group(question: str) -> str:
    return hashlib.sha256(question.encode("utf-8", "replace")).hexdigest()[:12]
