"""Credit on hand-worked numbers, and the properties the arms must have."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd_gym.credit import CreditConfig, assign_credit, min_form
from ovd_gym.errors import ConfigError
from ovd_gym.records import Critique, Score, Step, Task, Trajectory

TASK = Task(id="t", question="?", answers=("1",))
GRPO = CreditConfig(arm="grpo")


def trajectory(name: str, reward: float | None, steps: int = 2, group: str = "g") -> Trajectory:
    return Trajectory(
        id=name,
        group_id=group,
        task=TASK,
        steps=tuple(Step(text="x", start=2 * k + 1, end=2 * k + 2) for k in range(steps)),
        token_ids=(7,) * (2 * steps),
        logprobs=(0.0,) * (2 * steps),
        reward=reward,
        status="failed" if reward is None else "terminated",
    )


def critique(name: str, steps: list[float | None], whole: float | None) -> Critique:
    def score(value: float | None) -> Score:
        return Score.invalid("timeout") if value is None else Score.of(value)

    return Critique(trajectory_id=name, teacher="t", steps=tuple(map(score, steps)), trajectory=score(whole))


def test_grpo_by_hand() -> None:
    members = [trajectory("a", 1.0), trajectory("b", 0.0), trajectory("c", 0.0), trajectory("d", 0.0)]
    credits = assign_credit(members, [], GRPO)
    assert [c.advantages for c in credits] == [(0.75, 0.75), (-0.25, -0.25), (-0.25, -0.25), (-0.25, -0.25)]


def test_normalized_by_hand() -> None:
    credits = assign_credit([trajectory("a", 1.0), trajectory("b", 0.0)], [], CreditConfig(arm="grpo", normalize=True))
    assert credits[0].advantages == pytest.approx((1.0, 1.0), abs=1e-5)


def test_score_reward_by_hand() -> None:
    members = [trajectory("a", 1.0), trajectory("b", 0.0)]
    critiques = [critique("a", [9, 9], 9), critique("b", [9, 0], 0)]
    config = CreditConfig(trajectory_weight=0.2, step_weight=0.5)
    # R = (1, 0), A = (.5, -.5); G = ((1, 1), (0, 0)), baseline .5; step term +-.25
    assert [c.advantages for c in assign_credit(members, critiques, config)] == [(0.75, 0.75), (-0.75, -0.75)]


def test_step_term_tells_good_steps_from_bad_ones() -> None:
    members = [trajectory("a", 0.0), trajectory("b", 0.0)]
    critiques = [critique("a", [0, 9], 0), critique("b", [0, 0], 0)]
    first, second = assign_credit(members, critiques, CreditConfig())[0].advantages
    # G_a = (0, 1): the bad first step is not redeemed by the good second
    assert first < second


def test_min_form_never_rises_when_a_step_is_appended() -> None:
    assert min_form([0.9, 0.2, 0.5]) == [0.2, 0.2, 0.5]
    rng = random.Random(0)
    for _ in range(200):
        scores = [rng.random() for _ in range(rng.randint(1, 6))]
        assert all(b <= a for a, b in zip(min_form(scores), min_form([*scores, rng.random()]), strict=False))


@pytest.mark.parametrize("missing", ["one step", "one whole", "one critique", "all"])
def test_a_missing_score_falls_back_to_the_environment_for_the_whole_group(missing: str) -> None:
    members = [
        trajectory("a", 1.0),
        trajectory("b", 0.0),
        trajectory("c", 0.5, group="h"),
        trajectory("d", 0.0, group="h"),
    ]
    whole = critique("b", [3, 4], 5)
    broken = {
        "one step": [critique("a", [9, None], 9), whole],
        "one whole": [critique("a", [9, 9], None), whole],
        "one critique": [whole],
        "all": [critique(m, [None, None], None) for m in "ab"],
    }[missing]
    other = [critique("c", [9, 9], 9), critique("d", [1, 1], 1)]
    mixed = assign_credit(members, broken + other, CreditConfig())
    outcome = assign_credit(members, [], GRPO)
    assert mixed[:2] == outcome[:2]
    assert mixed[2:] != outcome[2:]


def test_equal_rewards_give_exactly_nothing() -> None:
    members = [trajectory(str(i), 0.1) for i in range(3)]  # the mean of three 0.1 is not 0.1 in floating point
    assert not any(c.informative for c in assign_credit(members, [], GRPO))
    assert not any(c.informative for c in assign_credit(members, [], CreditConfig(arm="grpo", normalize=True)))


def test_failed_trajectories_are_left_out_of_the_comparison() -> None:
    credits = assign_credit([trajectory("a", 1.0), trajectory("b", None), trajectory("c", 0.0)], [], GRPO)
    assert {c.trajectory_id: c.advantages[0] for c in credits} == {"a": 0.5, "c": -0.5}


episodes = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1 / 3, 1.0]),
        st.lists(st.floats(0, 9), min_size=1, max_size=3),
        st.floats(0, 9),
        st.sampled_from("gh"),
    ),
    min_size=1,
    max_size=8,
)


def world(drawn: list[tuple[float, list[float], float, str]]) -> tuple[list[Trajectory], list[Critique]]:
    members = [trajectory(str(i), e, len(u), g) for i, (e, u, _, g) in enumerate(drawn)]
    return members, [critique(str(i), list(u), whole) for i, (_, u, whole, _) in enumerate(drawn)]


@given(episodes)
def test_without_weights_score_reward_is_grpo_bit_for_bit(drawn: list[tuple[float, list[float], float, str]]) -> None:
    members, critiques = world(drawn)
    bare = CreditConfig(trajectory_weight=0.0, step_weight=0.0)
    assert assign_credit(members, critiques, bare) == assign_credit(members, [], GRPO)


@given(episodes, st.randoms())
def test_order_changes_no_advantage(drawn: list[tuple[float, list[float], float, str]], rng: random.Random) -> None:
    members, critiques = world(drawn)
    before = {c.trajectory_id: c.advantages for c in assign_credit(members, critiques, CreditConfig())}
    rng.shuffle(critiques)
    shuffled = list(members)
    rng.shuffle(shuffled)
    after = {c.trajectory_id: c.advantages for c in assign_credit(shuffled, critiques, CreditConfig())}
    assert {k: pytest.approx(v) for k, v in before.items()} == after


@given(episodes)
def test_right_stays_above_wrong_in_return(drawn: list[tuple[float, list[float], float, str]]) -> None:
    """With lambda below 0.5 no score lifts a wrong trajectory above a right one."""
    members, critiques = world([(float(e == 1.0), u, whole, "g") for e, u, whole, _ in drawn])
    credits = assign_credit(members, critiques, CreditConfig(step_weight=0.0))
    right = [c.advantages[0] for c, m in zip(credits, members, strict=True) if m.reward == 1.0]
    wrong = [c.advantages[0] for c, m in zip(credits, members, strict=True) if m.reward == 0.0]
    assert not right or not wrong or min(right) > max(wrong)


def test_lambda_of_a_half_is_refused() -> None:
    with pytest.raises(ValueError, match=r"less than 0\.5"):
        CreditConfig(trajectory_weight=0.5)


def test_leave_one_out_by_hand() -> None:
    """arXiv 2402.14740: R_i less the mean of the others."""
    members = [trajectory("a", 1.0), trajectory("b", 0.0), trajectory("c", 0.5)]
    credits = assign_credit(members, [], CreditConfig(arm="grpo", baseline="leave-one-out"))
    assert [c.advantages[0] for c in credits] == pytest.approx([1 - 0.25, 0 - 0.75, 0.5 - 0.5])


def test_the_batch_baseline_compares_across_groups() -> None:
    """arXiv 2501.03262: returns normalised over the whole batch."""
    rewards = {"a": 1.0, "b": 1.0, "c": 0.0, "d": 1.0}
    members = [trajectory(name, r, group="g" if name in "ab" else "h") for name, r in rewards.items()]
    credits = assign_credit(members, [], CreditConfig(arm="grpo", baseline="batch", normalize=True))
    mean, std = 0.75, (0.75 * 0.25) ** 0.5
    assert [c.advantages[0] for c in credits] == pytest.approx([(r - mean) / (std + 1e-6) for r in rewards.values()])


@pytest.mark.parametrize(
    ("term", "returns"),
    [("sum-form", [1.5, 1.0, 0.5]), ("potential", [0.5, 0.0, 0.0]), ("min-form", [0.5, 0.5, 0.5])],
)
def test_step_terms_by_hand(term: str, returns: list[float]) -> None:
    """Scores u = (.5, .5, .5) against (0, 0, 0), whose returns are 0 in every form; rewards are equal."""
    members = [trajectory("a", 0.0, 3), trajectory("b", 0.0, 3)]
    critiques = [critique("a", [4.5] * 3, 0), critique("b", [0] * 3, 0)]
    config = CreditConfig(step_term=term, step_weight=1.0)
    baseline = sum(returns) / 3 / 2
    assert assign_credit(members, critiques, config)[0].advantages == pytest.approx([g - baseline for g in returns])


def test_the_sum_form_pays_for_padding_and_the_min_form_does_not() -> None:
    for term, gains in (("sum-form", True), ("min-form", False)):
        short, padded = [critique("a", [9], 9)], [critique("a", [5, 5, 9], 9)]
        config = CreditConfig(step_term=term, step_weight=1.0)
        other = trajectory("b", 0.0, 1)
        firsts = [
            assign_credit([trajectory("a", 0.0, len(c[0].steps)), other], [*c, critique("b", [0], 0)], config)[0]
            for c in (short, padded)
        ]
        assert (firsts[1].advantages[0] > firsts[0].advantages[0]) == gains


def test_potentials_telescope() -> None:
    """The shaping rewards of an episode add up to the last potential."""
    rng = random.Random(1)
    scores = [rng.random() * 9 for _ in range(6)]
    members = [trajectory("a", 0.0, 6), trajectory("b", 0.0, 6)]
    critiques = [critique("a", list(scores), 0), critique("b", [0] * 6, 0)]
    first = assign_credit(members, critiques, CreditConfig(step_term="potential", step_weight=1.0))[0].advantages
    assert first[0] - first[-1] == pytest.approx((scores[-1] - 0) / 9 - (scores[-1] - scores[-2]) / 9)


def test_steps_taken_in_the_same_state_are_compared() -> None:
    """GiGPO by hand: both began with the question; only then did they read different things."""

    def told(name: str, reward: float, *observations: str) -> Trajectory:
        plain = trajectory(name, reward, len(observations))
        steps = [s.model_copy(update={"observation": o}) for s, o in zip(plain.steps, observations, strict=True)]
        return plain.model_copy(update={"steps": tuple(steps)})

    members = [told("a", 1.0, "x", ""), told("b", 0.0, "y", ""), told("c", 1.0, "x", "")]
    config = CreditConfig(arm="grpo", step_term="anchor-state", step_weight=1.0)
    a, b, c = (credit.advantages for credit in assign_credit(members, [], config))
    first = 0.95 - 2 * 0.95 / 3
    assert a == pytest.approx((1 / 3 + first, 1 / 3 + 0.0))  # "x" led to 1 both times
    assert b == pytest.approx((-2 / 3 - 2 * 0.95 / 3, -2 / 3))  # nobody else read "y"
    assert c == a


def test_paragraphs_of_one_turn_share_its_state_and_those_of_another_do_not() -> None:
    """Two turns of two paragraphs each; what was read between the turns differs."""

    def solved(name: str, reward: float, observation: str) -> Trajectory:
        spans = [(1, 2), (2, 3), (4, 5), (5, 6)]
        steps = tuple(
            Step(text="x", start=s, end=e, observation=observation * (k == 1)) for k, (s, e) in enumerate(spans)
        )
        return trajectory(name, reward, 3).model_copy(update={"steps": steps})

    config = CreditConfig(arm="grpo", step_term="anchor-state", step_weight=1.0)
    right, wrong = assign_credit([solved("a", 1.0, "x"), solved("b", 0.0, "y")], [], config)
    begun = (0.95**3 + 0.95**2) / 4  # the mean of the four paragraphs written with only the question read
    assert right.advantages == pytest.approx((0.5 + 0.95**3 - begun, 0.5 + 0.95**2 - begun, 0.5 - 0.025, 0.5 + 0.025))
    assert wrong.advantages == pytest.approx((-0.5 - begun, -0.5 - begun, -0.5, -0.5))


def test_a_missing_score_takes_scores_out_of_all_returns_that_are_compared() -> None:
    members = [trajectory(name, 1.0, group=group) for name, group in ("ag", "bg", "ch", "dh")]
    critiques = [
        critique("a", [9, 9], 5),
        critique("b", [1, 1], 5),
        critique("c", [5, 5], 5),
        critique("d", [5, 5], None),
    ]
    config = CreditConfig(baseline="batch")
    a, b, c, d = (credit.advantages for credit in assign_credit(members, critiques, config))
    assert c == d == (0.0, 0.0)  # all were right: group h is not better for having no scores
    assert a == pytest.approx((0.5 * 4 / 9,) * 2)  # the step term compares within group g
    assert b == pytest.approx((-0.5 * 4 / 9,) * 2)


def test_running_long_costs_up_to_one() -> None:
    """DAPO, equation 13, with 2 sampled tokens for free and 4 as the limit."""
    members = [trajectory(str(n), 1.0, n) for n in (1, 2, 3, 4, 5)]
    config = CreditConfig(arm="grpo", overlong=(2, 4))
    advantages = [c.advantages[0] for c in assign_credit(members, [], config)]
    returns = [1.0, 1.0, 0.5, 0.0, 0.0]
    assert advantages == pytest.approx([r - 0.5 for r in returns])


def length(members: Any, critiques: Any) -> list[list[float]]:
    """A step term of one's own: shorter is better."""
    return [[-float(len(m.steps))] * len(m.steps) for m in members]


def test_a_step_term_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[length.__module__])
    config = CreditConfig(arm="grpo", step_term=f"{__name__}:length", step_weight=1.0)
    credits = assign_credit([trajectory("a", 0.0, 1), trajectory("b", 0.0, 2)], [], config)
    assert [c.advantages for c in credits] == [(-1.0,), (-2.0, -2.0)]
    with pytest.raises(ConfigError, match="did you mean 'min-form'"):
        assign_credit([], [], CreditConfig(step_term="min-from"))


def undecided(members: Sequence[Trajectory], critiques: Sequence[Critique] | None) -> Sequence[Sequence[float]]:
    return [[float("nan")] * len(m.steps) for m in members]


def test_a_step_term_that_is_not_a_number_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping would make it the largest advantage there is."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules[undecided.__module__])
    config = CreditConfig(arm="grpo", step_term=f"{__name__}:undecided")
    with pytest.raises(ValueError, match="expected finite numbers"):
        assign_credit([trajectory("a", 0.0, 1), trajectory("b", 1.0, 1)], [], config)


def test_shuffling_the_batch_changes_no_advantage() -> None:
    rng = random.Random(2)
    members = [trajectory(f"{g}{i}", rng.random(), 2, group=g) for g in "ghi" for i in range(4)]
    for config in (
        GRPO,
        CreditConfig(arm="grpo", baseline="leave-one-out"),
        CreditConfig(arm="grpo", baseline="batch"),
    ):
        straight = {c.trajectory_id: c.advantages for c in assign_credit(members, [], config)}
        for _ in range(5):
            rng.shuffle(members)
            for credit in assign_credit(members, [], config):
                assert credit.advantages == pytest.approx(straight[credit.trajectory_id])


def test_rewards_for_a_value_head_by_hand() -> None:
    """Potential-based step rewards w (Phi_k - Phi_{k-1}), and the return at the last step."""
    config = CreditConfig(estimator="gae", trajectory_weight=0.2, step_weight=0.5)
    (credit,) = assign_credit([trajectory("a", 1.0, steps=3)], [critique("a", [9, 0, 4.5], 4.5)], config)
    # R = .8 + .2 * .5; w (1, -1, .5)
    assert credit.rewards == pytest.approx((0.5, -0.5, 0.25 + 0.9))
    assert credit.advantages == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("arm", ["grpo", "score-reward"])
def test_without_scores_a_value_head_is_given_the_environments_reward(arm: Any) -> None:
    members = [trajectory("a", 1.0), trajectory("b", 0.25), trajectory("c", None)]
    critiques = [critique("a", [9, None], 9), critique("b", [9, 9], 9)]
    credits = assign_credit(members, critiques, CreditConfig(arm=arm, estimator="gae"))
    assert [(c.trajectory_id, c.rewards) for c in credits] == [("a", (0.0, 1.0)), ("b", (0.0, 0.25))]
