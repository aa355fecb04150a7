"""The filtering arms: who is rejected, what takes their place, and that nothing else changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
from transformers import PreTrainedTokenizerFast

from ovd_gym.agents.chat import PlainChat
from ovd_gym.agents.retold import Retold
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.demonstration import Selection, select
from ovd_gym.envs.base import ToolEnv
from ovd_gym.players import LocalPlayers, Stage
from ovd_gym.records import Critique, Message, Score, Trajectory
from ovd_gym.rollout import rollout
from ovd_gym.selection import SelectionConfig, cut, rejected, replacement_cap

Arm = Literal["ovd", "ovd-prefix"]
SEED = (0, 1, 0)


def student(messages: Sequence[Message]) -> str:
    """Adds well, blunders, and answers wrongly."""
    return ("add: 1 2", "add: 5 5", "answer: 7")[sum(m.role == "assistant" for m in messages)]


def knows(messages: Sequence[Message]) -> str:
    left, _, right = messages[1].content.partition(" + ")
    return f"answer: {int(left) + int(right)}"


def critique(trajectory: Trajectory, steps: Sequence[float | None], whole: float | None) -> Critique:
    def score(value: float | None) -> Score:
        return Score.invalid("timeout") if value is None else Score.of(value)

    scores = tuple(score(value) for value in steps)
    return Critique(trajectory_id=trajectory.id, teacher="t", steps=scores, trajectory=score(whole))


class Case:
    """Two groups of four, played by the clumsy student, and a way to filter them."""

    def __init__(self, adders: Callable[[int], list[ToolEnv]], tokenizer: PreTrainedTokenizerFast) -> None:
        self.chat = PlainChat(tokenizer)
        self.stage = Stage(lambda: adders(1)[0], adders(8))
        self.student = ScriptedAgent(student, self.chat)
        envs = self.stage.take(8)
        self.trajectories = rollout(adders(1)[0].tasks[:2], envs, self.student, group_size=4, seed=SEED)

    def critiques(self, wholes: Sequence[float | None], steps: Sequence[float] = (8, 2, 7)) -> list[Critique]:
        return [critique(t, steps, whole) for t, whole in zip(self.trajectories, wholes, strict=True)]

    def select(
        self,
        critiques: list[Critique],
        arm: Arm = "ovd",
        policy: Any = knows,
        max_context: int | None = None,
        **options: Any,
    ) -> Selection:
        config = SelectionConfig(**options)
        demonstrator = ScriptedAgent(policy, self.chat)
        players = LocalPlayers(self.student, demonstrator, None, self.stage, max_context=max_context)
        return select(self.trajectories, critiques, config, arm=arm, players=players, seed=SEED, step=0)


@pytest.fixture
def case(adders: Callable[[int], list[ToolEnv]], tokenizer: PreTrainedTokenizerFast) -> Case:
    return Case(adders, tokenizer)


WHOLES = (9, 4, 1, 6, 9, 9, 9, 4.9)


def test_what_is_rejected_gives_way_to_a_demonstration_of_the_same_task(case: Case) -> None:
    selection = case.select(case.critiques(WHOLES))
    changed = [
        i for i, (old, new) in enumerate(zip(case.trajectories, selection.trajectories, strict=True)) if old != new
    ]
    assert changed == [1, 2, 7]
    for i in changed:
        new, old = selection.trajectories[i], case.trajectories[i]
        assert (new.task, new.group_id, new.reward, new.status) == (old.task, old.group_id, 1.0, "terminated")
        assert {step.source for step in new.steps} == {"teacher"}
        assert not any(new.logprobs)
    assert len({t.id for t in [*case.trajectories, *selection.demonstrations]}) == 11
    assert selection.metrics == {"rejected": 3 / 8, "replaced": 3 / 8, "demonstrator_em": 1.0}


def test_the_worst_go_first_and_two_of_a_group_always_stay(case: Case) -> None:
    selection = case.select(case.critiques((3, 1, 2, 0, 9, 9, 9, 9)), theta=10)
    taught = Counter(t.group_id for t in selection.demonstrations)
    assert set(taught.values()) == {2}  # N - 2 in each group
    assert [t.id for t in selection.demonstrations][:2] == [f"{case.trajectories[i].id}/taught" for i in (1, 3)]


def test_append_keeps_what_was_rejected(case: Case) -> None:
    selection = case.select(case.critiques(WHOLES), mode="append", max_replaced=1)
    assert selection.trajectories[:8] == case.trajectories
    assert [t.group_id for t in selection.trajectories[8:]] == ["rollout/0", "rollout/1"]


@pytest.mark.parametrize("arm", ["ovd", "ovd-prefix"])
def test_theta_zero_changes_nothing(case: Case, arm: Arm) -> None:
    selection = case.select(case.critiques((0,) * 8, steps=(0, 0, 0)), arm=arm, theta=0)
    assert selection.trajectories == case.trajectories
    assert all(a is b for a, b in zip(selection.trajectories, case.trajectories, strict=True))


def test_a_missing_score_leaves_its_group_alone(case: Case) -> None:
    critiques = case.critiques((0, 0, None, 0, 9, 0, 9, 9))
    assert rejected(case.trajectories, critiques, SelectionConfig(), "ovd") == [5]


def test_the_demonstrator_goes_on_from_the_first_bad_step(case: Case) -> None:
    selection = case.select(case.critiques((1,) + (9,) * 7, steps=(8, 2, 7)), arm="ovd-prefix", max_replaced=1)
    new, old = selection.trajectories[0], case.trajectories[0]
    kept = old.steps[1].start
    assert new.token_ids[:kept] == old.token_ids[:kept]
    assert new.logprobs[:kept] == old.logprobs[:kept]
    assert new.steps[0] == old.steps[0]
    assert [step.source for step in new.steps] == ["student", "teacher"]
    assert (new.reward, new.answer) == (1.0, "1")
    assert new.steps[1].start == kept


def test_a_cut_at_the_first_step_keeps_the_prompt(case: Case) -> None:
    selection = case.select(case.critiques((1,) + (9,) * 7, steps=(1, 9, 9)), arm="ovd-prefix", max_replaced=1)
    new, old = selection.trajectories[0], case.trajectories[0]
    assert new.token_ids[: new.steps[0].start] == old.token_ids[: old.steps[0].start]
    assert [step.source for step in new.steps] == ["teacher"]


def test_the_cut_moves_back_to_where_the_turn_begins(case: Case) -> None:
    first = case.trajectories[0]
    steps = tuple(
        step.model_copy(update={"start": start, "end": start + 2})
        for step, start in zip(first.steps, (4, 6, 20), strict=True)
    )
    touching = first.model_copy(update={"steps": steps})
    assert cut(touching, critique(first, (8, 2, 7), 1), 5.0) == 0  # steps 0 and 1 are paragraphs of one turn
    assert cut(touching, critique(first, (8, 8, 2), 1), 5.0) == 2


def test_an_episode_that_does_not_unfold_again_stays_as_it_was(case: Case) -> None:
    case.trajectories = [
        t.model_copy(update={"steps": (t.steps[0].model_copy(update={"observation": "4"}), *t.steps[1:])})
        for t in case.trajectories
    ]
    selection = case.select(case.critiques((1,) + (9,) * 7), arm="ovd-prefix", max_replaced=1)
    assert selection.trajectories == case.trajectories
    assert selection.demonstrations == []
    assert selection.metrics["replaced"] == 0.0


@pytest.mark.parametrize(("arm", "begun"), [("ovd", 0), ("ovd-prefix", 1)])
def test_a_demonstration_ends_where_the_students_context_does(case: Case, arm: Arm, begun: int) -> None:
    critiques = case.critiques((1,) + (9,) * 7)
    (whole,) = case.select(critiques, arm, max_replaced=1).demonstrations[:1]
    full = len(whole.token_ids)
    (fits,) = case.select(critiques, arm, max_context=full, max_replaced=1).demonstrations[:1]
    (cut,) = case.select(critiques, arm, max_context=full - 1, max_replaced=1).demonstrations[:1]
    assert fits == whole
    assert (cut.status, cut.reason, cut.reward, len(cut.steps)) == ("truncated", "context", 0.0, begun)
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]


def test_the_cap_falls_to_nothing() -> None:
    config = SelectionConfig(anneal_steps=4)
    assert [replacement_cap(config, 6, step) for step in (0, 1, 2, 3, 4, 9)] == [4, 3, 2, 1, 0, 0]
    assert [replacement_cap(SelectionConfig(max_replaced=9), 4, step) for step in (0, 99)] == [3, 3]


def test_a_small_cap_is_annealed_over_all_of_the_steps() -> None:
    """Rounded down, one demonstration a group would be none from the second step on."""
    one, two = (SelectionConfig(max_replaced=n, anneal_steps=200) for n in (1, 2))
    assert [replacement_cap(one, 8, step) for step in (0, 1, 199, 200)] == [1, 1, 1, 0]
    assert [replacement_cap(two, 8, step) for step in (0, 99, 100, 199, 200)] == [2, 2, 1, 1, 0]


def test_a_demonstrators_words_are_written_in_the_students_tokens(
    adders: Callable[[int], list[ToolEnv]], tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = PlainChat(tokenizer)
    (env,) = adders(1)
    told = Retold(ScriptedAgent(knows), chat)  # speaks UTF-8 bytes of its own
    (mine,) = rollout(env.tasks[:1], [env], told, source="teacher")
    (direct,) = rollout(env.tasks[:1], [env], ScriptedAgent(knows, chat), source="teacher")
    assert mine == direct
