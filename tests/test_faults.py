"""What breaks in a rollout or a run, and what is left: no hang, no leak, a typed outcome, a run that goes on."""

from __future__ import annotations

import io
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from rich.console import Console
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.agents.base import Conversation, Lost, Turn
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.calls import Calls, occupied
from ovd_gym.config import LearnerConfig
from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import TeacherError, TrainingStopped
from ovd_gym.learner import trainable_model
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.progress import Display
from ovd_gym.records import Message, Score, Trajectory
from ovd_gym.rollout import Schedule, rollout
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.training import RunResult, train

Adders = Callable[[int], list[ToolEnv]]
Kind = Literal["lock-step", "free-running"]


def adding(messages: Sequence[Message]) -> str:
    """Add once, then answer what came back."""
    if messages[-1].role == "tool":
        return f"answer: {messages[-1].content}"
    return f"add: {messages[-1].content.replace(' +', '')}"


class Hanging:
    """A tool that does not return before it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def __call__(self, text: str) -> str:
        self.let_go.wait(30)
        return "too late"


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    tool = Hanging()
    yield tool
    tool.let_go.set()


def hang(env: ToolEnv, tool: Hanging) -> ToolEnv:
    env._toolbox._tools["add"]._bound = tool
    return env


def until(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` comes true within some seconds."""
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def no_tool_threads() -> bool:
    return not any(thread.name.startswith("tools-") for thread in threading.enumerate())


@pytest.mark.parametrize("kind", ["lock-step", "free-running"])
def test_a_tool_that_hangs_costs_its_episode_alone(adders: Adders, hanging: Hanging, kind: Kind) -> None:
    envs = adders(4)
    hang(envs[1], hanging)
    schedule = Schedule(schedule=kind, tool_timeout_s=0.3, tool_threads=2)
    played = rollout(envs[0].tasks[:4], envs, ScriptedAgent(adding), schedule=schedule)
    assert [t.reward for t in played] == [1.0, None, 1.0, 1.0]
    assert played[1].status == "failed"
    assert played[1].reason == "deadline: an environment call took longer than tool_timeout_s = 0.3 s"
    assert [(step.text, step.observation) for step in played[1].steps] == [("add: 1 2", "")]

    # Its environment is still in that call, so others play in its place ...
    assert occupied(envs[1])
    again = rollout(envs[0].tasks[:4], envs, ScriptedAgent(adding), schedule=schedule)
    assert [t.reward for t in again] == [1.0] * 4
    assert sum(thread.name.startswith("tools-") for thread in threading.enumerate()) >= 1
    assert until(lambda: sum(t.name.startswith("tools-") for t in threading.enumerate()) == 1)  # the one that hangs

    # ... until the call returns: then nothing is left of it, and what it returned is in no record.
    hanging.let_go.set()
    assert until(lambda: not occupied(envs[1]) and no_tool_threads())
    assert played[1].steps[0].observation == ""


def test_when_every_environment_hangs_nothing_waits_for_them(adders: Adders, hanging: Hanging) -> None:
    envs = [hang(env, hanging) for env in adders(2)]
    schedule = Schedule(tool_timeout_s=0.1)
    played = rollout(envs[0].tasks[:3], envs, ScriptedAgent(adding), schedule=schedule)
    assert [t.status for t in played] == ["failed"] * 3
    assert "deadline" in played[0].reason
    assert played[2].reason == "no environment is left: each of them hangs in a call"
    assert played[2].steps == ()


def test_a_reset_that_hangs_fails_its_episode(adders: Adders) -> None:
    let_go = threading.Event()

    class Slow(type(adders(1)[0])):  # type: ignore[misc]
        def start_episode(self, task: Any) -> None:
            let_go.wait(30)

    envs: list[ToolEnv] = [Slow(adders(1)[0].tasks, action_format="line"), *adders(1)]
    first, second = rollout(envs[0].tasks[:2], envs, ScriptedAgent(adding), schedule=Schedule(tool_timeout_s=0.2))
    let_go.set()
    assert (first.status, first.token_ids, second.reward) == ("failed", (), 1.0)


class Silent:
    """An agent that never ends the turns of row 0."""

    def __init__(self) -> None:
        self.ended: list[int] = []

    def open(self, *args: Any) -> Conversation:
        conversation = ScriptedAgent(adding).open(*args)
        advance, end = conversation.advance, conversation.end

        def without_the_first() -> dict[int, Turn | Lost]:
            time.sleep(0.01)
            return {row: turn for row, turn in advance().items() if row != 0}

        def noted(rows: Any) -> None:
            self.ended += rows
            end(rows)

        conversation.advance, conversation.end = without_the_first, noted  # type: ignore[method-assign]
        return conversation


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"turn_timeout_s": 0.2}, "deadline: a turn took longer than turn_timeout_s = 0.2 s"),
        ({"episode_timeout_s": 0.3}, "deadline: it took longer than episode_timeout_s = 0.3 s"),
    ],
)
def test_a_turn_or_an_episode_that_takes_too_long_fails(adders: Adders, limits: dict[str, float], reason: str) -> None:
    envs, agent = adders(3), Silent()
    schedule = Schedule(schedule="free-running", **limits)  # type: ignore[arg-type]
    slow, *others = rollout(envs[0].tasks[:3], envs, agent, schedule=schedule)
    assert (slow.status, slow.reason, slow.reward, slow.steps) == ("failed", reason, None, ())
    assert [t.reward for t in others] == [1.0, 1.0]
    assert sorted(agent.ended) == [0, 1, 2]  # what the row held is freed


def test_what_ends_a_rollout_leaves_nothing_behind(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adders: Adders, hanging: Hanging
) -> None:
    model: Any = trainable_model(tiny, LearnerConfig(lora_rank=2), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    decoder = Decoder(model)
    weight = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight
    before = weight.detach().clone()
    agent = Student(TransformersLM(decoder, tokenizer), make_chat(tokenizer, "plain"), 12)
    envs = [hang(adders(1)[0], hanging), *adders(7)]
    folded = []

    def interrupt(done: int, tokens: int) -> None:
        if tokens > 20:
            folded.append(not torch.equal(weight, before))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(envs[0].tasks[:8], envs, agent, on_turn=interrupt, schedule=Schedule(schedule="free-running"))
    assert folded == [True]  # sampling takes place with the adapters folded into the weights ...
    assert torch.equal(weight, before)  # ... which are as they were
    hanging.let_go.set()
    assert until(no_tool_threads)


def test_a_call_that_was_given_up_in_the_queue_never_runs() -> None:
    calls, let_go, ran = Calls(1), threading.Event(), []

    class Owner:
        pass

    one, other = Owner(), Owner()
    calls.start(0, one, lambda: let_go.wait(30), None)
    calls.start(1, other, lambda: ran.append(1), None)
    calls.leave(1)
    assert (len(calls), occupied(other)) == (1, False)
    let_go.set()
    assert [call.row for call in calls.finished(10)] == [0]
    calls.close()
    assert until(no_tool_threads)
    assert not ran


# A whole run -----------------------------------------------------------------------------------------------


class Fickle(Teacher):
    """Likes short attempts; gone while ``away`` is set."""

    away = False

    def score(self, view: View) -> Score:
        if self.away:
            raise TeacherError("connection refused", "timeout")
        return Score.of(9 - min(9, len(view.attempt) // 4))


def settings(model: Path, run_dir: Path) -> dict[str, Any]:
    return {
        "student.model": str(model),
        "student.chat": "plain",
        "student.max_turn_tokens": 4,
        "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 2},
        "evaluation": {"options": {"task_options": {"size": 2, "seed": 99}}, "episodes": 2, "every": 1},
        "rollout": {"tasks_per_step": 2, "group_size": 3, "max_rows": 4},
        "learner": {"lora_rank": 2, "learning_rate": 0.01},
        "steps": 2,
        "checkpoint_every": 2,
        "run_dir": str(run_dir),
    }


class Watching(Display):
    """Does something when a phase begins, after ``steps`` steps."""

    def __init__(self, phase: str, steps: int, action: Callable[[], None]) -> None:
        super().__init__(2, Console(file=io.StringIO()))
        self._when, self._left, self._act = phase, steps, action

    def step(self, row: Any) -> None:
        self._left -= 1
        super().step(row)

    def phase(self, text: str) -> None:
        if self._left == 0 and text.startswith(self._when):
            self._left = -1
            self._act()
        super().phase(text)


@pytest.fixture(scope="module")
def whole(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    path = tmp_path_factory.mktemp("runs") / "whole"
    return train(teacher=Fickle(), settings=settings(tiny_folder, path), display=Watching("never", 9, lambda: None))


def trajectories(run: Path) -> dict[str, list[str]]:
    return {file.name: file.read_text().splitlines() for file in sorted((run / "trajectories").iterdir())}


@pytest.mark.parametrize("phase", ["rollout", "update", "evaluating"])
def test_ctrl_c_in_any_phase_stops_cleanly_and_the_run_goes_on(
    whole: RunResult, tiny_folder: Path, tmp_path: Path, phase: str
) -> None:
    display = Watching(phase, 1, lambda: signal.raise_signal(signal.SIGINT))
    stopped = train(teacher=Fickle(), settings=settings(tiny_folder, tmp_path / "run"), display=display)
    assert stopped.steps == (2 if phase == "update" else 1)  # an update that has begun is finished
    assert until(no_tool_threads)
    resumed = train(teacher=Fickle(), resume=tmp_path / "run", display=Watching("never", 9, lambda: None))
    assert resumed.steps == 2
    assert trajectories(resumed.path) == trajectories(whole.path)
    assert resumed.evaluations == whole.evaluations


def test_a_teacher_that_is_gone_for_a_while_stops_the_run_which_then_goes_on(
    whole: RunResult, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = Watching("rollout", 1, lambda: monkeypatch.setattr(Fickle, "away", True))
    with pytest.raises(
        TrainingStopped, match=r"100% of the teacher's scores are missing.*timeout \(connection refused"
    ):
        train(teacher=Fickle(), settings=settings(tiny_folder, tmp_path / "run"), display=gone)
    monkeypatch.undo()
    resumed = train(teacher=Fickle(), resume=tmp_path / "run", display=Watching("never", 9, lambda: None))
    assert trajectories(resumed.path) == trajectories(whole.path)


def test_the_schedule_is_the_configurations(tiny_folder: Path, tmp_path: Path, whole: RunResult) -> None:
    given = settings(tiny_folder, tmp_path / "run")
    given["rollout"] |= {"schedule": "free-running", "tool_timeout_s": 60.0, "episode_timeout_s": 600.0}
    run = train(teacher=Fickle(), settings=given | {"steps": 1}, display=Watching("never", 9, lambda: None))
    first = [Trajectory.model_validate_json(line) for line in trajectories(run.path)["step-00001.jsonl"]]
    other = [Trajectory.model_validate_json(line) for line in trajectories(whole.path)["step-00001.jsonl"]]
    assert [t.token_ids for t in first] == [t.token_ids for t in other]
