"""Scores on disk: what a teacher was asked once it is not asked again, in this run or in any other."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from pathlib import Path

from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Score
from ovd_gym.teachers.base import View
from ovd_gym.teachers.combine import Composite, TeacherSpec, ask, nested

__all__ = ["Cached", "asking_anew"]

_MARKS = {"application_id": 0x0D6C5C0E, "user_version": 1}
"""What tells the file from other databases: the number of this application, and that of the table's layout."""
_TABLE = """
    CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, teacher TEXT NOT NULL, score TEXT NOT NULL) WITHOUT ROWID
"""
_WAIT_S = 60.0
"""How long one process waits while another one writes."""

_anew: ContextVar[bool] = ContextVar("_anew", default=False)


class Cached(Composite):
    """Another teacher with its valid scores kept in one SQLite file; failures are asked for again.

    A score is found by the teacher's name (which stands for its model, prompts and settings), by the seed, and by the
    view without its group: all that it depends on. The seed belongs to it because a model teacher derives from it the
    nonce of its fences, and scores change with the nonce: a run with a cache gives the same numbers as one without, and
    a resumed run, which has the same seed, finds its own scores. Before :meth:`seed` the nonce is a new one in every
    process; scores then stand for any of them. Keys are hashes: the file holds scores and rationales, but neither
    questions nor attempts, neither seed nor nonce.

    Several processes may share a file on a local disk. The name is that of the teacher: scores do not depend on where
    they are kept.

    Args:
        teacher: anything :func:`~ovd_gym.teachers.registry.make_teacher` takes. Not a relative one: its scores belong
            to a group and mean nothing in another.
        path: the file; made when it does not exist.
        chunk: views that are asked for at a time, so that a process that dies loses no more than these. None asks for
            all of them together, which is fastest; a person (``human``) wants 1.

    Raises:
        ConfigError: a teacher that cannot be made or is relative, or a ``chunk`` below 1.
        DataError: the file is damaged, is no cache of scores, or cannot be opened.
    """

    def __init__(self, teacher: TeacherSpec, path: str | Path, *, chunk: int | None = None) -> None:
        self.teacher = nested(teacher, "cached.teacher")
        super().__init__([self.teacher])
        if self.relative:
            raise ConfigError(
                f"cached.teacher: scores of {self.teacher.name} depend on the group they were given in and cannot be "
                "kept; cache the teachers it is made of instead"
            )
        if chunk is not None and chunk < 1:
            raise ConfigError(f"cached.chunk must be at least 1, got {chunk}")
        self.name = self.teacher.name
        self._path = Path(path)
        self._chunk = chunk
        self._seed: int | None = None
        self.hits, self.misses = 0, 0
        self._prepare()

    def seed(self, seed: int) -> None:
        """Seed the teacher; scores given with another seed are other scores."""
        super().seed(seed)
        self._seed = seed

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``; the teacher is asked for those that are not kept, once each."""
        if _anew.get():
            return ask(self.teacher, views)
        keys = [self._key(view) for view in views]
        try:
            known = self._load(keys)
        except (sqlite3.Error, ValueError) as error:
            return [Score.invalid("error", f"score cache {self._path}: {error}")] * len(views)
        wanted = {key: view for key, view in zip(keys, views, strict=True) if key not in known}
        self.hits += len(views) - len(wanted)
        self.misses += len(wanted)
        size = self._chunk or max(1, len(wanted))
        for start in range(0, len(wanted), size):
            some = list(wanted)[start : start + size]
            scores = dict(zip(some, ask(self.teacher, [wanted[key] for key in some]), strict=True))
            self._store({key: score for key, score in scores.items() if score.valid})
            known |= scores
        return [known[key] for key in keys]

    def _key(self, view: View) -> bytes:
        parts = [self.name, self._seed, view.model_dump(mode="json", exclude={"group"})]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).digest()

    # The file -------------------------------------------------------------------------------------------

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # Opened for each batch: a connection must neither cross a fork nor be shared by threads.
        with closing(sqlite3.connect(self._path, timeout=_WAIT_S)) as database, database:
            yield database

    def _prepare(self) -> None:
        """Make the file, or make sure of it: what is damaged is found now, not after hours."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as database:
                (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
                marks = [database.execute(f"PRAGMA {mark}").fetchone()[0] for mark in _MARKS]
                if tables and marks != list(_MARKS.values()):
                    raise DataError(f"{self._path} is a database, but no cache of scores: name another file")
                (sound,) = database.execute("PRAGMA quick_check").fetchone()
                if sound != "ok":
                    raise DataError(f"score cache {self._path} is damaged ({sound}): delete it, or name another file")
                database.execute("PRAGMA journal_mode = WAL")  # others may read while one writes
                database.execute("BEGIN IMMEDIATE")  # table and marks appear together
                database.execute(_TABLE)
                for mark, value in _MARKS.items():
                    database.execute(f"PRAGMA {mark} = {value}")
        except (sqlite3.Error, OSError) as error:
            raise DataError(
                f"score cache {self._path} cannot be used ({error}): delete it, or name another file"
            ) from error

    def _load(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """The scores that are kept. Raises ValueError for one that is none."""
        found: dict[bytes, Score] = {}
        with self._open() as database:
            for key in set(keys):
                if row := database.execute("SELECT score FROM scores WHERE key = ?", (key,)).fetchone():
                    found[key] = Score.model_validate_json(row[0])
        return found

    def _store(self, scores: Mapping[bytes, Score]) -> None:
        rows = [(key, self.name, score.model_dump_json()) for key, score in scores.items()]
        try:
            with self._open() as database:
                database.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:  # the scores are there and good; only the next run has to ask again
            warnings.warn(
                f"score cache {self._path}: {len(rows)} scores not kept: {error}", RuntimeWarning, stacklevel=2
            )


@contextmanager
def asking_anew() -> Iterator[None]:
    """Within it no cache is read or written: what is measured is the teacher as it is now."""
    token = _anew.set(True)
    try:
        yield
    finally:
        _anew.reset(token)
