"""Choices from a server: what is asked and read, and every way in which a server can fail, met over real sockets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import math
import socket
import struct
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ovd_gym.errors import ConfigError
from ovd_gym.llm import reliability, served_chat
from ovd_gym.llm.choice import ChoiceModel, Prompt, Reading, make_choice_model
from ovd_gym.llm.choice_served import ServedChoices
from ovd_gym.llm.reliability import Breaker, Failure
from ovd_gym.llm.replies import parse_choice
from ovd_gym.progress import Display
from ovd_gym.records import Critique, load_jsonl
from ovd_gym.training import train

KEY = "sk-s3cr3t/0123456789abcdef"
DIGITS = tuple("0123456789")
PROMPT = Prompt(system="You grade.", user="What is 1 + 1? The agent says 2.", prefill="SCORE: ")
LIKELY = {" 7": 0.5, "7": 0.1, "2": 0.2, "10": 0.1}


class Answer(NamedTuple):
    """What a server does with one request."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    fault: str = ""
    """``hang``, ``drip``, ``close``, ``reset`` or ``cut``."""
    seconds: float = 0.0
    """Waits this long first."""


def tokens(*words: str, at: int = 0, chances: Mapping[str, float] = LIKELY) -> dict[str, Any]:
    """Log-probabilities of a reply of ``words``; ``chances`` are those at the place ``at``."""
    listed = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in chances.items()]
    rows = [{"token": word, "logprob": -0.1, "top_logprobs": []} for word in words]
    rows[at] = {"token": words[at], "logprob": math.log(chances.get(words[at], 1e-9)), "top_logprobs": listed}
    return {"content": rows}


def reply(
    text: str | None = " 7", logprobs: Any = None, finish: str = "stop", refusal: str | None = None
) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}


def completion(*replies: dict[str, Any], usage: Any = None, **more: Any) -> Answer:
    counted = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110} if usage is None else usage
    body = {"id": "c", "object": "chat.completion", "model": "m", "choices": list(replies), "usage": counted, **more}
    return Answer(body=json.dumps(body).encode())


GOOD = completion(reply(" 7", tokens(" 7")))
DOWN = Answer(500, b'{"error": {"message": "on fire"}}')


class ChatServer(ThreadingHTTPServer):
    """Gives its answers in turn, the last one for ever, and remembers what it was asked."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.answers: list[Answer] = [GOOD]
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.busy = self.most = 0
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def give(self, *answers: Answer) -> None:
        self.answers = list(answers)

    def next(self, asked: dict[str, Any], headers: dict[str, str]) -> Answer:
        with self.lock:
            self.asked.append(asked)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self.busy += 1
            self.most = max(self.most, self.busy)
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ChatServer
    protocol_version = "HTTP/1.1"
    wbufsize = 65_536

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = self.server.next(json.loads(raw), {name.lower(): value for name, value in self.headers.items()})
        try:
            time.sleep(answer.seconds)
            self._answer(answer)
        finally:
            with self.server.lock:
                self.server.busy -= 1

    def _answer(self, answer: Answer) -> None:
        self.close_connection = bool(answer.fault)
        if answer.fault == "hang":
            self.server.released.wait(30)
        if answer.fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if answer.fault in ("hang", "close", "reset"):
            return
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json"} | dict(answer.headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if answer.fault == "drip":
            for i in range(len(answer.body)):
                self.wfile.write(answer.body[i : i + 1])
                self.wfile.flush()
                if self.server.released.wait(0.05):
                    return
        self.wfile.write(answer.body[: len(answer.body) // 2] if answer.fault == "cut" else answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the client gave up waiting
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[ChatServer]:
    fake = ChatServer()
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(reliability, "BACKOFF_S", 0.01)


def served(server: ChatServer, **options: Any) -> ServedChoices:
    model = make_choice_model({"engine": "openai", "model": "m", "base_url": server.url, "continues": True} | options)
    assert isinstance(model, ServedChoices)
    return model


def one(model: ChoiceModel, prompt: Prompt = PROMPT, choices: Sequence[str] = DIGITS) -> Reading:
    (reading,) = model.read([prompt], choices)
    assert (reading.choice is None) == (reading.status != "ok")
    return reading


# What is asked, and what is read --------------------------------------------------------------------------------


def test_a_continued_reply_is_read_at_its_first_token(server: ChatServer) -> None:
    reading = one(served(server))
    assert reading.choice == 7
    assert reading.mass == pytest.approx(0.8)  # " 7" and "7" are one choice, "10" is none
    assert reading.probs is not None
    assert reading.probs[7] == pytest.approx(0.75)
    assert reading.probs[2] == pytest.approx(0.25)
    asked = server.asked[0]
    assert [message["role"] for message in asked["messages"]] == ["system", "user", "assistant"]
    assert asked["messages"][2]["content"] == "SCORE: "
    assert (asked["continue_final_message"], asked["add_generation_prompt"]) == (True, False)
    assert (asked["logprobs"], asked["top_logprobs"], asked["max_tokens"]) == (True, 20, 2)


def test_a_blank_of_its_own_is_stepped_over_and_words_take_theirs_along(server: ChatServer) -> None:
    server.give(completion(reply(" 7", tokens(" ", "7", at=1))))
    assert one(served(server)).choice == 7
    server.give(completion(reply(" yes", tokens(" yes", chances={" yes": 0.6, " no": 0.3, "no": 0.05, " y": 0.05}))))
    reading = one(served(server), choices=("yes", "no"))
    assert reading.probs == pytest.approx((0.65, 0.35))
    assert server.asked[-1]["messages"][2]["content"] == "SCORE:"


def test_elsewhere_the_model_writes_the_line_and_the_verdict_is_found_in_it(server: ChatServer) -> None:
    words = ("Reasons", " 9", ".\n", "SCORE", ":", " 7", "<|end|>")
    server.give(completion(reply("Reasons 9.\nSCORE: 7", tokens(*words, at=5))))
    reading = one(served(server, continues=False))
    assert (reading.choice, reading.text) == (7, "Reasons 9.")
    assert reading.mass == pytest.approx(0.8)
    assert [message["role"] for message in server.asked[0]["messages"]] == ["system", "user"]
    assert "continue_final_message" not in server.asked[0]
    server.give(completion(reply("SCORE: 7", tokens("SCORE", ": 7", at=1))))
    assert one(served(server, continues=False)).status == "malformed"


def test_words_are_read_and_samples_averaged(server: ChatServer) -> None:
    server.give(completion(reply("Well.\nSCORE: 7\n")))
    reading = one(served(server, mode="text", continues=False))
    assert (reading.choice, reading.probs, reading.mass, reading.text) == (7, None, None, "Well.")
    assert "logprobs" not in server.asked[0]
    assert server.asked[0]["temperature"] == 0
    server.give(completion(*(reply(text) for text in (" 7", "7", " 2", "7/9"))))
    model = served(server, mode="text", samples=4)
    model.seed(5)
    reading = one(model)
    assert reading.choice == 7
    assert reading.mass == 0.75
    assert reading.probs is not None
    assert (reading.probs[7], reading.probs[2]) == pytest.approx((2 / 3, 1 / 3))
    assert (server.asked[1]["n"], server.asked[1]["temperature"], server.asked[1]["seed"]) == (4, 1.0, 5)
    server.give(completion(*(reply(text) for text in (" 7", "hm", "10", "7/9"))))
    reading = one(model)
    assert (reading.status, reading.mass) == ("low_mass", 0.25)
    assert "only 1 of 4 samples" in reading.text


def test_reasons_come_before_the_prefill_so_that_is_not_begun(server: ChatServer) -> None:
    server.give(completion(reply("It adds up.\nSCORE: 7")))
    reading = one(served(server, mode="text"), PROMPT.model_copy(update={"explained": True}))
    assert (reading.choice, reading.text) == (7, "It adds up.")
    assert len(server.asked[0]["messages"]) == 2
    assert server.asked[0]["max_tokens"] == 512


def test_structured_replies_have_no_mass(server: ChatServer) -> None:
    model = served(server, mode="structured")
    reading = one(model)
    assert reading.mass is None
    assert reading.probs is not None
    assert reading.probs[7] == pytest.approx(0.75)
    assert server.asked[0]["structured_outputs"] == {"choice": list(DIGITS)}
    server.give(completion(reply("SCORE: 7")))
    bare = served(server, mode="structured", continues=False, top_logprobs=0)
    reading = one(bare)
    assert (reading.choice, reading.probs, bare.reads_logits) == (7, None, False)
    assert server.asked[1]["structured_outputs"]["choice"][3] == "SCORE: 3"
    assert "logprobs" not in server.asked[1]


def test_readings_keep_the_order_of_the_prompts(server: ChatServer) -> None:
    prompts = [PROMPT.model_copy(update={"user": str(i)}) for i in range(10)]
    next_ = server.next

    def echo(asked: dict[str, Any], headers: dict[str, str]) -> Answer:
        next_(asked, headers)
        digit = asked["messages"][1]["content"]
        return completion(reply(digit, tokens(digit, chances={digit: 0.9})))._replace(seconds=0.05 * (int(digit) % 3))

    server.next = echo  # type: ignore[method-assign]
    assert [reading.choice for reading in served(server).read(prompts, DIGITS)] == list(range(10))


def test_the_tokens_and_their_price_are_the_servers(server: ChatServer) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 60}}
    server.give(completion(reply(" 7", tokens(" 7")), usage=usage))
    model = served(server, prices={"prompt": 10, "completion": 100, "cached": 1})
    model.read([PROMPT, PROMPT], DIGITS)
    used = model.usage()
    assert (used.requests, used.prompt_tokens, used.completion_tokens) == (2, 80, 20)
    assert used.cost == pytest.approx(2 * (40 * 10 + 60 * 1 + 10 * 100) / 1e6)


@given(st.text(alphabet="SCORE: 0179/()\n", max_size=24))
def test_only_the_exact_last_line_is_a_choice(text: str) -> None:
    index, _ = parse_choice(text, "SCORE: ", DIGITS)
    last = text.rstrip().split("\n")[-1]
    assert (index is not None) == (len(last) == 8 and last.startswith("SCORE: ") and last[7] in DIGITS)
    assert index is None or last.endswith(str(index))


# Faults: each has its status, none a number ----------------------------------------------------------------------

JSON = completion(reply(" 7", tokens(" 7"))).body
TEXT: dict[str, Any] = {"mode": "text", "continues": False}
WRITES: dict[str, Any] = {"continues": False}
LONG = b'{"error": {"message": "This model\'s maximum context length is 2048 tokens.", "code": 400}}'
FILTERED = b'{"error": {"message": "blocked", "code": "content_filter"}}'
QUOTA = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'


@pytest.mark.parametrize(
    ("answer", "options", "status", "words", "requests"),
    [
        (Answer(500, b"{}"), {}, "error", "HTTP 500, 3 times", 3),
        (Answer(503, b"<html>busy"), {}, "error", "HTTP 503, 3 times", 3),
        (Answer(429, b'{"error": {"message": "slow down"}}'), {}, "error", "HTTP 429: slow down, 3 times", 3),
        (Answer(500, b'{"error": {"message": "\\ud800 down"}}'), {}, "error", "HTTP 500: ? down, 3 times", 3),
        (Answer(429, QUOTA), {}, "over_budget", "exceeded your current quota", 1),
        (Answer(401, b'{"error": {"message": "bad key"}}'), {}, "error", "does not accept a request without a key", 1),
        (Answer(404, b'{"error": {"message": "no model m"}}'), {}, "error", "HTTP 404: no model m", 1),
        (Answer(400, b'{"error": {"message": "top_logprobs"}}'), {}, "error", "HTTP 400: top_logprobs", 1),
        (Answer(400, LONG), {}, "over_budget", "maximum context length", 1),
        (Answer(400, FILTERED), {}, "refused", "blocked", 1),
        (Answer(200, JSON[:100]), {}, "malformed", "no chat completion", 3),
        (Answer(200, b""), {}, "malformed", "no chat completion", 3),
        (Answer(200, b"<html>hello", {"Content-Type": "text/html"}), {}, "malformed", "no chat completion", 3),
        (Answer(200, b"[1]"), {}, "malformed", "no chat completion", 3),
        (Answer(200, b"{}"), {}, "malformed", "choices: Field required", 3),
        (Answer(200, b"\xff\xfe{", {"Content-Encoding": "gzip"}), {}, "error", "no connection", 3),
        (Answer(200, JSON, fault="cut"), {}, "error", "no connection", 3),
        (Answer(fault="close"), {}, "error", "no connection", 3),
        (Answer(fault="reset"), {}, "error", "no connection", 3),
        (completion(), {}, "malformed", "choices", 3),
        (completion(reply(), reply()), {}, "malformed", "asked for 1 replies, got 2", 1),
        (completion(reply("SCORE: 7")), {"mode": "text", "samples": 3}, "malformed", "asked for 3 replies, got 1", 1),
        (completion(reply(" 7")), {}, "malformed", "no log-probabilities", 1),
        (completion(reply(" 7", {"content": None})), {}, "malformed", "no log-probabilities", 1),
        (completion(reply("SCORE: 7", tokens("other", "7"))), WRITES, "malformed", "do not show where", 1),
        (completion(reply("  ", tokens(" ", " "))), {}, "malformed", "do not show where", 1),
        (completion(reply(" 7", tokens(" 7", chances={" 7": 2.0}))), {}, "malformed", "less than or equal to 0", 3),
        (completion(reply("10", tokens("10", chances={"10": 0.9, "7": 0.05}))), {}, "low_mass", "0.05 together", 1),
        (completion(reply("SC", tokens("SC", chances={"SC": 0.9}))), {}, "low_mass", "none of the choices", 1),
        (completion(reply("7/9", tokens("7", "/9"))), {"mode": "structured"}, "malformed", "allow only choices", 1),
        (completion(reply("SCORE: 10")), TEXT, "malformed", "got 'SCORE: 10'", 1),
        (completion(reply("SCORE: 7/9")), TEXT, "malformed", "got 'SCORE: 7/9'", 1),
        (completion(reply("SCORE: 7 (good)")), TEXT, "malformed", "expected the last line", 1),
        (completion(reply("I would give it a seven.")), TEXT, "malformed", "a seven", 1),
        (completion(reply("SCORE: 7\nor so", finish="length")), TEXT, "malformed", "raise max_tokens", 1),
        (completion(reply("")), TEXT, "malformed", "got ''", 1),
        (completion(reply(None)), TEXT, "malformed", "got ''", 1),
        (completion(reply("SCORE: 7", finish="content_filter")), TEXT, "refused", "content filter", 1),
        (completion(reply(None, refusal="I cannot\ngrade this")), TEXT, "refused", "I cannot grade this", 1),
        (completion(reply("SCORE: \ud800")), TEXT, "malformed", "no chat completion", 3),
    ],
)
def test_a_fault_is_a_status(
    server: ChatServer, answer: Answer, options: dict[str, Any], status: str, words: str, requests: int
) -> None:
    server.give(answer)
    model = served(server, max_retries=2, **options)
    reading = one(model)
    assert (reading.status, reading.choice) == (status, None)
    assert words in reading.text
    assert "\n" not in reading.text
    assert (len(server.asked), model.usage().requests) == (requests, requests)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_the_deadline_holds_whatever_the_server_does(server: ChatServer, fault: str) -> None:
    server.give(GOOD._replace(fault=fault))
    began = time.monotonic()
    readings = served(server, timeout_s=0.4, concurrency=2, breaker_failures=9).read([PROMPT] * 4, DIGITS)
    assert [reading.status for reading in readings] == ["timeout"] * 4
    assert 0.7 < time.monotonic() - began < 2.5


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize(("packed", "most"), [(False, 20_000_000), (True, 250_000_000)])
def test_an_answer_without_end_is_not_kept(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, packed: bool, most: int, status: int
) -> None:
    monkeypatch.setattr(served_chat, "MAX_BYTES", 100_000)
    pack = zlib.compressobj(wbits=31)
    bomb = b"".join(pack.compress(b" " * 10_000_000) for _ in range(60)) + pack.flush()
    server.give(Answer(status, bomb, {"Content-Encoding": "gzip"}) if packed else Answer(status, b" " * 50_000_000))
    tracemalloc.start()
    reading = one(served(server, max_retries=0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reading.status, reading.text) == ("malformed", "an answer of more than 100000 bytes")
    assert peak < most


@pytest.mark.parametrize("key", ["sk-a\nX-Evil: 1", "sk-schlüssel"])
def test_a_key_that_no_header_can_carry(server: ChatServer, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("TEACHER_KEY", key)
    with pytest.raises(ConfigError, match="no header can carry") as caught:
        served(server, api_key_env="TEACHER_KEY")
    assert key not in str(caught.value)


def test_a_server_that_is_not_there_is_an_error(server: ChatServer) -> None:
    model = served(server, base_url="http://127.0.0.1:9/v1", max_retries=1)
    reading = one(model)
    assert (reading.status, model.usage().requests) == ("error", 2)
    assert "no connection to 127.0.0.1:9" in reading.text


# Retries, breaker, budget, concurrency ---------------------------------------------------------------------------


def test_what_passes_is_waited_out(server: ChatServer) -> None:
    server.give(DOWN, Answer(429, b"{}"), Answer(200, JSON[:50]), Answer(fault="reset"), GOOD)
    model = served(server)
    assert one(model).choice == 7
    assert model.usage().requests == 5


def test_the_server_says_how_long_to_wait(server: ChatServer) -> None:
    server.give(Answer(429, b"{}", {"Retry-After": "1"}), GOOD)
    assert one(served(server)).choice == 7
    assert server.times[1] - server.times[0] >= 1.0
    server.give(Answer(429, b"{}", {"Retry-After": "3600"}), GOOD)
    began = time.monotonic()
    assert one(served(server, timeout_s=5)).status == "error"
    assert time.monotonic() - began < 2.5


def test_retry_after_is_seconds_or_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert served_chat._seconds(date) == pytest.approx(60, abs=2)
    assert [served_chat._seconds(text) for text in ("7", "", "soon", "-3", "²")] == [7, 0, 0, 0, 0]


def test_the_breaker_opens_and_recovers(server: ChatServer) -> None:
    server.give(Answer(401))
    model = served(server, breaker_failures=2, breaker_cooldown_s=0.5, concurrency=1)
    readings = model.read([PROMPT] * 5, DIGITS)
    assert {reading.status for reading in readings} == {"error"}
    assert len(server.asked) == 2
    assert "not asked: 2 requests in a row failed, the last: HTTP 401" in readings[-1].text
    server.give(GOOD)
    assert one(model).status == "error"
    time.sleep(0.5)
    assert [reading.choice for reading in model.read([PROMPT] * 3, DIGITS)] == [7, 7, 7]


def test_the_breaker_counts_outages_in_a_row() -> None:
    now = 0.0
    breaker = Breaker(2, 10.0, clock=lambda: now)
    outage, own_fault = Failure("error", "down", outage=True), Failure("error", "HTTP 400")
    for outcome in (outage, own_fault, outage, "an answer", outage):
        breaker.note(outcome)
        assert breaker.refusal() is None
    breaker.note(outage)
    assert breaker.refusal() is not None
    now = 10.0
    assert breaker.refusal() is None
    breaker.note(outage)  # one is enough after the cool-down
    assert breaker.refusal() is not None
    breaker.note("an answer that was still under way")
    assert breaker.refusal() is None


def test_the_budget_stops(server: ChatServer) -> None:
    model = served(server, max_tokens_total=250, concurrency=1)
    readings = model.read([PROMPT] * 5, DIGITS)
    assert [reading.status for reading in readings] == ["ok", "ok", "ok", "over_budget", "over_budget"]
    assert "330 tokens used, max_tokens_total is 250" in readings[-1].text
    assert len(server.asked) == 3
    prices = {"prompt": 1000, "completion": 0}
    model = served(server, max_cost=0.2, prices=prices, concurrency=1)
    assert [reading.status for reading in model.read([PROMPT] * 3, DIGITS)] == ["ok", "ok", "over_budget"]
    server.give(completion(reply(" 7", tokens(" 7")), usage={}))
    assert one(model).status == "over_budget"
    server.give(Answer(200, JSON.replace(b'"usage"', b'"used"')))
    assert "no budget can be kept" in one(served(server, max_tokens_total=5)).text
    assert one(served(server)).choice == 7


def test_concurrency_is_bounded_over_all_threads(server: ChatServer) -> None:
    server.give(GOOD._replace(seconds=0.1))
    model = served(server, concurrency=3)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: model.read([PROMPT] * 4, DIGITS), range(4)))
    assert [[reading.choice for reading in readings] for readings in results] == [[7] * 4] * 4
    assert server.most == 3
    assert model.usage().requests == 16


def test_reading_works_inside_a_running_event_loop(server: ChatServer) -> None:
    async def inside() -> list[Reading]:
        return served(server).read([PROMPT] * 2, DIGITS)

    assert [reading.choice for reading in asyncio.run(inside())] == [7, 7]


def test_a_server_that_restarts_costs_no_view(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "BACKOFF_S", 0.2)
    server.give(GOOD._replace(seconds=0.05))
    model = served(server, concurrency=4, breaker_failures=2)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(model.read, [PROMPT] * 24, DIGITS)
        while len(server.asked) < 8:
            time.sleep(0.01)
        server.give(Answer(fault="reset"))
        server.stop()
        time.sleep(0.5)
        again = ChatServer(server.server_port)
        try:
            readings = reading.result(timeout=20)
        finally:
            again.stop()
    assert [each.choice for each in readings] == [7] * 24
    assert model.usage().requests > 24
    assert len(again.asked) >= 8


# Options and secrets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": KEY}, "did you mean 'api_key_env'"),
        ({"api_key_env": KEY}, "never the key itself"),
        ({"api_key_env": "sk_live_0123"}, "never the key itself"),
        ({"api_key_env": "NOT_SET_HERE"}, "set the environment variable NOT_SET_HERE"),
        ({"api_key_env": "TEACHER_KEY", "base_url": "http://example.org/v1"}, "not sent to example.org in the clear"),
        ({"base_url": f"https://me:{KEY}@example.org/v1"}, "base_url: Input should be a valid URL, invalid port"),
        ({"api_key_env": "TEACHER_KEY", "extra_body": {"x": [KEY]}}, "stands in the options as well"),
        ({"base_url": "https://me:pw@example.org/v1"}, "holds a user"),
        ({"base_url": "localhost:8000"}, "base_url: URL scheme should be 'http' or 'https'"),
        ({"mode": "verbal"}, "mode: Input should be"),
        ({"samples": 3}, "samples has no effect here"),
        ({"temperature": 1.0}, "temperature has no effect here"),
        ({"mode": "text", "top_logprobs": 5}, "top_logprobs has no effect here"),
        ({"mode": "structured", "min_mass": 0.1}, "min_mass has no effect here"),
        ({"max_tokens": 5}, "max_tokens has no effect here"),
        ({"max_cost": 5.0}, "max_cost has no effect here"),
        ({"top_logprobs": 0}, "reads nothing"),
        ({"mode": "text", "samples": 3, "temperature": 0}, "are all the same"),
        ({"min_mass": 2}, "min_mass"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"concurrency": 0}, "concurrency"),
        ({"extra_body": {"logprobs": False}}, "extra_body must not set logprobs"),
        ({"prices": {"promt": 1}}, "prices"),
    ],
)
def test_an_option_that_cannot_work_is_refused(server: ChatServer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        served(server, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(secret in str(caught.value) for secret in (KEY, "sk_live", "pw@"))


@pytest.mark.parametrize("choices", [(), ("a",), ("a", "a"), ("a", ""), ("a", " b"), ("a", "b\n")])
def test_choices_have_to_differ(server: ChatServer, choices: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="two or more different texts"):
        served(server).read([PROMPT], choices)


def test_log_probabilities_need_choices_that_begin_differently(server: ChatServer) -> None:
    with pytest.raises(ConfigError, match="begin with the same character"):
        served(server).check("VERDICT: ", ("supported", "silent"))
    served(server, mode="text").check("VERDICT: ", ("supported", "silent"))
    with pytest.raises(ConfigError, match="top_logprobs 5 cannot list 10 choices"):
        served(server, top_logprobs=5).check("SCORE: ", DIGITS)


def test_a_long_prompt_is_not_sent(server: ChatServer) -> None:
    model = served(server, max_prompt_chars=30)
    assert not model.fits(PROMPT)
    assert one(model).status == "over_budget"
    assert server.asked == []


def test_the_name_tells_what_scores_depend_on_and_no_secret(server: ChatServer) -> None:
    options: dict[str, Any] = {"mode": "text", "continues": False, "api_key_env": "TEACHER_KEY"}
    plain, drawn = served(server, **options), served(server, samples=3, extra_body={"top_k": 5}, **options)
    assert plain.name == f"served(m at 127.0.0.1:{server.server_port}, text)"
    assert drawn.name.startswith(plain.name[:-1] + ", samples 3, extra ")
    assert served(server, min_mass=0.2).name.endswith(", logprobs, continues, min_mass 0.2)")
    for model in (plain, drawn):
        assert KEY not in f"{model!r} {model._chat!r} {model._chat._key!r} {model._options!r} {model.name}"


def test_the_key_is_sent_and_shown_nowhere(
    server: ChatServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "another-key")
    monkeypatch.setenv("OPENAI_ORG_ID", "an-organisation")
    caplog.set_level(logging.DEBUG)
    echo = json.dumps({"error": {"message": f"no {KEY} here", "code": "x"}}).encode()
    model = served(server, api_key_env="TEACHER_KEY", max_retries=0, mode="text", continues=False)
    late = json.dumps({"error": {"message": "x" * 190 + KEY}}).encode()
    verbose = completion(reply(f"{KEY}\nSCORE: 7"))
    for answer in (*(Answer(status, body) for status in (401, 400, 500) for body in (echo, late)), verbose):
        server.give(answer)
        assert KEY[:8] not in one(model).model_dump_json()
    assert one(model).text == "[key]"
    escaped = "".join(f"\\u{ord(c):04X}" for c in KEY).encode()
    for form in (KEY.replace("/", "\\/").encode(), escaped, escaped.lower(), escaped[:6] + KEY[1:].encode()):
        server.give(Answer(body=verbose.body.replace(KEY.encode(), form)))
        assert one(model).text == "[key]"
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    assert KEY not in caplog.text
    one(served(server))
    assert "authorization" not in server.headers[-1]
    assert not any("openai-organization" in headers for headers in server.headers)


# In a training run -----------------------------------------------------------------------------------------------


def run_settings(model: Path, run_dir: Path, server: ChatServer, **more: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"engine": "openai", "model": "m", "base_url": server.url, "api_key_env": "TEACHER_KEY"}
    asked |= {"continues": True, "max_retries": 0, "breaker_failures": 1000}
    return {
        "student.model": str(model),
        "student.chat": "plain",
        "student.max_turn_tokens": 6,
        "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 2},
        "evaluation": None,
        "rollout": {"tasks_per_step": 2, "group_size": 2},
        "learner": {"lora_rank": 2, "learning_rate": 0.01},
        "teacher": {"name": "digits", "options": {"model": asked}, "max_invalid_share": 0.9},
        "steps": 2,
        "run_dir": str(run_dir),
        **more,
    }


def test_a_run_lives_with_a_flaky_server_and_keeps_the_key_to_itself(
    server: ChatServer, tiny_folder: Path, tmp_path: Path
) -> None:
    cycle = [Answer(500, KEY.encode()), GOOD, completion(reply(" 7")), GOOD, Answer(401, KEY.encode()), GOOD]
    seen: dict[str, int] = {}
    next_ = server.next

    def by_view(asked: dict[str, Any], headers: dict[str, str]) -> Answer:
        next_(asked, headers)
        with server.lock:
            return cycle[seen.setdefault(asked["messages"][1]["content"], len(seen)) % len(cycle)]

    server.next = by_view  # type: ignore[method-assign]
    display = Display(2, Console(file=(shown := io.StringIO())))
    result = train(settings=run_settings(tiny_folder, tmp_path / "run", server), display=display)
    assert result.steps == 2
    rows = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    statuses = set()
    for row in rows:
        critiques = load_jsonl(result.path / "critiques" / f"step-{row['step']:05d}.jsonl", Critique)
        scores = [score for critique in critiques for score in (*critique.steps, critique.trajectory)]
        assert all((score.value is None) == (score.status != "ok") for score in scores)
        assert row["invalid_share"] == pytest.approx(sum(not score.valid for score in scores) / len(scores))
        for status in {score.status for score in scores} - {"ok"}:
            share = sum(score.status == status for score in scores) / len(scores)
            assert row[f"invalid_{status}"] == pytest.approx(share)
        statuses |= {score.status for score in scores}
    assert statuses == {"ok", "error", "malformed"}
    assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    files = [path for path in result.path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert not [path.name for path in files if KEY.encode() in path.read_bytes()]
    assert KEY not in shown.getvalue()
