"""Values of steps from the environment alone: exact shares where the continuations are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.agents.base import Lost, Turn
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.envs.base import ToolEnv
from ovd_gym.envs.math_qa import MathEnv
from ovd_gym.errors import ConfigError
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.records import Message, Task, Trajectory
from ovd_gym.rollout import rollout
from ovd_gym.values import step_values

TASK = Task(id="t", question="What is 2 * 3 + 4?", answers=("10",))


def worlds(count: int, **options: Any) -> list[ToolEnv]:
    return [MathEnv([TASK], **(options or {"action_format": "line", "max_turns": 4})) for _ in range(count)]


def played(*turns: str, **options: Any) -> Trajectory:
    """The episode of an agent that says ``turns``."""

    def policy(messages: Sequence[Message]) -> str:
        return turns[sum(message.role == "assistant" for message in messages)]

    (trajectory,) = rollout([TASK], worlds(1, **options), ScriptedAgent(policy))
    return trajectory


def test_a_value_is_the_share_of_continuations_that_succeed() -> None:
    trajectory = played("python: 2 * 3", "python: 6 + 5", "answer: 11")
    answers = cycle(["answer: 10", "answer: 11", "answer: 12", "answer: 10"])
    (values,) = step_values([trajectory], worlds(2), ScriptedAgent(lambda _: next(answers)), continuations=4)
    assert values.values == (0.5, 0.5, 0.0)
    assert values.continuations == (4, 4, 0)
    assert values.trajectory_id == trajectory.id


def test_the_agent_goes_on_from_what_the_episode_has_read() -> None:
    seen: list[list[str]] = []

    def policy(messages: Sequence[Message]) -> str:
        seen.append([message.content for message in messages[2:]])
        return f"answer: {messages[-1].content}"  # right only where the tool has said 10

    trajectory = played("python: 2 * 3", "python: 6 + 4", "answer: 1")
    (values,) = step_values([trajectory], worlds(1), ScriptedAgent(policy), continuations=1)
    assert seen == [["python: 2 * 3", "6"], ["python: 2 * 3", "6", "python: 6 + 4", "10"]]
    assert values.values == (0.0, 1.0, 0.0)


def test_turns_that_were_used_are_gone() -> None:
    trajectory = played("python: 2", "python: 3", "python: 4", action_format="line", max_turns=3)
    slow = ScriptedAgent(lambda messages: "answer: 10" if len(messages) == 6 else "python: 10")
    (values,) = step_values([trajectory], worlds(3, action_format="line", max_turns=3), slow, continuations=1)
    assert trajectory.status == "truncated"
    assert values.values == (1.0, 1.0, 0.0)
    hasty = ScriptedAgent(lambda messages: "answer: 10" if len(messages) > 6 else "python: 10")
    assert step_values([trajectory], worlds(3, action_format="line", max_turns=3), hasty, continuations=1)[
        0
    ].values == (0.0, 0.0, 0.0)


def test_paragraphs_of_one_turn_have_no_state_to_go_on_from() -> None:
    trajectory = played("First, 2 * 3 = 6.\n\nThen 6 + 4 = 10.\n\n\\boxed{10}", action_format="boxed")
    (values,) = step_values([trajectory], worlds(1, action_format="boxed"), ScriptedAgent(lambda _: ""))
    assert values.values == (None, None, 1.0)
    assert values.continuations == (0, 0, 0)


def test_what_cannot_be_brought_back_has_no_value() -> None:
    trajectory = played("python: 2 * 3", "answer: 10")
    step = trajectory.steps[0].model_copy(update={"observation": "7"})
    changed = trajectory.model_copy(update={"steps": (step, *trajectory.steps[1:])})
    (values,) = step_values([changed], worlds(2), ScriptedAgent(lambda _: "answer: 10"), continuations=2)
    assert values.values == (None, 1.0)
    assert "recorded '7', replayed '6'" in values.reason


def test_an_outage_is_not_a_zero(adders: Callable[[int], list[ToolEnv]]) -> None:
    task = Task(id="0", question="0 + 1", answers=("1",))
    calls = cycle(["add: break", "answer: 1"])
    start = ScriptedAgent(lambda messages: "add: 0 1" if len(messages) == 2 else "answer: 1")
    (trajectory,) = rollout([task], adders(1), start)
    (values,) = step_values([trajectory], adders(2), ScriptedAgent(lambda _: next(calls)), continuations=2)
    assert values.values == (1.0, 1.0)
    assert values.continuations == (1, 0)
    assert values.reason == "the adder is on fire"
    (failed,) = rollout([task], adders(1), ScriptedAgent(lambda _: "add: break"))
    (values,) = step_values([failed], adders(1), start)
    assert (values.values, values.reason) == ((None,), "the adder is on fire")


def test_a_student_draws_anew_and_repeatably(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    chat = make_chat(tokenizer, "template")
    student = Student(TransformersLM(Decoder(tiny), tokenizer), chat, max_turn_tokens=3)
    said: list[str] = []

    class Heard:
        def open(self, *args: Any) -> Any:
            conversation = student.open(*args)
            advance = conversation.advance

            def noted() -> Mapping[int, Turn | Lost]:
                turns = advance()
                said.extend(turn.completion.text for turn in turns.values() if isinstance(turn, Turn))
                return turns

            conversation.advance = noted  # type: ignore[method-assign]
            return conversation

    first = played("python: 2", "answer: 1", action_format="line", max_turns=2)
    for _ in range(2):
        step_values([first], worlds(4, action_format="line", max_turns=2), Heard(), continuations=4, seed=(7,))
    assert said[:4] == said[4:]
    assert len(set(said[:4])) > 1


def test_nothing_to_play_with_is_refused() -> None:
    agent = ScriptedAgent(lambda _: "answer: 1")
    with pytest.raises(ConfigError, match="got 0 and 8"):
        step_values([], [], agent)
    with pytest.raises(ConfigError, match="got 1 and 0"):
        step_values([], worlds(1), agent, continuations=0)
    assert step_values([], worlds(1), agent) == []
