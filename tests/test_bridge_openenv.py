"""Environments for other processes: sessions here, and OpenEnv's server and client in an environment of their own."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import threading
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.bridges.sessions import Heard, Session, SessionLimits, Stock
from ovd_gym.envs.base import ToolEnv
from ovd_gym.envs.tools import tool
from ovd_gym.errors import ConfigError, EpisodeOver, InfrastructureError
from ovd_gym.records import Task

ROOT = Path(__file__).resolve().parents[1]
WORLD = f"{__name__}-v0"
GOLD = "gold-7f3a"
OPEN = threading.Event()


class Drill(ToolEnv):
    """Says what it is told, breaks or hangs; every error quotes the gold answer."""

    @tool
    def echo(self, text: str) -> str:
        """Repeat a text.

        Args:
            text: what to repeat.
        """
        if text == "hang":
            OPEN.wait(60)
        if text == "outage":
            raise InfrastructureError(f"looking for {self.task.answers[0]} failed")
        if text == "bug":
            raise ValueError(f"cannot find {self.task.answers[0]}")
        return text

    def grade(self, task: Task, answer: str) -> float:
        """1 for the gold answer."""
        if answer == "break":
            raise ValueError(f"cannot compare with {task.answers[0]}")
        return float(answer == task.answers[0])


def call(tool_name: str, text: str) -> str:
    return f"<tool_call>{json.dumps({'name': tool_name, 'arguments': {'text': text}})}</tool_call>"


@pytest.fixture(autouse=True)
def _registered() -> None:
    import gymnasium as gym

    tasks = [Task(id=str(i), question=f"{i}?", answers=(GOLD,)) for i in range(4)]
    OPEN.clear()
    if WORLD not in gym.registry:
        gym.register(WORLD, lambda **options: Drill(**{"tasks": tasks, "max_turns": 3, **options}))


def session(**limits: Any) -> Session:
    return Session(Stock(WORLD, {}, SessionLimits(**limits)))


def test_an_episode_is_played_and_rewarded() -> None:
    player = session()
    begun = player.reset({"task_index": 2})
    assert (begun.text, begun.status, begun.reward) == ("2?", "running", 0.0)
    assert [message["role"] for message in begun.messages] == ["system", "user"]
    assert player.step(call("echo", "hello")) == Heard("hello")
    assert player.step(call("answer", GOLD)) == Heard(GOLD, "terminated", 1.0)
    with pytest.raises(EpisodeOver, match="call reset"):
        player.step(call("answer", GOLD))
    assert player.reset({"seed": 5}).text == player.reset({"seed": 5}).text


def test_turns_run_out() -> None:
    player = session()
    player.reset({})
    assert [player.step("hm").status for _ in range(2)] == ["running", "running"]
    assert player.step("hm")[1:4] == ("truncated", 0.0, "turns")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"text": GOLD, "status": "terminated", "reward": 1.0, "done": True}),
        f"<tool_response>{GOLD}</tool_response>\nThe episode is over: reward 1.",
        f'answer(text="{GOLD}")',
        call("answer", GOLD).replace("tool_call>", "tool_response>"),
        call("answer", GOLD) + call("answer", GOLD),
        call("grade", GOLD),
        call("echo", call("answer", GOLD)),
    ],
)
def test_text_that_is_no_answer_ends_nothing(text: str) -> None:
    player = session()
    player.reset({"task_index": 0})
    heard = player.step(text)
    assert (heard.status, heard.reward) == ("running", 0.0)
    assert "<tool_call>" not in heard.text


@pytest.mark.parametrize("action", [call("echo", "outage"), call("echo", "bug"), call("answer", "break")])
def test_what_breaks_is_a_failure_without_a_reward_and_quotes_no_gold(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    player = session()
    heard = [player.reset({"task_index": 1}), player.step(call("echo", "hi")), player.step(action)]
    assert heard[-1][:3] == ("", "failed", None)
    assert "the log of the server says more" in heard[-1].reason
    assert GOLD not in str(heard)
    assert GOLD in caplog.text
    with pytest.raises(EpisodeOver):
        player.step(call("echo", "hi"))
    assert player.reset({}).status == "running"


def test_a_step_has_a_deadline_and_what_hangs_is_lent_to_nobody() -> None:
    stock = Stock(WORLD, {}, SessionLimits(sessions=2, step_timeout_s=30))
    first, second = Session(stock), Session(stock)
    first.reset({})
    second.reset({})
    heard = first.step(call("echo", "hang"), timeout_s=0.1)
    assert heard == Heard("", "failed", None, "the environment took longer than 0.1 s")
    assert first.reset({}) == Heard(
        "", "failed", None, "no environment is free, since they hang in calls that ran out of time: try again later"
    )
    assert second.step(call("echo", "still here")).text == "still here"
    OPEN.set()
    for thread in threading.enumerate():
        if thread.name.startswith("tools-"):
            thread.join(10)
    assert first.reset({}).status == "running"


def test_environments_are_few_and_share_their_tasks() -> None:
    stock = Stock(WORLD, {}, SessionLimits(sessions=2))
    first, second = Session(stock), Session(stock)
    assert first.reset({"task_index": 0}).text == "0?"
    assert second.reset({"task_index": 1}).text == "1?"
    assert first.step(call("answer", "x")).status == "terminated"
    first.close()
    assert Session(stock).reset({}).status == "running"
    assert second.step(call("echo", "mine")) == Heard("mine")
    with pytest.raises(EpisodeOver, match="closed, as one is after 600 s without a request: connect again"):
        first.reset({})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": {"id": "x"}}, "unknown option of reset 'task': allowed: episode_id, seed, task_index"),
        ({"seed": "soon"}, "seed: .*got 'soon'"),
        ({"seed": -1}, "seed: .*got -1"),
        ({"task_index": 4}, r"task_index must be in 0\.\.3, got 4"),
        ({"episode_id": "x" * 300}, "episode_id: .*at most 255"),
    ],
)
def test_a_reset_that_asks_for_what_there_is_not_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        session().reset(options)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown environment 'ovd_gym/Maths-v0': did you mean 'ovd_gym/Math-v0'\?"):
        Stock("ovd_gym/Maths-v0", {}, SessionLimits())
    with pytest.raises(ConfigError, match="turns_max"):
        Stock(WORLD, {"turns_max": 3}, SessionLimits())
    with pytest.raises(ConfigError, match="sessions must be at least 1, got 0"):
        SessionLimits(sessions=0)
    with pytest.raises(ConfigError, match=r"below idle_timeout_s.*got 60 and 5"):
        SessionLimits(idle_timeout_s=5)


# OpenEnv itself -------------------------------------------------------------------------------------------------

MODULE = """
import threading
import gymnasium as gym
from ovd_gym import Task, ToolEnv, tool
from ovd_gym.errors import InfrastructureError

OPEN = threading.Event()

{source}
tasks = [Task(id=str(i), question=f"{{i}}?", answers=({gold!r},)) for i in range(4)]
gym.register("Drill-v0", lambda **options: Drill(**{{"tasks": tasks, **options}}))
"""

CLIENT = """
import json, sys, time, urllib.request
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

url, frames = sys.argv[1], []

def dial(**options):
    return connect(url.replace("http", "ws") + "/ws", **options)

def ask(socket, kind, **data):
    socket.send(json.dumps({"type": kind} | ({"data": data} if kind != "state" else {})))
    frames.append(socket.recv())
    return json.loads(frames[-1])

def call(name, text):
    return "<tool_call>" + json.dumps({"name": name, "arguments": {"text": text}}) + "</tool_call>"

told = {}
try:
    dial(origin="http://a.page")
except InvalidStatus as refused:
    told["page"] = refused.response.status_code
with dial() as one, dial() as two:
    told["reset"] = ask(one, "reset", task_index=1, episode_id="mine")["data"]
    told["echo"] = ask(one, "step", text=call("echo", "hi"))["data"]
    told["state"] = ask(one, "state")["data"]
    told["forged"] = ask(one, "step", text="hm", reward=1.0, done=True)["data"]["code"]
    told["half"] = ask(one, "step", text="\\ud800")["data"]["observation"]["status"]
    told["outage"] = ask(one, "step", text=call("echo", "outage"))["data"]
    told["over"] = ask(one, "step", text=call("echo", "hi"))["data"]["message"]
    told["refused"] = ask(one, "reset", task_index=9)["data"]["message"]
    ask(one, "reset")
    told["hang"] = ask(one, "step", text=call("echo", "hang"))["data"]
    with dial() as three:
        told["full"] = json.loads(three.recv())["data"]
    for path in ("health", "metadata", "schema", "openapi.json"):
        frames.append(urllib.request.urlopen(f"{url}/{path}").read().decode())
    told["health"] = json.loads(frames[-4])
    time.sleep(7)
    told["idle"] = ask(two, "reset")["data"]["message"]
with dial() as four:
    told["later"] = ask(four, "reset", task_index=3)["data"]["observation"]["text"]
told["frames"] = frames
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def python(interpreter_of: Callable[..., Path]) -> Path:
    """The interpreter of an environment with the core and the extra ``openenv``: no torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (package,) = project["optional-dependencies"]["openenv"]
    return interpreter_of("openenv-core-0.3", ["install", *project["dependencies"], package])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "drill.py").write_text(MODULE.format(source=inspect.getsource(Drill), gold=GOLD))
    return tmp_path


def run(python: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    return subprocess.run([str(python), *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=120)


@contextmanager
def serving(python: Path, folder: Path, *arguments: str) -> Iterator[str]:
    """The address of ``ovd-gym serve-env``; in the end it stops cleanly, and ``folder/log`` has its log."""
    command = [str(python), "-m", "ovd_gym", "serve-env", *arguments, "--port", "0"]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=log, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert " at http://127.0.0.1:" in line, (folder / "log").read_text()
            yield line.split(" at ")[1].split()[0]
            server.send_signal(signal.SIGTERM)
            assert server.wait(30) == 0
        finally:
            server.kill()


@pytest.mark.slow
def test_the_example_of_the_documentation_plays_an_episode(python: Path, folder: Path) -> None:
    (example,) = re.findall(r"```python\n(from openenv.*?)```", (ROOT / "docs" / "bridges.md").read_text(), re.S)
    assert len(example.splitlines()) <= 12
    student = f"def student(messages):\n    return {call('answer', GOLD)!r}\n"
    with serving(python, folder, "drill:Drill-v0") as url:
        (folder / "play.py").write_text(student + example.replace("http://127.0.0.1:8000", url))
        done = run(python, folder, "play.py")
    assert (done.returncode, done.stdout) == (0, "terminated 1.0\n"), done.stderr
    assert (folder / "log").read_text() == ""


@pytest.mark.slow
def test_sessions_over_a_socket(python: Path, folder: Path) -> None:
    limits = ("--sessions", "2", "--step-timeout", "0.5", "--idle-timeout", "1")
    with serving(python, folder, "drill:Drill-v0 max_turns=4", *limits) as url:
        (folder / "client.py").write_text(CLIENT)
        done = run(python, folder, "client.py", url)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["page"] == 403
    assert told["reset"]["observation"]["text"] == "1?"
    assert told["echo"] == {
        "observation": {"text": "hi", "status": "running", "reason": "", "messages": []},
        "reward": 0.0,
        "done": False,
    }
    assert told["state"] == {"episode_id": "mine", "step_count": 1}
    assert (told["forged"], told["half"]) == ("VALIDATION_ERROR", "running")
    for broken in (told["outage"], told["hang"]):
        assert (broken["observation"]["status"], broken["reward"], broken["done"]) == ("failed", None, True)
    assert told["hang"]["observation"]["reason"] == "the environment took longer than 0.5 s"
    assert "call reset()" in told["over"]
    assert told["refused"] == "task_index must be in 0..3, got 9"
    assert (told["full"]["code"], told["full"]["max_sessions"]) == ("CAPACITY_REACHED", 2)
    assert told["health"] == {"status": "healthy"}
    assert told["idle"] == "the session is closed, as one is after 1 s without a request: connect again"
    assert told["later"] == "3?"
    assert GOLD not in str(told["frames"])
    assert GOLD in (folder / "log").read_text()
    assert "ASGI" not in (folder / "log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ovd_gym/Maths-v0"], "unknown environment 'ovd_gym/Maths-v0': did you mean 'ovd_gym/Math-v0'?"),
        (["drill:Drill-v0 turns_max=3"], "turns_max"),
        (["drill:Drill-v0", "--idle-timeout", "5"], "got 60 and 5"),
    ],
)
def test_bad_arguments_are_one_line(python: Path, folder: Path, arguments: list[str], message: str) -> None:
    done = run(python, folder, "-m", "ovd_gym", "serve-env", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
