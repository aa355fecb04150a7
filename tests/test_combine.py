"""Teachers made of teachers: what they combine, who stands in for whom, and what they keep from each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import Usage
from ovd_gym.records import Score, ScoreStatus
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.combine import Ensemble, Fallback, by_group
from ovd_gym.teachers.registry import make_teacher

PROBS = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


class Member(Teacher):
    """The same score for all views but those whose question is in ``fails``; remembers what it saw."""

    def __init__(
        self,
        value: float,
        *fails: str,
        name: str = "",
        status: ScoreStatus = "timeout",
        recovers: bool = False,
        probs: tuple[float, ...] | None = None,
        **attributes: Any,
    ) -> None:
        self.given = Score.of(value, "because").model_copy(update={"probs": probs, "digit_mass": probs and 0.8})
        self.fails = set(fails)
        self.name = name or f"member {value:g}"
        self.status = status
        self.recovers = recovers
        self.seen: list[View] = []
        self.seeds: list[int] = []
        for key, attribute in attributes.items():
            setattr(self, key, attribute)

    def score(self, view: View) -> Score:
        self.seen.append(view)
        if view.attempt in self.fails:
            self.fails -= {view.attempt} if self.recovers else set()
            return Score.invalid(self.status, "no luck")
        return self.given

    def seed(self, seed: int) -> None:
        self.seeds.append(seed)

    def usage(self) -> Usage:
        return Usage(requests=len(self.seen), cost=0.5)


class Broken(Teacher):
    """Raises, for all views at once."""

    def score(self, view: View) -> Score:
        raise NotImplementedError

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        raise ConnectionError("nobody there")


def view(text: str = "a", group: str = "g", **more: Any) -> View:
    return View(kind="trajectory", question="q", steps=(StepText(text=text, observation=""),), group=group, **more)


def means(scores: Sequence[Score]) -> list[float | None]:
    return [score.mean for score in scores]


# The ensemble -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "expected"), [("mean", 14 / 3), ("median", 4.0), ("minimum", 1.0)])
def test_an_ensemble_combines_the_means(how: str, expected: float) -> None:
    score = Ensemble([Member(1), Member(4), Member(9)], how=how).judge([view()])[0]
    assert score.mean == pytest.approx(expected)
    assert score.rationale == "[member 1] 1.00 because\n[member 4] 4.00 because\n[member 9] 9.00 because"


def test_distributions_are_averaged_where_all_have_one() -> None:
    low = (1.0, *PROBS[1:9], 0.0)
    both = Ensemble([Member(0, probs=low), Member(9, probs=PROBS)]).judge([view()])[0]
    assert both.probs == (0.5, *PROBS[1:9], 0.5)
    assert (both.mean, both.digit_mass) == (4.5, 0.8)
    assert Ensemble([Member(0, probs=low), Member(9)]).judge([view()])[0].probs is None
    assert Ensemble([Member(0, probs=low), Member(9, probs=PROBS)], how="median").judge([view()])[0].probs is None


def test_without_a_quorum_one_failure_is_the_scores_failure() -> None:
    teacher = Ensemble([Member(1), Member(4, "b")])
    good, bad = teacher.judge([view("a"), view("b")])
    assert good.mean == 2.5
    assert (bad.status, bad.mean) == ("timeout", None)
    assert bad.rationale == "1 of 2 teachers gave a score, 2 are needed; member 4: timeout (no luck)"
    assert not teacher.relative


def test_with_a_quorum_a_failing_teacher_is_left_out_of_its_whole_group() -> None:
    teacher = Ensemble([Member(1), Member(4, "b")], quorum=1)
    views = [view("a", "g"), view("b", "g"), view("a", "h")]
    assert means(teacher.judge(views)) == [1.0, 1.0, 2.5]
    assert teacher.relative
    below = Ensemble([Member(1, "a"), Member(4, "b"), Member(7)], quorum=2).judge(views)
    assert [score.status for score in below] == ["timeout", "timeout", "ok"]


def test_only_the_member_that_failed_is_asked_again() -> None:
    steady, shaky = Member(1), Member(4, "a", recovers=True)
    assert means(Ensemble([steady, shaky]).judge([view()])) == [2.5]
    assert (len(steady.seen), len(shaky.seen)) == (1, 2)


def test_a_member_that_raises_has_failed() -> None:
    (score,) = Ensemble([Member(1), Broken()]).judge([view()])
    assert score.status == "error"
    assert "ConnectionError: nobody there" in score.rationale


# The fallback -----------------------------------------------------------------------------------------


def test_no_group_is_judged_by_two_teachers() -> None:
    first, second = Member(1, "b"), Member(4)
    scores = Fallback([first, second]).judge([view("a", "g"), view("a", "h"), view("b", "g"), view("c", "h")])
    assert means(scores) == [4.0, 1.0, 4.0, 1.0]
    assert scores[0].rationale == "[member 4] because"
    assert scores[1].rationale == "[member 1] because"
    assert [seen.group for seen in second.seen] == ["g", "g"]


def test_a_failure_that_passes_does_not_change_the_teacher() -> None:
    first, second = Member(1, "b", recovers=True), Member(4)
    assert means(Fallback([first, second]).judge([view("a"), view("b")])) == [1.0, 1.0]
    assert second.seen == []


def test_a_teacher_that_raises_is_passed_over() -> None:
    assert means(Fallback([Broken(), Member(4)]).judge([view("a"), view("b")])) == [4.0, 4.0]


def test_a_group_nobody_could_score_has_no_score() -> None:
    scores = Fallback([Member(1, "a"), Member(4, "b", status="refused")]).judge([view("a"), view("b"), view("a", "h")])
    assert [score.status for score in scores] == ["refused", "refused", "ok"]
    assert scores[0].rationale == (
        "no teacher could score the whole group; member 1: timeout (no luck); member 4: refused (no luck)"
    )
    assert Fallback([Member(1), Member(4)]).relative


# Both -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Ensemble, Fallback])
def test_the_gold_answer_reaches_privileged_members_alone(kind: Any) -> None:
    open_, closed = Member(1, "a", privileged=True), Member(4)
    teacher = kind([open_, closed])
    assert teacher.privileged
    inner = kind([kind([Member(1, "a"), closed]), open_])
    for each in (teacher, inner):
        each.judge([view(gold=("secret",))])
    assert closed.seen
    assert all(seen.gold is None for seen in closed.seen)
    assert all(seen.gold == ("secret",) for seen in open_.seen)
    assert not kind([Member(1), closed]).privileged


@pytest.mark.parametrize("kind", [Ensemble, Fallback])
def test_members_are_seeded_and_their_usage_added(kind: Any) -> None:
    members = [Member(1, "a"), Member(4, explains=True)]
    teacher = kind(members)
    teacher.seed(7)
    teacher.judge([view()])
    assert [member.seeds for member in members] == [[7], [7]]
    assert teacher.usage() == Usage(requests=3, cost=1.0)
    assert teacher.explains
    assert not kind([Member(1), Member(4)]).explains
    assert Ensemble([Member(1, relative=True), Member(4)]).relative
    assert kind([Member(1), Member(4)]).judge([]) == []


def test_the_name_says_who_and_how() -> None:
    members = [Member(1), Member(4)]
    assert Ensemble(members, how="median", quorum=1).name == "ensemble(median, quorum 1: member 1, member 4)"
    assert Ensemble(members, quorum=2).name == Ensemble(members).name == "ensemble(mean: member 1, member 4)"
    assert Fallback(members).name == "fallback(member 1, else member 4)"


def test_specifications_nest() -> None:
    spec = {"name": "ensemble", "teachers": ["math-rules", {"name": "fallback", "chain": ["math-rules", Member(4)]}]}
    assert make_teacher(spec).name == "ensemble(mean: math-rules, fallback(math-rules, else member 4))"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "ensemble", "teachers": ["math-rules", "x"]}, r"^ensemble\.teachers\[1\]: unknown teacher 'x'"),
        (
            {"name": "fallback", "chain": ["math-rules", {"name": "ensemble", "teachers": [{"nam": 1}, "math-rules"]}]},
            r"^fallback\.chain\[1\]: ensemble\.teachers\[0\]: a teacher needs a 'name', got the keys \['nam'\]",
        ),
        ({"name": "ensemble", "teachers": ["math-rules"]}, "a list of two or more teachers, got 1 of them"),
        ({"name": "ensemble", "teachers": "math-rules"}, "a list of two or more teachers, got str"),
        ({"name": "ensemble", "teachers": ["math-rules"] * 2, "how": "men"}, "did you mean 'mean'"),
        ({"name": "ensemble", "teachers": ["math-rules"] * 2, "quorum": 3}, "from 1 to 2, .*, got 3"),
        ({"name": "ensemble", "teachers": ["math-rules"] * 2, "quorum": 0}, "from 1 to 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_teacher(spec)


def test_views_without_a_group_belong_together_if_they_ask_the_same() -> None:
    other = view(group="").model_copy(update={"question": "r"})
    assert by_group([view(), view(group=""), other, view(), view("b", group="")]) == [[0, 3], [1, 4], [2]]
