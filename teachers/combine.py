"""Teachers made of teachers: several opinions at once, or the next one where one fails.

Both take anything :func:`~ovd_gym.teachers.registry.make_teacher` takes, so they nest, also in a configuration file.
No group of attempts is ever judged by two measures: scores are compared within a group, and a score of another teacher
beside them would be a bias, not a replacement. Whoever stands in for a teacher does so for the whole group.
"""

from __future__ import annotations

import statistics
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import add
from typing import Any

from ovd_gym.errors import ConfigError, unknown
from ovd_gym.llm.choice import Usage
from ovd_gym.records import Score
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.teachers.registry import make_teacher

__all__ = ["Composite", "Ensemble", "Fallback", "TeacherSpec", "ask", "by_group", "nested"]

TeacherSpec = str | Teacher | Mapping[str, Any]
"""What :func:`~ovd_gym.teachers.registry.make_teacher` takes."""

_HOW: dict[str, Callable[[list[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "minimum": min,
}


class Composite(Teacher):
    """A teacher that asks others: privileged, relative or explaining if any of them is.

    A failed score is asked for once more by the member that failed, not by all of them.

    Args:
        members: the teachers, in order. One that is not privileged never sees the gold answers, whatever the others do.
    """

    def __init__(self, members: Sequence[Teacher]) -> None:
        self.members = tuple(members)
        self.privileged = any(member.privileged for member in members)
        self.explains = any(member.explains for member in members)
        self.relative = any(member.relative for member in members)

    def seed(self, seed: int) -> None:
        """Seed every member."""
        for member in self.members:
            member.seed(seed)

    def usage(self) -> Usage:
        """The sum over the members; a model object that two of them share is counted by both."""
        return reduce(add, (member.usage() for member in self.members), Usage())

    def score(self, view: View) -> Score:
        """One score; see :meth:`score_batch`."""
        return self.score_batch([view])[0]

    @abstractmethod
    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``."""

    def judge(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``; what failed has been asked for twice already."""
        return self._checked(views)


class Ensemble(Composite):
    """The mean, median or minimum of several teachers' scores.

    With ``mean``, distributions over the digits are averaged as well, if every teacher gives one.

    Args:
        teachers: two or more, see :data:`TeacherSpec`.
        how: ``mean``, ``median`` or ``minimum``.
        quorum: how many teachers a score takes; None takes all of them. With fewer than all, a teacher that fails
            on one view of a group is left out of that whole group, so that all of its scores mean the same.

    Raises:
        ConfigError: fewer than two teachers, one that cannot be made, an unknown ``how``, an impossible quorum.
    """

    def __init__(self, teachers: Sequence[TeacherSpec], *, how: str = "mean", quorum: int | None = None) -> None:
        super().__init__(_members(teachers, "ensemble.teachers"))
        if how not in _HOW:
            raise ConfigError(unknown("value of ensemble.how", how, _HOW))
        count = len(self.members)
        if quorum is not None and not 1 <= quorum <= count:
            raise ConfigError(f"ensemble.quorum must be from 1 to {count}, the number of teachers, got {quorum}")
        self._how = how
        self._quorum = quorum or count
        self.relative = self.relative or self._quorum < count
        took = f", quorum {quorum}" if self._quorum < count else ""
        self.name = f"ensemble({how}{took}: {', '.join(member.name for member in self.members)})"

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``; each teacher is asked for all of them at once."""
        table = [ask(member, views) for member in self.members]
        all_count = self._quorum == len(self.members)
        scores: dict[int, Score] = {}
        for rows in [[i] for i in range(len(views))] if all_count else by_group(views):
            counted = [m for m, given in enumerate(table) if all(given[i].valid for i in rows)]
            if len(counted) < self._quorum:
                failed = Score.invalid(*self._why(table, rows, len(counted)))
                scores |= dict.fromkeys(rows, failed)
            else:
                scores |= {i: self._combined({m: table[m][i] for m in counted}) for i in rows}
        return [scores[i] for i in range(len(views))]

    def _combined(self, given: Mapping[int, Score]) -> Score:
        means = [score.mean for score in given.values() if score.mean is not None]
        remarks = [_signed(s, self.members[m].name, f"{s.mean:.2f} ").rationale for m, s in given.items()]
        score = Score.of(_HOW[self._how](means), "\n".join(remarks))
        every = [s.probs for s in given.values() if s.probs is not None]
        if self._how != "mean" or len(every) < len(given):
            return score
        probs = tuple(statistics.fmean(column) for column in zip(*every, strict=True))
        masses = [s.digit_mass for s in given.values() if s.digit_mass is not None]
        mass = statistics.fmean(masses) if len(masses) == len(given) else None
        return score.model_copy(update={"probs": probs, "digit_mass": mass})

    def _why(self, table: Sequence[Sequence[Score]], rows: Sequence[int], valid: int) -> tuple[Any, str]:
        """(status, reason) of the first failure in ``rows``."""
        name, score = next(
            (member.name, given[i])
            for member, given in zip(self.members, table, strict=True)
            for i in rows
            if not given[i].valid
        )
        counted = f"{valid} of {len(self.members)} teachers gave a score, {self._quorum} are needed"
        return score.status, f"{counted}; {name}: {score.status} ({score.rationale})"


class Fallback(Composite):
    """The first teacher of a chain that can score a whole group.

    A group where a teacher fails on any view goes to the next teacher with all its views: no group is judged by two.
    The rationale begins with the name of the teacher whose score it is.

    Args:
        chain: two or more teachers, best first, see :data:`TeacherSpec`.

    Raises:
        ConfigError: fewer than two teachers, or one that cannot be made.
    """

    def __init__(self, chain: Sequence[TeacherSpec]) -> None:
        super().__init__(_members(chain, "fallback.chain"))
        self.relative = True  # who judges an attempt depends on whether the others of its group could be judged
        self.name = f"fallback({', else '.join(member.name for member in self.members)})"

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``; a group that no teacher could score whole has no score at all."""
        scores: dict[int, Score] = {}
        failures: defaultdict[int, list[Score]] = defaultdict(list)
        groups = by_group(views)
        for member in self.members:
            rows = sorted(i for group in groups for i in group)
            given = dict(zip(rows, ask(member, [views[i] for i in rows]), strict=True))
            waiting = []
            for group in groups:
                if failed := next((given[i] for i in group if not given[i].valid), None):
                    waiting.append(group)
                    for i in group:
                        failures[i].append(failed)
                else:
                    scores |= {i: _signed(given[i], member.name) for i in group}
            groups = waiting
        return [scores[i] if i in scores else self._nobody(failures[i]) for i in range(len(views))]

    def _nobody(self, failures: Sequence[Score]) -> Score:
        reasons = "; ".join(
            f"{member.name}: {score.status} ({score.rationale})"
            for member, score in zip(self.members, failures, strict=True)
        )
        return Score.invalid(failures[-1].status, f"no teacher could score the whole group; {reasons}")


def nested(spec: TeacherSpec, where: str) -> Teacher:
    """The teacher that ``spec`` names. Raises ConfigError that begins with ``where`` it stands."""
    try:
        return make_teacher(spec)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def ask(teacher: Teacher, views: Sequence[View]) -> list[Score]:
    """What ``teacher`` gives for ``views``, shown to it without gold answers unless it is privileged.

    A teacher that raises has failed on all of them: that is for the caller to count, not to crash on.
    """
    if not views:
        return []
    shown = views if teacher.privileged else [view.model_copy(update={"gold": None}) for view in views]
    try:
        return teacher.judge(shown)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001  (a plug-in may raise anything; it is recorded, never a number)
        return [Score.invalid("error", f"{type(error).__name__}: {error}")] * len(views)


def by_group(views: Sequence[View]) -> list[list[int]]:
    """Indices of the views of each group, in order. Views without a group belong together if they ask the same."""
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for i, view in enumerate(views):
        groups[view.group, view.question].append(i)
    return list(groups.values())


def _members(specs: Sequence[TeacherSpec], where: str) -> list[Teacher]:
    if isinstance(specs, str | Mapping) or len(specs) < 2:
        got = f"{len(specs)} of them" if isinstance(specs, list | tuple) else type(specs).__name__
        raise ConfigError(f"{where} takes a list of two or more teachers, got {got}")
    return [nested(spec, f"{where}[{i}]") for i, spec in enumerate(specs)]


def _signed(score: Score, name: str, mark: str = "") -> Score:
    """``score`` with a rationale that says whose it is."""
    return score.model_copy(update={"rationale": f"[{name}] {mark}{score.rationale}".rstrip()})
