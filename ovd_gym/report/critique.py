"""What was measured of teachers as one self-contained HTML file: numbers, promise against outcome, transcripts.

No text is trusted: everything is escaped, and the page's own policy forbids scripts and any request.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd_gym.errors import DataError
from ovd_gym.records import Score
from ovd_gym.report.pages import template

__all__ = ["Case", "CaseStep", "Chapter", "Page", "Reliability", "Table", "render_page", "write_page"]


@dataclass(frozen=True)
class Table:
    """Numbers as they are to be read."""

    title: str
    head: Sequence[str]
    """[C] names of the columns; the first is that of the rows' names."""
    rows: Sequence[Sequence[str]]
    """[R, C]"""
    notes: Mapping[str, str]
    """What a row's name means, for those that need it."""


@dataclass(frozen=True)
class Reliability:
    """Promise against outcome of one teacher."""

    teacher: str
    bins: Sequence[tuple[float, float, int]]
    """(mean score on [0, 1], share that was right, count) of each bin that is not empty."""


@dataclass(frozen=True)
class CaseStep:
    """One step with what its teachers say of it."""

    text: str
    observation: str
    right: bool | None
    """None where it is not labelled."""
    scores: Sequence[Score]
    """[C] of the teachers, in the page's order."""


@dataclass(frozen=True)
class Case:
    """An attempt worth reading."""

    id: str
    question: str
    answer: str | None
    gold: Sequence[str]
    right: bool | None
    about: str
    """Where it comes from and who made it."""
    steps: Sequence[CaseStep]
    scores: Sequence[Score]
    """[C] of the whole attempt."""


@dataclass(frozen=True)
class Chapter:
    """Attempts under one title, with the reason why they are shown."""

    title: str
    why: str
    cases: Sequence[Case]


@dataclass(frozen=True)
class Page:
    """All of a critique page."""

    title: str
    teachers: Sequence[str]
    """[C] as columns of scores are headed."""
    tables: Sequence[Table]
    reliability: Sequence[Reliability]
    chapters: Sequence[Chapter]


def write_page(path: str | Path, page: Page) -> None:
    """Write ``page`` to ``path`` as HTML. Raises :class:`DataError` if that is not possible."""
    try:
        # Half of a surrogate pair can stand in sampled text, but not in UTF-8.
        Path(path).write_text(render_page(page), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None


def render_page(page: Page) -> str:
    """The page that :func:`write_page` writes."""
    return template("critique.html.j2").render(page=page)
