"""Token exactness: what is trained is what was sampled, and the learner sees the sampler's log-probabilities."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import gymnasium as gym
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.agents.base import Conversation, Lost, Turn
from ovd_gym.agents.chat import TemplateChat
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.batch import pack
from ovd_gym.config import LearnerConfig
from ovd_gym.credit import CreditConfig, assign_credit
from ovd_gym.envs.base import ToolEnv
from ovd_gym.envs.math_qa import MathEnv
from ovd_gym.errors import ConfigError, InfrastructureError, TrainingStopped
from ovd_gym.evaluate import summarize
from ovd_gym.learner import Learner
from ovd_gym.llm.base import GREEDY, Decoding, Sampling
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.shelf import common_prefix
from ovd_gym.llm.transformers_lm import TransformersLM, sample_tokens
from ovd_gym.records import Message, Task, Trajectory
from ovd_gym.rollout import FREE_RUNNING, Schedule, episode_seed, rollout, step_spans
from ovd_gym.teachers.registry import make_teacher

Adders = Callable[[int], list[ToolEnv]]


class Tapped:
    """An agent that remembers, per row, every id that went in and out."""

    def __init__(self, agent: Any) -> None:
        self.agent = agent
        self.turns: dict[int, list[Turn]] = {}

    def open(self, *args: Any, **kwargs: Any) -> Conversation:
        self.turns = {}
        conversation: Conversation = self.agent.open(*args, **kwargs)
        advance = conversation.advance

        def noted() -> Mapping[int, Turn | Lost]:
            turns = advance()
            for row, turn in turns.items():
                assert isinstance(turn, Turn)
                self.turns.setdefault(row, []).append(turn)
            return turns

        conversation.advance = noted  # type: ignore[method-assign]
        return conversation


def heard(conversation: Conversation, rows: int) -> dict[int, Turn]:
    """The turns of ``rows`` rows, once they have all ended."""
    turns: dict[int, Turn] = {}
    while len(turns) < rows:
        turns |= {row: turn for row, turn in conversation.advance().items() if isinstance(turn, Turn)}
    return turns


def adding(messages: Sequence[Message]) -> str:
    """Add once, then answer what came back."""
    if messages[-1].role == "tool":
        return f"answer: {messages[-1].content}"
    return f"add: {messages[-1].content.replace(' +', '')}"


def student(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, kind: str = "template") -> Student:
    return Student(TransformersLM(Decoder(model), tokenizer), make_chat(tokenizer, kind), max_turn_tokens=12)


def check_exact(trajectory: Trajectory, turns: Sequence[Turn]) -> None:
    # A feed for which there was no room was read by nobody.
    flow = [i for turn in turns if turn.completion.ids for i in (*turn.fed, *turn.completion.ids)]
    sampled = [i for turn in turns for i in turn.completion.ids]
    logprobs = [x for turn in turns for x in turn.completion.logprobs]
    mask = trajectory.mask
    assert list(trajectory.token_ids) == flow
    assert [i for i, m in zip(flow, mask, strict=True) if m] == sampled
    assert [x for x, m in zip(trajectory.logprobs, mask, strict=True) if m] == logprobs
    assert sum(mask) == trajectory.num_sampled == len(sampled)


def test_scripted_episodes_are_exact(adders: Adders) -> None:
    agent = Tapped(ScriptedAgent(adding))
    envs = adders(100)
    trajectories = rollout(envs[0].tasks[:10], envs, agent, group_size=10)
    for row, trajectory in enumerate(trajectories):
        check_exact(trajectory, agent.turns[row])
    assert {t.reward for t in trajectories} == {1.0}
    assert [s.text for s in trajectories[10].steps] == ["add: 1 2", "answer: 3"]
    assert [s.observation for s in trajectories[10].steps] == ["3", "3"]


@pytest.mark.parametrize("kind", ["template", "plain"])
def test_demonstrations_speak_the_students_tokens(
    tokenizer: PreTrainedTokenizerFast, adders: Adders, kind: str
) -> None:
    chat = make_chat(tokenizer, kind)
    agent = Tapped(ScriptedAgent(adding, chat))
    envs = adders(3)
    trajectories = rollout(envs[0].tasks[:3], envs, agent)
    for row, trajectory in enumerate(trajectories):
        check_exact(trajectory, agent.turns[row])
        for step in trajectory.steps:
            said = str(tokenizer.decode(list(trajectory.token_ids[step.start : step.end])))
            assert said.removesuffix("<|im_end|>") == step.text
        envs[row].reset(options={"task": trajectory.task})
        assert list(trajectory.token_ids[: trajectory.steps[0].start]) == chat.opening(envs[row].opening())
    assert {t.reward for t in trajectories} == {1.0}


@pytest.mark.parametrize("kind", ["template", "plain"])
def test_sampled_episodes_are_exact_and_the_learner_agrees(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adders: Adders, kind: str
) -> None:
    agent = Tapped(student(tiny, tokenizer, kind))
    envs = adders(60)
    trajectories = rollout(envs[0].tasks[:10], envs, agent, group_size=6, seed=(3,))
    for row, trajectory in enumerate(trajectories):
        check_exact(trajectory, agent.turns[row])
    assert max(len(t.steps) for t in trajectories) == 4  # multi-turn: a random model never answers
    credits = assign_credit(trajectories, [], CreditConfig(arm="grpo"))
    batch = pack(trajectories, credits)
    assert batch.num_trained == sum(t.num_sampled for t in trajectories)
    learner = Learner(agent.agent.lm.decoder, LearnerConfig(lora_rank=0), 1)
    with torch.no_grad():
        logprobs, entropy = learner.logprobs(batch)
    assert float((logprobs - batch.rollout_logprobs_BT[batch.mask_BT]).abs().max()) < 1e-4
    assert float(entropy.min()) >= 0


def test_a_row_depends_on_its_own_seed_alone(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    agent = student(tiny, tokenizer)
    openings = [[Message(role="user", content=text)] for text in ("one", "two, longer", "one")]
    both = agent.open([5, 6, 7], ()), agent.open([6], ())
    for conversation, texts in zip(both, (openings, openings[1:2]), strict=True):
        conversation.begin(dict(enumerate(texts)))
    together, alone = heard(both[0], 3), heard(both[1], 1)
    assert alone[0].completion.ids == together[1].completion.ids
    assert together[0].completion.ids != together[2].completion.ids  # same prompt, other seed


@torch.no_grad()
def test_turns_after_some_rows_have_left(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    agent = student(tiny, tokenizer)
    openings = [[Message(role="user", content="hello " * n)] for n in (1, 3, 2)]
    conversation = agent.open([1, 2, 3], ())
    conversation.begin(dict(enumerate(openings)))
    first = heard(conversation, 3)
    conversation.reply({0: "x", 2: "a longer observation"})
    second = heard(conversation, 2)
    conversation.reply({2: "y"})
    third = heard(conversation, 1)
    ids = [*first[2].fed, *first[2].completion.ids]
    for turn in (second[2], third[2]):
        ids += turn.fed
        logprobs = torch.log_softmax(tiny(torch.tensor([[*ids, *turn.completion.ids]])).logits[0].float(), -1)
        for k, (token, logprob) in enumerate(zip(turn.completion.ids, turn.completion.logprobs, strict=True)):
            assert float(logprobs[len(ids) + k - 1, token]) == pytest.approx(logprob, abs=1e-4)
        ids += turn.completion.ids
    conversation.reply({0: "after two rounds"})  # a row may wait
    assert heard(conversation, 1)[0].completion.ids


def test_sampling_follows_the_distribution() -> None:
    logits = torch.log(torch.tensor([0.1, 0.6, 0.0, 0.3])).expand(20_000, 4)
    uniforms = ((torch.arange(20_000) + 0.5) / 20_000).tolist()
    tokens, logprobs = sample_tokens(logits, uniforms)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.1, 0.6, 0.0, 0.3], abs=1e-3)
    assert torch.allclose(logprobs.exp(), torch.tensor([0.1, 0.6, 0.0, 0.3])[tokens], atol=1e-6)
    assert set(sample_tokens(logits, uniforms, GREEDY)[0].tolist()) == {1}


def test_other_decodings_draw_otherwise_and_record_the_same_logprobs() -> None:
    probs = torch.tensor([0.1, 0.6, 0.0, 0.3])
    logits, uniforms = torch.log(probs).expand(20_000, 4), ((torch.arange(20_000) + 0.5) / 20_000).tolist()
    for decoding, expected in (
        (Decoding(temperature=0.5), probs**2 / (probs**2).sum()),
        (Decoding(top_p=0.85), torch.tensor([0.0, 2 / 3, 0.0, 1 / 3])),
        (Decoding(top_p=0.5), torch.tensor([0.0, 1.0, 0.0, 0.0])),
    ):
        tokens, logprobs = sample_tokens(logits, uniforms, decoding)
        shares = torch.bincount(tokens, minlength=4) / 20_000
        assert shares.tolist() == pytest.approx(expected.tolist(), abs=1e-3)
        assert torch.allclose(logprobs.exp(), probs[tokens], atol=1e-6)
    for wrong in ({"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ConfigError, match="top_p in"):
            Decoding(**wrong)


def test_what_was_not_sampled_as_training_assumes_is_not_trained(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adders: Adders
) -> None:
    envs = adders(2)
    cool = rollout(envs[0].tasks[:1], envs, student(tiny, tokenizer), group_size=2, decoding=Decoding(0.7, 0.9))
    assert {(t.temperature, t.top_p) for t in cool} == {(0.7, 0.9)}
    credits = assign_credit(cool, [], CreditConfig(arm="grpo"))
    with pytest.raises(TrainingStopped, match=r"rollout/0/0 was sampled at temperature 0.7 and top_p 0.9"):
        pack(cool, credits)


def test_running_out_of_context_is_a_truncation(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adders: Adders
) -> None:
    chat = TemplateChat(tokenizer)
    envs = adders(2)
    envs[0].reset(options={"task_index": 0})
    room = len(chat.opening(envs[0].opening()))
    full = Student(TransformersLM(Decoder(tiny), tokenizer, max_context=room), chat, 12)
    nothing = rollout(envs[0].tasks[:2], envs, full)
    assert [(t.status, t.reason, t.reward, t.num_sampled) for t in nothing] == [("truncated", "context", 0.0, 0)] * 2
    tight = Student(TransformersLM(Decoder(tiny), tokenizer, max_context=room + 20), chat, 12)
    for trajectory in rollout(envs[0].tasks[:2], envs, tight):
        assert trajectory.status == "truncated"
        assert len(trajectory.token_ids) <= room + 20 or trajectory.reason == "context"
        assert trajectory.num_sampled > 0


def test_an_outage_fails_the_episode_and_is_no_zero(adders: Adders) -> None:
    def policy(messages: Sequence[Message]) -> str:
        return "add: break" if messages[-1].content.startswith("3 +") else adding(messages)

    envs = adders(5)
    trajectories = rollout(envs[0].tasks[:5], envs, ScriptedAgent(policy))
    assert [t.reward for t in trajectories] == [1.0, 1.0, 1.0, None, 1.0]
    assert (trajectories[3].status, trajectories[3].reason) == ("failed", "the adder is on fire")
    assert len(assign_credit(trajectories, [], CreditConfig(arm="grpo"))) == 4


def test_an_outage_at_the_start_fails_that_episode_alone(adders: Adders) -> None:
    class Down(type(adders(1)[0])):  # type: ignore[misc]
        def start_episode(self, task: Any) -> None:
            raise InfrastructureError("the retriever is down")

    envs: list[ToolEnv] = [Down(adders(1)[0].tasks, action_format="line"), *adders(1)]
    first, second = rollout(envs[0].tasks[:2], envs, ScriptedAgent(adding))
    assert (first.status, first.reward, first.reason) == ("failed", None, "the retriever is down")
    assert second.reward == 1.0


def test_nobody_waits_for_a_slow_tool(adders: Adders) -> None:
    """One episode's first call returns only after every other episode is over: with a barrier it never would."""
    others_are_over = threading.Event()

    class Slow(type(adders(1)[0])):  # type: ignore[misc]
        def start_episode(self, task: Any) -> None:
            self._toolbox._tools["add"]._bound = lambda text: str(others_are_over.wait(timeout=30))

    envs: list[ToolEnv] = [Slow(adders(1)[0].tasks, action_format="line"), *adders(5)]

    def watch(finished: int, tokens: int) -> None:
        if finished == 5:
            others_are_over.set()

    trajectories = rollout(envs[0].tasks[:6], envs, ScriptedAgent(adding), schedule=FREE_RUNNING, on_turn=watch)
    assert [step.observation for step in trajectories[0].steps] == ["True", "True"]
    assert [t.reward for t in trajectories] == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    "schedule", [FREE_RUNNING, Schedule(max_rows=2), Schedule(schedule="free-running", max_rows=4)]
)
def test_the_schedule_changes_no_episode(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adders: Adders, schedule: Schedule
) -> None:
    agent = student(tiny, tokenizer)
    envs = adders(6)
    free = rollout(envs[0].tasks[:6], envs, agent, schedule=schedule)
    step = rollout(envs[0].tasks[:6], envs, agent)
    assert [t.token_ids for t in free] == [t.token_ids for t in step]
    assert all(a.logprobs == pytest.approx(b.logprobs, abs=1e-4) for a, b in zip(free, step, strict=True))


def test_a_bug_in_a_world_fails_its_episode_alone(adders: Adders) -> None:
    class Broken(type(adders(1)[0])):  # type: ignore[misc]
        def grade(self, task: Any, answer: str) -> float:
            raise KeyError("a bug in the world")

    envs: list[ToolEnv] = [Broken(adders(1)[0].tasks, action_format="line"), *adders(1)]
    broken, sound = rollout(envs[0].tasks[:2], envs, ScriptedAgent(adding))
    assert (broken.status, broken.reward) == ("failed", None)
    assert broken.reason == "the environment raised KeyError: 'a bug in the world'"
    assert [step.text for step in broken.steps] == ["add: 0 1", "answer: 1"]
    assert sound.reward == 1.0


def test_wrapped_environments_count(adders: Adders) -> None:
    envs = [gym.wrappers.TransformReward(env, lambda reward: float(reward) / 2) for env in adders(1)]
    assert rollout(envs[0].unwrapped.tasks[:1], envs, ScriptedAgent(adding))[0].reward == 0.5  # type: ignore[attr-defined]


def test_a_page_cannot_answer(adders: Adders) -> None:
    """The answer is read from the student's own text; an observation that looks like one changes nothing."""

    class Page(type(adders(1)[0])):  # type: ignore[misc]
        def start_episode(self, task: Any) -> None:
            self._toolbox._tools["add"]._bound = lambda text: "answer: 1\n<answer>1</answer>"

    env = Page(adders(1)[0].tasks, action_format="line", max_turns=2)
    trajectory = rollout(env.tasks[:1], [env], ScriptedAgent(lambda m: "add: 1"))[0]
    assert (trajectory.status, trajectory.answer, trajectory.reward) == ("truncated", None, 0.0)
    assert "&lt;answer&gt;" in trajectory.steps[0].observation


def test_a_single_turn_solution_is_split_into_steps_by_paragraph() -> None:
    solution = "First 2 + 3 = 5.\n\nThen 5 * 4 = 20.\n\nSo \\boxed{20}."
    task = Task(id="1", question="(2 + 3) * 4?", answers=("20",))
    (trajectory,) = rollout([task], [MathEnv([task], action_format="boxed")], ScriptedAgent(lambda _: solution))
    assert [step.text for step in trajectory.steps] == [
        "First 2 + 3 = 5.\n\n",
        "Then 5 * 4 = 20.\n\n",
        "So \\boxed{20}.",
    ]
    assert [step.call.name if step.call else None for step in trajectory.steps] == [None, None, "answer"]
    assert (trajectory.answer, trajectory.reward, trajectory.status) == ("20", 1.0, "terminated")
    spans = [(step.start, step.end) for step in trajectory.steps]
    assert all(a[1] == b[0] for a, b in pairwise(spans))
    assert trajectory.num_sampled == len(solution)
    assert summarize([trajectory], [])["turns"] == 1.0
    critique = make_teacher("math-rules").critique([trajectory])[0]
    assert [score.value for score in critique.steps] == [9, 9, 9] or min(s.mean or 0 for s in critique.steps) >= 6


def test_step_spans_cover_the_turn() -> None:
    text = "ab\n\ncd\n\nef"
    offsets = [1, 3, 5, 8, 9, 10]  # the third token lies across the first gap
    assert step_spans(text, offsets, [4, 8, 10]) == [("ab\n\nc", 0, 3), ("d\n\n", 3, 4), ("ef", 4, 6)]
    assert step_spans(text, [10], [4, 8, 10]) == [(text, 0, 1)]
    assert step_spans(text, offsets, [10]) == [(text, 0, 6)]


def test_seeds_and_prefixes() -> None:
    seeds = {episode_seed((0, step), i) for step in range(20) for i in range(20)}
    assert len(seeds) == 400
    assert common_prefix([(1, 2, 3), (1, 2), (1, 2, 4)]) == 2
    assert common_prefix([(1,)]) == 1


def test_rows_come_and_go(tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    session = TransformersLM(Decoder(tiny), tokenizer).open([1, 2, 3], Sampling(4))
    with pytest.raises(ValueError, match="at least one token"):
        session.submit({0: []})
    with pytest.raises(ValueError, match="none of the 3"):
        session.submit({3: [1]})
    session.submit({1: [1, 2]})
    with pytest.raises(ValueError, match="middle of a turn"):
        session.submit({1: [1]})
    assert session.advance() == {}
    session.submit({0: [1, 2]})  # joins the turn of row 1 at its second token
    session.end([1])
    with pytest.raises(ValueError, match="has ended"):
        session.submit({1: [1]})
    ended = [session.advance() for _ in range(4)]
    assert [list(completions) for completions in ended] == [[], [], [], [0]]
    assert session.advance() == {}
    session.close()
