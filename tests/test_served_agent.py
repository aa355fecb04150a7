"""An agent behind a server: what it is sent, what of its replies is taken, and that a failure is never a reward."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ovd_gym import Task, ToolEnv, load_config, tool
from ovd_gym.agents.served import ServedAgent
from ovd_gym.build import build
from ovd_gym.errors import ConfigError
from ovd_gym.llm.base import GREEDY
from ovd_gym.llm.models import load_tokenizer
from ovd_gym.players import Round
from ovd_gym.rollout import rollout

Answer = tuple[int, Mapping[str, Any]]
TASKS = [Task(id=str(i), question=f"{i} + 1 = ?", answers=(str(i + 1),)) for i in range(6)]


def said(text: str | None, finish: str = "stop", refusal: str | None = None) -> Answer:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    return 200, {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


def adds(asked: Mapping[str, Any]) -> Answer:
    """Looks first, then answers; goes on writing after each call, as if it were the tool and the user as well."""
    question = next(m["content"] for m in asked["messages"] if m["content"].endswith("= ?"))
    heard = asked["messages"][-1]["content"]
    if heard == question:
        return said("look: {}\nit says 7\nanswer: 7")
    return said(f"answer: {int(question.split()[0]) + 1}\nanswer: 0")


class Adding(ToolEnv):
    @tool
    def look(self) -> str:
        """Look at the sheet."""
        return "add one"

    def grade(self, task: Task, answer: str) -> float:
        return float(answer in task.answers)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, answers: Callable[[Mapping[str, Any]], Answer]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[Mapping[str, Any]] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        status, body = self.server.answers(asked)
        sent = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Mapping[str, Any]], Answer]], Server]]:
    servers: list[Server] = []

    def start(answers: Callable[[Mapping[str, Any]], Answer]) -> Server:
        servers.append(Server(answers))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def play(server: Server, tasks: list[Task] = TASKS, **options: Any) -> list[Any]:
    agent = ServedAgent(model="m", base_url=server.url, **options)
    envs = [Adding(TASKS, action_format="line", max_turns=4) for _ in range(3)]
    return rollout(tasks, envs, agent, decoding=GREEDY)


def test_episodes_are_played_and_nothing_after_an_action_counts(serve: Any) -> None:
    server = serve(adds)
    played = play(server)
    assert [t.reward for t in played] == [1.0] * len(TASKS)
    assert [step.text for step in played[2].steps] == ["look: {}\n", "answer: 3\n"]
    assert played[2].steps[0].observation == "add one"
    last = next(a for a in server.asked if len(a["messages"]) > 2 and "2 + 1" in str(a["messages"]))
    assert [m["role"] for m in last["messages"][-3:]] == ["user", "assistant", "user"]
    assert last["messages"][-2]["content"] == "look: {}\n"
    assert (last["temperature"], last["max_tokens"], "top_p" in last) == (0.0, 1024, False)
    assert not any("stop" in asked for asked in server.asked)  # a server would leave it out of the text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((500, {"error": {"message": "on fire"}}), "HTTP 500: on fire, 2 times"),
        ((401, {}), "does not accept a request without a key"),
        ((400, {"error": {"code": "content_filter", "message": "no"}}), "refused"),
        ((200, {"nothing": 1}), "malformed"),
    ],
)
def test_a_turn_that_cannot_be_had_fails_its_episode_without_a_reward(serve: Any, answer: Answer, reason: str) -> None:
    server = serve(lambda asked: answer if "2 + 1" in str(asked["messages"]) else adds(asked))
    played = play(server, max_retries=1)
    assert [t.reward for t in played] == [1.0, 1.0, None, 1.0, 1.0, 1.0]
    assert played[2].status == "failed"
    assert played[2].reason.startswith("the model's server: ")
    assert reason in played[2].reason


def test_a_conversation_too_long_for_the_model_is_truncated(serve: Any) -> None:
    error = {"error": {"code": "context_length_exceeded", "message": "too long"}}
    (played,) = play(serve(lambda asked: (400, error)), TASKS[:1])
    assert (played.status, played.reason, played.reward) == ("truncated", "context", 0.0)


def test_a_refusal_and_silence_are_turns_of_the_model_s_own(serve: Any) -> None:
    (refused,) = play(serve(lambda asked: said(None, refusal="I will not.")), TASKS[:1])
    assert {step.text for step in refused.steps} == {"I will not."}
    (silent,) = play(serve(lambda asked: said("", "length")), TASKS[:1])
    assert (len(silent.steps), silent.status, silent.reward) == (4, "truncated", 0.0)


def test_a_server_that_hangs_is_left_at_the_end(serve: Any) -> None:
    hold = threading.Event()
    server = serve(lambda asked: hold.wait(30) and said("answer: 1\n"))
    (played,) = play(server, TASKS[:1], timeout_s=0.3)
    hold.set()
    assert played.status == "failed"
    assert "no answer within 0.3 s" in played.reason or "did not answer in time" in played.reason


def test_threads_share_the_limit_of_requests(serve: Any) -> None:
    under_way: list[int] = []
    most: list[int] = []

    def slowly(asked: Mapping[str, Any]) -> Answer:
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.02)
        under_way.pop()
        return adds(asked)

    agent = ServedAgent(model="m", base_url=serve(slowly).url, concurrency=2)

    def play_all(_: int) -> list[float | None]:
        envs = [Adding(TASKS, action_format="line", max_turns=4) for _ in range(3)]
        return [t.reward for t in rollout(TASKS, envs, agent, decoding=GREEDY)]

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(play_all, range(3))) == [[1.0] * len(TASKS)] * 3
    assert max(most) == 2


def test_options_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="max_turn_tokens"):
        ServedAgent(model="m", base_url="http://localhost/v1", max_turn_tokens=0)
    with pytest.raises(ConfigError, match="extra_body must not set top_p"):
        ServedAgent(model="m", base_url="http://localhost/v1", extra_body={"top_p": 0.5})
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match="set the environment variable NO_SUCH_KEY"):
        ServedAgent(model="m", base_url="https://localhost/v1", api_key_env="NO_SUCH_KEY")


def test_it_demonstrates_in_the_students_tokens(serve: Any, tiny_folder: Path) -> None:
    server = serve(lambda asked: said("answer: 5\n"))
    options = {"model": "m", "base_url": server.url}
    config = load_config(
        {
            "student": {"model": str(tiny_folder), "chat": "plain", "max_turn_tokens": 8},
            "env": {"options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line"}},
            "credit": {"arm": "imitation"},
            "teacher": None,
            "demonstrator": {"policy": "ovd_gym.agents.served:served", "options": options},
            "rollout": {"tasks_per_step": 2, "group_size": 1},
        }
    )
    parts = build(config)
    try:
        played = parts.players.play(Round(tuple(parts.tasks[:2]), (0,), "shown", 0, player="demonstrator"))
    finally:
        parts.close()
    assert [t.steps[0].text for t in played] == ["answer: 5\n"] * 2
    assert all(step.source == "teacher" for t in played for step in t.steps)
    ids = list(played[0].token_ids[played[0].steps[0].start : played[0].steps[0].end])
    assert load_tokenizer(str(tiny_folder)).decode(ids) == "answer: 5\n"


def test_evaluations_are_charged_for_what_the_server_counts(serve: Any) -> None:
    server = serve(adds)
    agent = ServedAgent(model="m", base_url=server.url, prices={"prompt": 1.0, "completion": 2.0})
    rollout(TASKS[:1], [Adding(TASKS, action_format="line", max_turns=4)], agent, decoding=GREEDY)
    assert (agent.usage.requests, agent.usage.prompt_tokens, agent.usage.completion_tokens) == (2, 20, 10)
    assert agent.usage.cost == pytest.approx(40e-6)
