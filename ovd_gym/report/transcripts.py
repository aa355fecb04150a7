"""Episodes as one self-contained HTML file: every step coloured by the digit its teacher gave.

The texts come from a student, its tools and its teacher, so none of them is trusted: the template escapes
everything, and the page's own policy forbids scripts and any request. It opens offline, years from now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from ovd_gym.errors import DataError
from ovd_gym.records import Critique, Score, Step, Trajectory
from ovd_gym.report.pages import template

__all__ = ["Section", "render_transcripts", "write_transcripts"]

Section: TypeAlias = tuple[str, Sequence[tuple[Trajectory, Critique | None]]]
"""A label ("training step 3", "evaluation after step 10") and its episodes; None where no teacher judged."""


def write_transcripts(path: str | Path, sections: Sequence[Section], title: str) -> None:
    """Write ``sections`` to ``path`` as one HTML page, in the order given.

    Raises :class:`DataError` when a critique belongs to another trajectory than the one it stands beside.
    """
    # Half of a surrogate pair can stand in sampled text, but not in UTF-8: it is shown as \udxxx.
    Path(path).write_text(render_transcripts(sections, title), encoding="utf-8")


def render_transcripts(sections: Sequence[Section], title: str) -> str:
    """The page that :func:`write_transcripts` writes."""
    chapters = [_Chapter(label, tuple(_Episode(*pair) for pair in pairs)) for label, pairs in sections]
    everything = _Chapter(title, tuple(episode for chapter in chapters for episode in chapter.episodes))
    return template("transcripts.html.j2").render(title=title, everything=everything, chapters=chapters)


@dataclass(frozen=True)
class _Episode:
    """A trajectory beside what its teacher said of it, as the template reads them."""

    trajectory: Trajectory
    critique: Critique | None

    def __post_init__(self) -> None:
        trajectory, critique = self.trajectory, self.critique
        if critique is None:
            return
        if critique.trajectory_id != trajectory.id or len(critique.steps) != len(trajectory.steps):
            raise DataError(
                f"trajectory {trajectory.id!r} with {len(trajectory.steps)} steps stands beside a critique of "
                f"{critique.trajectory_id!r} with {len(critique.steps)} scores: pair them by trajectory_id"
            )

    @property
    def scored_steps(self) -> list[tuple[Step, Score | None]]:
        """[T] the steps, each with its score."""
        scores = self.critique.steps if self.critique else (None,) * len(self.trajectory.steps)
        return list(zip(self.trajectory.steps, scores, strict=True))

    @property
    def score(self) -> Score | None:
        """The score of the whole."""
        return self.critique.trajectory if self.critique else None

    @property
    def scores(self) -> list[Score]:
        """Every score that was asked for: the steps', then the whole's."""
        return [*self.critique.steps, self.critique.trajectory] if self.critique else []


@dataclass(frozen=True)
class _Chapter:
    """Episodes under one label."""

    label: str
    episodes: tuple[_Episode, ...]

    @property
    def summary(self) -> list[tuple[str, str]]:
        """Label and value of each headline number."""
        episodes = self.episodes
        ends = Counter(episode.trajectory.status for episode in episodes)
        scores = [score for episode in episodes for score in episode.scores]
        invalid = sum(not score.valid for score in scores)
        wholes = (episode.score.mean for episode in episodes if episode.score and episode.score.mean is not None)
        rewards = (episode.trajectory.reward for episode in episodes if episode.trajectory.reward is not None)
        return [
            ("episodes", str(len(episodes))),
            ("mean reward", _mean(rewards)),
            ("mean score", _mean(wholes)),
            ("mean steps", _mean((len(episode.trajectory.steps) for episode in episodes), digits=1)),
            *((status, str(ends[status])) for status in ("terminated", "truncated", "failed") if ends[status]),
            *([("invalid scores", f"{invalid} of {len(scores)}")] if scores else []),
        ]


def _mean(values: Iterable[float], digits: int = 2) -> str:
    numbers = list(values)
    return f"{sum(numbers) / len(numbers):.{digits}f}" if numbers else "–"
