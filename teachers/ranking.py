"""A teacher that compares: each trajectory against the others of its group, two at a time.

Which of two attempts is better is often easier to say than how good one is. Language models favour a place, mostly the
first, so each pair is shown in both orders and the two readings are averaged: what the place adds cancels.

Source: "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", Zheng et al., arXiv 2306.05685 (section 3.4).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import ChoiceModel, Prompt, Reading, Usage
from ovd_gym.records import Score
from ovd_gym.teachers.asking import Examiner, share
from ovd_gym.teachers.base import View
from ovd_gym.teachers.combine import Composite, TeacherSpec, ask, by_group, nested

__all__ = ["RankingTeacher", "pairing"]


class RankingTeacher(Composite):
    """Scores a trajectory 9 times its win rate against the others of its group.

    Win rates say nothing about how good a group is, only who is ahead in it; learners that compare within groups want
    no more. They exist for trajectories alone: **steps** have no counterparts in the other attempts, so another teacher
    scores them, and also a trajectory that is **alone in its group**, where there is nobody to win against and 4.5
    would be a number for a comparison that never was.

    Attempts that read the same are not compared: each wins half. If one comparison of a group fails, none of its
    trajectories has a score: win rates over different opponents are not comparable.

    The rationale says how many comparisons were won, and by how much the first place was favoured in them (the
    probability of winning there, less one half); :attr:`position_bias` is the same over all comparisons so far.

    Args:
        model: whatever :func:`~ovd_gym.llm.choice.make_choice_model` takes.
        steps: who scores the steps, and trajectories alone in their group: anything
            :func:`~ovd_gym.teachers.registry.make_teacher` takes.
        max_pairs: most pairs compared in a group, each in both orders. A group with more of them (n attempts have
            n (n - 1) / 2) is compared in rings, drawn with the seed: all attempts have equally many opponents. One
            ring, n pairs, is the least.
        privileged: show the gold answers to the model.
        prompts: a folder with a ``compare.j2`` of one's own, see :class:`~ovd_gym.teachers.prompting.Prompts`.

    Raises:
        ConfigError: a model or a teacher that cannot be had, or an option out of range.
    """

    def __init__(
        self,
        model: ChoiceModel | str | Mapping[str, Any] | tuple[Any, Any],
        *,
        steps: TeacherSpec,
        max_pairs: int = 28,
        privileged: bool = False,
        prompts: str | Path | None = None,
    ) -> None:
        if max_pairs < 1:
            raise ConfigError(f"ranking.max_pairs must be at least 1, got {max_pairs}")
        super().__init__([nested(steps, "ranking.steps")])
        self._examiner = Examiner(model, "compare", ("A", "B"), prompts)
        self._max_pairs = max_pairs
        self._compares_privileged = privileged
        self.privileged = self.privileged or privileged
        self.explains = self.relative = True
        self._seed = 0
        self._compared, self._first_won = 0, 0.0
        settings = f"{max_pairs} pairs{', privileged' if privileged else ''}, steps: {self.members[0].name}"
        self.name = f"ranking({self._examiner.label}, {settings})"

    @property
    def position_bias(self) -> float:
        """Probability that the attempt shown first wins, less one half, over all comparisons so far; 0 before any."""
        return self._first_won / self._compared - 0.5 if self._compared else 0.0

    def seed(self, seed: int) -> None:
        """Make the fences' nonce, the model's draws, the rings and the other teacher repeatable."""
        super().seed(seed)
        self._seed = seed
        self._examiner.seed(seed)

    def usage(self) -> Usage:
        """What the model and the other teacher have asked for."""
        return super().usage() + self._examiner.model.usage()

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``; all trajectories of a group have to be among them."""
        whole = [i for i, view in enumerate(views) if view.kind == "trajectory"]
        groups = [[whole[k] for k in group] for group in by_group([views[i] for i in whole])]
        groups = [group for group in groups if len(group) > 1]
        compared = {i for group in groups for i in group}
        others = [i for i in range(len(views)) if i not in compared]
        scores = dict(zip(others, ask(self.members[0], [views[i] for i in others]), strict=True))
        scores |= self._ranked(views, groups)
        return [scores[i] for i in range(len(views))]

    def _ranked(self, views: Sequence[View], groups: Sequence[Sequence[int]]) -> dict[int, Score]:
        """Scores of the trajectories in ``groups``; the comparisons of all groups are asked together."""
        drawn = [[self._draw(views, a, b) for a, b in self._pairs(views, group)] for group in groups]
        readings = iter(self._read([prompt for pairs in drawn for pair in pairs for prompt in pair.prompts]))
        scores: dict[int, Score] = {}
        for group, pairs in zip(groups, drawn, strict=True):
            scores |= self._tally(group, [(pair, [next(readings) for _ in pair.prompts]) for pair in pairs])
        return scores

    def _read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """Readings aligned with ``prompts``; a failed one is asked for once more."""
        readings = self._examiner.read(prompts)
        again = [i for i, reading in enumerate(readings) if reading.status != "ok"]
        for i, reading in zip(again, self._examiner.read([prompts[i] for i in again]), strict=True):
            readings[i] = reading
        return readings

    def _pairs(self, views: Sequence[View], group: Sequence[int]) -> list[tuple[int, int]]:
        first = views[group[0]]
        rng = random.Random(f"{self._seed} {first.group} {first.question}")  # of the group, not of what came before
        return [(group[a], group[b]) for a, b in pairing(len(group), self._max_pairs, rng)]

    def _draw(self, views: Sequence[View], a: int, b: int) -> _Pair:
        """Both orders of a pair: no prompts if the two read the same, or do not fit."""
        gone = {} if self._compares_privileged else {"gold": None}
        first, second = (views[i].model_copy(update=gone) for i in (a, b))
        if (first.steps, first.answer) == (second.steps, second.answer):
            return _Pair(a, b, same=True)
        (fitted,) = self._examiner.fit([(first, second)], lambda pair: self._examiner.prompt(pair[0], other=pair[1]))
        if fitted is None:
            return _Pair(a, b)
        (first, second), note = fitted
        both = self._examiner.prompt(first, other=second), self._examiner.prompt(second, other=first)
        return _Pair(a, b, prompts=both, note=note)

    def _tally(self, group: Sequence[int], pairs: Sequence[tuple[_Pair, Sequence[Reading]]]) -> dict[int, Score]:
        """Scores of one group from the readings of its pairs, in both orders."""
        won: dict[int, list[float]] = {i: [] for i in group}
        first_won: list[float] = []
        for pair, readings in pairs:
            if failed := pair.failure(readings):
                return dict.fromkeys(group, failed)
            shares = [share(reading) for reading in readings]
            first_won += shares
            win = 0.5 if pair.same else (shares[0] + 1 - shares[1]) / 2
            won[pair.a].append(win)
            won[pair.b].append(1 - win)
        self._compared += len(first_won)
        self._first_won += sum(first_won)
        remarks = [f"; first place favoured by {sum(first_won) / len(first_won) - 0.5:+.2f}"] if first_won else []
        if cut := sum(bool(pair.note) for pair, _ in pairs):
            remarks.append(f"; tool results were cut to fit the context in {cut} of the group's {len(pairs)} pairs")
        return {
            i: Score.of(9 * sum(wins) / len(wins), f"won {sum(wins):.2f} of {len(wins)}{''.join(remarks)}")
            for i, wins in won.items()
        }


@dataclass(frozen=True)
class _Pair:
    """Two attempts, by their indices, and the prompts that compare them: ``a`` first, then ``b`` first."""

    a: int
    b: int
    prompts: tuple[Prompt, ...] = ()
    note: str = ""
    """What was cut to fit the context."""
    same: bool = False

    def failure(self, readings: Sequence[Reading]) -> Score | None:
        """Why there is no result; None if there is one."""
        if not self.prompts and not self.same:
            return Score.invalid("over_budget", "two attempts are too long to be compared, even with tool results cut")
        failed = next((reading for reading in readings if reading.status != "ok"), None)
        return Score.invalid(failed.status, f"a comparison failed: {failed.text}") if failed else None


def pairing(count: int, max_pairs: int, rng: random.Random) -> list[tuple[int, int]]:
    """Which of ``count`` attempts are compared: all pairs if they are at most ``max_pairs``, else rings of them.

    The attempts are put into a circle in random order, and each is compared with the next, then with the one after
    that, as often as ``max_pairs`` allows, at least once: everybody has equally many opponents.

    >>> pairing(3, 3, random.Random(0))
    [(0, 1), (0, 2), (1, 2)]
    >>> len(pairing(10, 25, random.Random(0)))
    20
    """
    every = list(itertools.combinations(range(count), 2))
    if len(every) <= max_pairs:
        return every
    circle = rng.sample(range(count), count)
    rings = range(1, max(1, min(max_pairs // count, (count - 1) // 2)) + 1)
    return [(circle[i], circle[(i + ring) % count]) for ring in rings for i in range(count)]
