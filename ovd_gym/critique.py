"""Teachers put to attempts whose errors are known: what ``ovd-gym critique`` does, step by step.

::

    FOLDER/attempts.jsonl      what was judged
           critiques/*.jsonl   every score of one teacher, in the format of a run folder's critiques
           batches.jsonl       seconds, tokens and cost of every batch
           measurements.json   what is known of the teachers
           critique.html       the same for reading, with the attempts they disagree on

Whatever was scored is on disk as soon as its batch is done; nothing is asked twice.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ovd_gym.errors import ConfigError, DataError
from ovd_gym.folders import refuse_links
from ovd_gym.llm.choice import Usage
from ovd_gym.records import Critique, Record, load_appended, load_jsonl, save_jsonl
from ovd_gym.teachers.base import Teacher
from ovd_gym.teachers.labelled import Attempt

__all__ = ["Batch", "CritiqueFolder", "Judged", "judge", "score_attempts", "stored_critiques"]

_WRITTEN = ("attempts.jsonl", "critiques", "batches.jsonl", "measurements.json", "critique.html")


class Batch(Record):
    """What it took to score some attempts."""

    teacher: str
    """Name of the teacher, and which pass it was."""
    attempts: int
    seconds: float
    usage: Usage


class Judged(Record):
    """One teacher's critiques of some attempts, and what they took."""

    label: str
    """The teacher as tables name it; unique among those that are compared."""
    critiques: dict[str, Critique]
    """By attempt id."""
    cost: Batch | None = None
    """None for critiques that were had elsewhere."""
    again: bool = False
    """The second pass of a teacher, only made to be compared with the first."""

    def of(self, attempts: Iterable[Attempt]) -> tuple[list[Attempt], list[Critique]]:
        """Those of ``attempts`` that have a critique, and the critiques, aligned."""
        both = [(attempt, self.critiques[attempt.id]) for attempt in attempts if attempt.id in self.critiques]
        return [attempt for attempt, _ in both], [critique for _, critique in both]


class CritiqueFolder:
    """Scores on disk. Attempts may be added; one that is there already must be the same.

    Raises:
        DataError: a damaged file, a link in the folder, or another attempt under an id that is taken.
    """

    def __init__(self, path: Path, attempts: Sequence[Attempt]) -> None:
        refuse_links(*(path / name for name in _WRITTEN))
        self.path = path
        try:
            (path / "critiques").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot write to {path}: {error.strerror}") from None
        known = {attempt.id: attempt for attempt in load_appended(path / "attempts.jsonl", Attempt)}
        for attempt in attempts:
            if known.get(attempt.id, attempt) != attempt:
                raise DataError(
                    f"{path} holds scores of another attempt with the id {attempt.id!r}: choose another --out"
                )
        save_jsonl(path / "attempts.jsonl", (attempt for attempt in attempts if attempt.id not in known))

    def critiques(self, teacher: Teacher, again: bool = False) -> dict[str, Critique]:
        """What ``teacher`` has said so far, by attempt id; of an attempt judged twice the later critique."""
        return {critique.trajectory_id: critique for critique in load_appended(self._file(teacher, again), Critique)}

    def cost(self, teacher: Teacher, again: bool = False) -> Batch:
        """What that took, all batches together."""
        name = _label(teacher, again)
        batches = [batch for batch in load_appended(self.path / "batches.jsonl", Batch) if batch.teacher == name]
        return Batch(
            teacher=name,
            attempts=sum(batch.attempts for batch in batches),
            seconds=sum(batch.seconds for batch in batches),
            usage=sum((batch.usage for batch in batches), start=Usage()),
        )

    def record(
        self, teacher: Teacher, again: bool, critiques: Sequence[Critique], seconds: float, usage: Usage
    ) -> None:
        """Add one batch."""
        batch = Batch(teacher=_label(teacher, again), attempts=len(critiques), seconds=seconds, usage=usage)
        try:
            save_jsonl(self._file(teacher, again), critiques)
            save_jsonl(self.path / "batches.jsonl", [batch])
        except OSError as error:
            raise DataError(
                f"cannot write to {self.path} ({error.strerror}): make room and give the same command"
            ) from None

    def _file(self, teacher: Teacher, again: bool) -> Path:
        """A name of the teacher that any file system takes, made unique by a hash."""
        label = _label(teacher, again)
        readable = re.sub(r"[^\w.-]+", "-", teacher.name)[:60].strip("-")
        digest = hashlib.sha256(label.encode()).hexdigest()[:8]
        return self.path / "critiques" / f"{readable}{'-again' * again}-{digest}.jsonl"


def judge(
    teacher: Teacher,
    attempts: Sequence[Attempt],
    folder: CritiqueFolder,
    *,
    again: bool = False,
    retry: bool = False,
    batch: int = 16,
    on_batch: Callable[[int, int], None] = lambda done, invalid: None,
) -> Judged:
    """Have ``teacher`` score what it has not scored yet, and return all it says of ``attempts``.

    Args:
        teacher: its random draws are seeded with 0, those of the second pass with 1.
        attempts: attempts at one question are asked together.
        folder: where the scores are kept.
        again: the second pass, to see how far a teacher agrees with itself.
        retry: ask once more where a score has no number.
        batch: attempts asked at once, at least; a group is never torn.
        on_batch: is told the number of attempts done, and of critiques among them with a score that is no number.

    Raises:
        DataError: a privileged teacher and an attempt without a gold answer; a full disk.
    """
    known = folder.critiques(teacher, again)
    wanted = {attempt.id for attempt in attempts}
    done = {name for name, critique in known.items() if name in wanted and (critique.valid or not retry)}
    teacher.seed(int(again))
    on_batch(len(done), sum(not known[name].valid for name in done))
    for together in _batches(attempts, done, batch, whole_groups=teacher.relative):
        started, before = time.monotonic(), teacher.usage()
        critiques = score_attempts(teacher, together)
        folder.record(teacher, again, critiques, time.monotonic() - started, teacher.usage() - before)
        known |= {critique.trajectory_id: critique for critique in critiques}
        done |= {attempt.id for attempt in together}
        on_batch(len(done), sum(not known[name].valid for name in done))
    return Judged(
        label=_label(teacher, again),
        critiques={attempt.id: known[attempt.id] for attempt in attempts},
        cost=folder.cost(teacher, again),
        again=again,
    )


def score_attempts(teacher: Teacher, attempts: Sequence[Attempt]) -> list[Critique]:
    """A critique per attempt, in order: :meth:`Teacher.critique <ovd_gym.teachers.base.Teacher.critique>` for attempts.

    Raises:
        DataError: a privileged teacher and an attempt without a gold answer.
    """
    views = [attempt.views(teacher.privileged) for attempt in attempts]
    flow = iter(teacher.judge([view for of_one in views for view in of_one]))
    return [
        Critique(
            trajectory_id=attempt.id,
            teacher=teacher.name,
            privileged=teacher.privileged,
            steps=tuple(next(flow) for _ in attempt.steps),
            trajectory=next(flow),
        )
        for attempt in attempts
    ]


def stored_critiques(paths: Iterable[Path], attempts: Sequence[Attempt]) -> list[Judged]:
    """What the teachers of the run folders among ``paths`` said of ``attempts`` when they ran."""
    steps = {attempt.id: len(attempt.steps) for attempt in attempts}
    folders = [path for path in paths if (path / "trajectories").is_dir()]
    by_teacher: dict[str, dict[str, Critique]] = {}
    for file in (file for path in folders for file in sorted((path / "critiques").glob("*.jsonl"))):
        for critique in load_jsonl(file, Critique):
            if steps.get(critique.trajectory_id) == len(critique.steps):
                by_teacher.setdefault(critique.teacher, {})[critique.trajectory_id] = critique
    return [Judged(label=f"{name} (in the run)", critiques=found) for name, found in sorted(by_teacher.items())]


def _batches(attempts: Sequence[Attempt], done: set[str], batch: int, whole_groups: bool) -> Iterator[list[Attempt]]:
    """Attempts that are not done, groups together; all of a group if its members are judged by comparison."""
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    groups: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        groups.setdefault(attempt.group or attempt.id, []).append(attempt)
    waiting: list[Attempt] = []
    for group in groups.values():
        open_ones = [attempt for attempt in group if attempt.id not in done]
        waiting += group if open_ones and whole_groups else open_ones
        if len(waiting) >= batch:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _label(teacher: Teacher, again: bool) -> str:
    return teacher.name + " (privileged)" * teacher.privileged + " (again)" * again
