"""Live engines against a fake server that speaks each engine's documented schema."""

from __future__ import annotations

import copy
import gzip
import json
import logging
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest

from ovd_gym.envs.web_search.base import SearchOutage
from ovd_gym.envs.web_search.engines import (
    BraveSearch,
    HttpEngine,
    SearxngSearch,
    SerperSearch,
    TavilySearch,
)
from ovd_gym.envs.web_search.engines.text import plain_text
from ovd_gym.envs.web_search.services import BackendOutage, EnvKey
from ovd_gym.errors import ConfigError, ToolError

KEYED: list[type[HttpEngine]] = [BraveSearch, SerperSearch, TavilySearch]
ENGINES: list[type[HttpEngine]] = [*KEYED, SearxngSearch]
KEY = "tvly-s3cr3t-0123456789abcdef"


def recorded(name: str) -> dict[str, Any]:
    """What the engine documents, with the fields that are not read, and with markup where the engine sends markup."""
    path = Path(__file__).parent / "recorded" / f"{name}.json"
    answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return answer


BRAVE, SERPER, TAVILY, SEARXNG = map(recorded, ("brave", "serper", "tavily", "searxng"))
RECORDED: Mapping[type[HttpEngine], dict[str, Any]] = {
    BraveSearch: BRAVE,
    SerperSearch: SERPER,
    TavilySearch: TAVILY,
    SearxngSearch: SEARXNG,
}


class Answer(NamedTuple):
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = {}
    hang: bool = False


class Asked(NamedTuple):
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: Any


class FakeServer(ThreadingHTTPServer):
    """Gives its answers in turn, the last one for ever, and remembers what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[Answer] = []
        self.asked: list[Asked] = []
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def give(self, *answers: Answer | dict[str, Any]) -> None:
        self.answers = [a if isinstance(a, Answer) else Answer(body=json.dumps(a).encode()) for a in answers]

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"
    wbufsize = 65_536  # headers and body in one packet

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            self.server.asked.append(
                Asked(self.command, parts.path, parse_qs(parts.query), headers, json.loads(raw) if raw else None)
            )
            answers = self.server.answers
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer.hang:
            self.server.released.wait(30)
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in ({"Content-Type": "application/json"} | dict(answer.headers)).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class FakeClock:
    """Time that passes when somebody sleeps, and ``tick`` at every look."""

    def __init__(self, tick: float = 0.0) -> None:
        self.time, self.tick = 100.0, tick
        self.slept: list[float] = []

    def now(self) -> float:
        self.time += self.tick
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


@pytest.fixture
def server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture
def other_server() -> Iterator[FakeServer]:
    fake = FakeServer()
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BRAVE_API_KEY", "SERPER_API_KEY", "TAVILY_API_KEY"):
        monkeypatch.setenv(variable, KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def make(server: FakeServer) -> Iterator[Callable[..., Any]]:
    made: list[HttpEngine] = []

    def engine(kind: type[HttpEngine], **options: Any) -> HttpEngine:
        made.append(kind(**{"base_url": server.url, "calls_per_s": None, "clock": FakeClock()} | options))
        return made[-1]

    yield engine
    for each in made:
        each.close()


# Good answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENGINES)
def test_hits_are_plain_text(kind: type[HttpEngine], server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(RECORDED[kind])
    first, second = make(kind).search("tallest  lighthouse\n", 5)
    assert first.title == "Jeddah Light & Tower"
    assert first.snippet == "The tallest lighthouse in the world's ports, at 133 m. Built in 1990."
    assert (first.url, first.id, first.source) == (
        "https://lights.example/jeddah",
        "https://lights.example/jeddah",
        kind.name,
    )
    assert second.snippet == "107 m"


@pytest.mark.parametrize("kind", ENGINES)
def test_at_most_top_k(kind: type[HttpEngine], server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(RECORDED[kind])
    assert [hit.url for hit in make(kind).search("lighthouse", 1)] == ["https://lights.example/jeddah"]


def test_requests_are_as_documented(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    for kind in ENGINES:
        server.give(RECORDED[kind])
        make(kind, params={"extra": "1"}).search("tallest lighthouse", 7)
    brave, serper, tavily, searxng = server.asked
    assert (brave.method, brave.path) == ("GET", "/web/search")
    assert brave.query == {"extra": ["1"], "q": ["tallest lighthouse"], "count": ["7"]}
    assert brave.headers["x-subscription-token"] == KEY
    assert (serper.method, serper.path) == ("POST", "/search")
    assert serper.body == {"extra": "1", "q": "tallest lighthouse", "num": 7}
    assert serper.headers["x-api-key"] == KEY
    assert (tavily.method, tavily.path) == ("POST", "/search")
    assert tavily.body == {"extra": "1", "query": "tallest lighthouse", "max_results": 7}
    assert tavily.headers["authorization"] == f"Bearer {KEY}"
    assert (searxng.method, searxng.path) == ("GET", "/search")
    assert searxng.query == {"extra": ["1"], "q": ["tallest lighthouse"], "format": ["json"]}
    assert not any(KEY in value for value in searxng.headers.values())


def test_scores_where_there_are_any(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(TAVILY)
    assert [hit.score for hit in make(TavilySearch).search("lighthouse", 5)] == [0.98, 0.41]
    server.give(BRAVE)
    assert [hit.score for hit in make(BraveSearch).search("lighthouse", 5)] == [None, None]


@pytest.mark.parametrize(
    ("kind", "empty"),
    [
        (BraveSearch, {"type": "search", "query": {"original": "qwzx"}}),
        (SerperSearch, {"searchParameters": {"q": "qwzx"}, "organic": [], "credits": 1}),
        (TavilySearch, {"query": "qwzx", "results": [], "response_time": 0.1}),
        (SearxngSearch, {"query": "qwzx", "results": [], "unresponsive_engines": []}),
    ],
)
def test_nothing_matched(
    kind: type[HttpEngine], empty: dict[str, Any], server: FakeServer, make: Callable[..., HttpEngine]
) -> None:
    server.give(empty)
    assert make(kind).search("qwzx", 5) == []


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a <b>b</b>c&lt;b&gt;", "a bc<b>"),
        ("x<br/>y<p class='z'>z</p>", "x y z"),
        ("if a < b and c > d: List<String>", "if a < b and c > d: List<String>"),
        ("tab\tand\x00 nul\u200b, caf&eacute;", "tab and nul, café"),
        ("&#xD800;", "\ufffd"),
        ("half \ud800 a pair", "half ? a pair"),
        ("<strong>unclosed", "unclosed"),
        ("", ""),
    ],
)
def test_plain_text(markup: str, text: str) -> None:
    assert plain_text(markup) == text


# Outages --------------------------------------------------------------------------------------------------------

BRAVE_BAD_KEY = {
    "type": "ErrorResponse",
    "error": {
        "id": "5d832250-9396-4f6e-b84a-2a1fe524cd7d",
        "status": 422,
        "code": "SUBSCRIPTION_TOKEN_INVALID",
        "detail": "The provided subscription token is invalid.",
        "meta": {"component": "authentication"},
    },
    "time": 1663072993,
}


@pytest.mark.parametrize(
    ("kind", "status", "body", "cause", "calls"),
    [
        (BraveSearch, 422, BRAVE_BAD_KEY, "auth", 1),
        (BraveSearch, 422, {"type": "ErrorResponse", "error": {"code": "VALIDATION"}}, "http", 1),
        (BraveSearch, 429, {"type": "ErrorResponse", "error": {"code": "RATE_LIMITED"}}, "quota", 4),
        (SerperSearch, 403, {"message": "Unauthorized.", "statusCode": 403}, "auth", 1),
        (SerperSearch, 400, {"message": "Not enough credits", "statusCode": 400}, "quota", 1),
        (SerperSearch, 400, {"message": "Query not allowed", "statusCode": 400}, "http", 1),
        (TavilySearch, 401, {"detail": {"error": "Unauthorized: missing or invalid API key."}}, "auth", 1),
        (TavilySearch, 432, {"detail": {"error": "This request exceeds your plan's set usage limit."}}, "quota", 1),
        (TavilySearch, 433, {"detail": {"error": "This request exceeds the pay-as-you-go limit."}}, "quota", 1),
        (TavilySearch, 500, {"detail": {"error": "Internal Server Error"}}, "http", 4),
        (SearxngSearch, 403, {}, "auth", 1),
        (SearxngSearch, 404, {}, "http", 1),
        (SearxngSearch, 503, {}, "http", 4),
    ],
)
def test_refusals_have_a_cause(
    kind: type[HttpEngine],
    status: int,
    body: dict[str, Any],
    cause: str,
    calls: int,
    server: FakeServer,
    make: Callable[..., HttpEngine],
) -> None:
    server.give(Answer(status, json.dumps(body).encode()))
    with pytest.raises(BackendOutage, match=str(status)) as caught:
        make(kind).search("lighthouse", 3)
    assert (caught.value.backend, caught.value.cause) == (kind.name, cause)
    assert len(server.asked) == calls


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(
    "body",
    [b"", b"<html>captcha</html>", b"[]", b"{}", b'{"results": [{"title": 1}]}', b'{"results": "none"}', b"\xff\xfe{"],
)
def test_nonsense_is_an_outage(
    kind: type[HttpEngine], body: bytes, server: FakeServer, make: Callable[..., HttpEngine]
) -> None:
    server.give(Answer(200, body))
    with pytest.raises(BackendOutage) as caught:
        make(kind).search("lighthouse", 3)
    assert caught.value.cause == "malformed"


@pytest.mark.parametrize("value", ["NaN", "-Infinity", '"\\ud800"'])
def test_values_that_no_hit_can_hold(value: str, server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    body = json.dumps(TAVILY).replace("0.98", value)
    server.give(Answer(body=body.encode()))
    with pytest.raises(BackendOutage, match="malformed"):
        make(TavilySearch).search("lighthouse", 3)


def test_no_results_from_a_searxng_whose_engines_failed(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give({"query": "x", "results": [], "unresponsive_engines": [["google", "CAPTCHA"], ["bing", "timeout"]]})
    with pytest.raises(BackendOutage, match="2 of its engines"):
        make(SearxngSearch).search("x", 3)


def test_retries_back_off_and_succeed(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    clock = FakeClock()
    server.give(Answer(503), Answer(500), Answer(429), BRAVE)
    assert len(make(BraveSearch, clock=clock).search("lighthouse", 3)) == 2
    assert len(server.asked) == 4
    for wait, most in zip(clock.slept, (0.5, 1.0, 2.0), strict=True):
        assert most / 2 <= wait <= most


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str, server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    clock = FakeClock()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=10), usegmt=True)
    server.give(Answer(429, headers={"Retry-After": "9" if form == "seconds" else date}), BRAVE)
    make(BraveSearch, clock=clock).search("lighthouse", 3)
    assert len(clock.slept) == 1
    assert 8 < clock.slept[0] <= 10


@pytest.mark.parametrize("value", ["soon", "-5", "Fri, 99 Foo 2020", "", "٣"])
def test_retry_after_of_nonsense_is_ignored(value: str, server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    clock = FakeClock()
    server.give(Answer(429, headers={"Retry-After": value.encode().decode("latin-1")}), BRAVE)
    make(BraveSearch, clock=clock).search("lighthouse", 3)
    assert sum(clock.slept) <= 0.5


def test_no_waiting_past_the_deadline(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    clock = FakeClock()
    server.give(Answer(429, headers={"Retry-After": "3600"}))
    with pytest.raises(BackendOutage) as caught:
        make(BraveSearch, clock=clock, deadline_s=20.0).search("lighthouse", 3)
    assert caught.value.cause == "quota"
    assert (clock.slept, len(server.asked)) == ([], 1)


def test_retries_end_before_the_deadline(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    clock = FakeClock()
    server.give(Answer(500))
    with pytest.raises(BackendOutage, match="times"):
        make(BraveSearch, clock=clock, deadline_s=5.0, retries=100).search("lighthouse", 3)
    assert sum(clock.slept) < 5.0
    assert 3 <= len(server.asked) <= 8


def test_a_server_that_hangs(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(Answer(hang=True))
    with pytest.raises(BackendOutage) as caught:
        make(SearxngSearch, timeout_s=0.05, retries=1).search("lighthouse", 3)
    assert caught.value.cause == "timeout"
    assert len(server.asked) == 2


def test_nobody_there(make: Callable[..., HttpEngine]) -> None:
    gone = FakeServer()
    gone.stop()
    clock = FakeClock()
    with pytest.raises(BackendOutage, match="3 times") as caught:
        make(SearxngSearch, base_url=gone.url, retries=2, clock=clock).search("lighthouse", 3)
    assert (caught.value.cause, caught.value.detail) == (
        "connection",
        "the connection failed (ConnectionError), 3 times",
    )
    assert len(clock.slept) == 2


def test_cookies_are_not_kept(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(Answer(body=json.dumps(SEARXNG).encode(), headers={"Set-Cookie": "who=me"}))
    engine = make(SearxngSearch)
    for _ in range(2):
        engine.search("lighthouse", 3)
    assert "cookie" not in server.asked[1].headers


def test_an_answer_that_drips_past_the_deadline(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(BRAVE)
    with pytest.raises(BackendOutage, match="no whole answer within 3 s"):
        make(BraveSearch, clock=FakeClock(tick=1.0), deadline_s=3.0).search("lighthouse", 3)


@pytest.mark.parametrize("packed", [False, True])
def test_a_huge_answer(packed: bool, server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    body = b" " * 50_000_000 if packed else b" " * 2_000_001
    server.give(
        Answer(body=gzip.compress(body, 1), headers={"Content-Encoding": "gzip"}) if packed else Answer(body=body)
    )
    with pytest.raises(BackendOutage, match="more than 2000000 bytes"):
        make(SearxngSearch).search("lighthouse", 3)


def test_a_broken_encoding(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(Answer(body=b"not gzip", headers={"Content-Encoding": "gzip"}))
    with pytest.raises(BackendOutage) as caught:
        make(SearxngSearch).search("lighthouse", 3)
    assert caught.value.cause == "malformed"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(
    status: int, server: FakeServer, other_server: FakeServer, make: Callable[..., HttpEngine]
) -> None:
    server.give(Answer(status, headers={"Location": f"{other_server.url}/search?token={KEY}"}))
    other_server.give(BRAVE)
    with pytest.raises(BackendOutage, match="redirects are not followed") as caught:
        make(BraveSearch).search("lighthouse", 3)
    assert other_server.asked == []
    assert KEY not in str(caught.value)


# Pace and budget ------------------------------------------------------------------------------------------------


def test_calls_are_spaced(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    clock = FakeClock()
    server.give(BRAVE)
    engine = make(BraveSearch, clock=clock, calls_per_s=2.0)
    for _ in range(3):
        engine.search("lighthouse", 3)
    assert clock.slept == [0.5, 0.5]


def test_no_turn_before_the_deadline(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(BRAVE)
    engine = make(BraveSearch, calls_per_s=0.01, deadline_s=30.0)
    engine.search("lighthouse", 3)
    with pytest.raises(BackendOutage, match="too many calls at once"):
        engine.search("lighthouse", 3)
    assert len(server.asked) == 1


def test_the_budget_counts_retries(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(Answer(503), BRAVE, Answer(503))
    engine = make(BraveSearch, max_calls=3)
    assert len(engine.search("lighthouse", 3)) == 2
    for _ in range(2):
        with pytest.raises(BackendOutage) as caught:
            engine.search("lighthouse", 3)
        assert caught.value.cause == "budget"
    assert len(server.asked) == 3


def test_many_threads_share_one_engine(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(TAVILY)
    engine = make(TavilySearch, max_calls=40)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: engine.search(f"lighthouse {i}", 5), range(40)))
    assert all(len(hits) == 2 for hits in answers)
    assert {asked.body["query"] for asked in server.asked} == {f"lighthouse {i}" for i in range(40)}
    with pytest.raises(BackendOutage, match="used up"):
        engine.search("one more", 5)


@pytest.mark.parametrize(
    "option",
    [{"timeout_s": 0.0}, {"deadline_s": -1.0}, {"retries": -1}, {"calls_per_s": 0.0}, {"max_calls": -1}],
)
def test_limits_are_checked(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(option))):
        BraveSearch(**option)


# The student's own mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize(("query", "top_k"), [("", 3), (" \n ", 3), ("x" * 2001, 3), ("lighthouse", 0)])
def test_queries_that_cannot_be_asked(
    kind: type[HttpEngine], query: str, top_k: int, server: FakeServer, make: Callable[..., HttpEngine]
) -> None:
    with pytest.raises(ToolError):
        make(kind).search(query, top_k)
    assert server.asked == []


def test_brave_takes_fifty_words(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(BRAVE)
    engine = make(BraveSearch)
    assert engine.search("a " * 50, 3)
    with pytest.raises(ToolError, match="51 words"):
        engine.search("a " * 51, 3)


def test_a_lone_surrogate_is_sent_as_text(server: FakeServer, make: Callable[..., HttpEngine]) -> None:
    server.give(BRAVE, SERPER)
    make(BraveSearch).search("light\ud800house", 3)
    make(SerperSearch).search("light\ud800house", 3)
    assert [server.asked[0].query["q"], [server.asked[1].body["q"]]] == [["light?house"], ["light?house"]]


# Keys and addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KEYED)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_names_its_variable(
    kind: type[HttpEngine], value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv(kind.key_variable)
    else:
        monkeypatch.setenv(kind.key_variable, value)
    with pytest.raises(ConfigError, match=kind.key_variable):
        kind()


def test_a_key_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAVE_API_KEY", f"{KEY}\r\nX-Evil: 1")
    with pytest.raises(ConfigError, match="BRAVE_API_KEY") as caught:
        BraveSearch()
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://proxy.example", "in the clear"),
        ("ftp://proxy.example", "must be http"),
        ("proxy.example", "must be http"),
        (f"https://user:{KEY}@proxy.example", "leave these out"),
        (f"https://proxy.example/?key={KEY}", "leave these out"),
    ],
)
def test_unsafe_addresses(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        BraveSearch(url)
    assert KEY not in str(caught.value)


def test_searxng_needs_an_address() -> None:
    with pytest.raises(ConfigError, match="base_url"):
        SearxngSearch()
    SearxngSearch("http://search.internal.example").close()  # without a key, plain http is allowed


def test_a_netrc_does_not_replace_the_key(
    server: FakeServer, make: Callable[..., HttpEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    server.give(TAVILY)
    make(TavilySearch).search("lighthouse", 3)
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def everything_said(error: BaseException) -> str:
    """All text that hangs on an exception: what a logger, a debugger or a pickle could show."""
    texts = ["".join(traceback.format_exception(error)), repr(pickle.dumps(error)), repr(vars(error))]
    for linked in (error.__cause__, error.__context__):
        if linked is not None:
            texts += [everything_said(linked)]
    return "\n".join(texts)


ECHO = json.dumps({"detail": f"invalid key {KEY}", "results": [KEY]}).encode()


@pytest.mark.parametrize("kind", KEYED)
@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, ECHO),
        Answer(500, ECHO),
        Answer(200, ECHO),
        Answer(200, f"no JSON: {KEY}".encode()),
        Answer(302, headers={"Location": f"https://elsewhere.example/{KEY}"}),
        Answer(hang=True),
        Answer(body=f"not gzip {KEY}".encode(), headers={"Content-Encoding": "gzip"}),
        None,
    ],
    ids=["401", "500", "schema", "no-json", "redirect", "hang", "encoding", "nobody"],
)
def test_the_key_is_in_no_outage_and_no_log(
    kind: type[HttpEngine],
    answer: Answer | None,
    server: FakeServer,
    make: Callable[..., HttpEngine],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    options = {"timeout_s": 0.05, "retries": 1}
    if answer is None:
        server.server_close()
    else:
        server.give(answer)
    with pytest.raises(BackendOutage) as caught:
        make(kind, **options).search("lighthouse", 3)
    said = everything_said(caught.value)
    assert caught.value.detail in said
    assert KEY not in said
    assert KEY not in caplog.text
    assert caught.value.__context__ is None


@pytest.mark.parametrize("kind", KEYED)
def test_the_key_is_in_nothing_that_is_shown_or_stored(
    kind: type[HttpEngine], server: FakeServer, make: Callable[..., HttpEngine]
) -> None:
    server.give(RECORDED[kind])
    engine = make(kind)
    hits = engine.search("lighthouse", 3)
    shown = [repr(engine), str(engine), repr(vars(engine)), json.dumps(dict(engine.describe())), repr(hits)]
    shown += [
        repr(pickle.dumps(engine)),
        repr(EnvKey(kind.key_variable)),
        repr(pickle.dumps(EnvKey(kind.key_variable))),
    ]
    assert not [text for text in shown if KEY in text]
    assert EnvKey(kind.key_variable).reveal() == KEY


def test_a_copy_reads_the_key_where_it_arrives(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TavilySearch(server.url, params={"topic": "news"}, calls_per_s=None, max_calls=7)
    stored = pickle.dumps(engine)
    engine.close()
    monkeypatch.setenv("TAVILY_API_KEY", "another")
    server.give(TAVILY)
    twin = pickle.loads(stored)  # noqa: S301
    assert len(twin.search("lighthouse", 3)) == 2
    assert server.asked[0].headers["authorization"] == "Bearer another"
    assert server.asked[0].body["topic"] == "news"
    assert copy.copy(twin).describe() == engine.describe()
    twin.close()
    monkeypatch.delenv("TAVILY_API_KEY")
    with pytest.raises(ConfigError, match="TAVILY_API_KEY"):
        pickle.loads(stored)  # noqa: S301


def test_an_outage_survives_a_pickle() -> None:
    outage = pickle.loads(pickle.dumps(BackendOutage("brave", "quota", "status 429")))  # noqa: S301
    assert (outage.backend, outage.cause, str(outage)) == ("brave", "quota", "brave: quota: status 429")
    assert isinstance(outage, SearchOutage)


# Imports --------------------------------------------------------------------------------------------------------


def test_the_libraries_are_imported_when_needed() -> None:
    modules = ("engines", "backends", "elastic", "simulated")
    heavy = {"tenacity", "ddgs", "primp", "elasticsearch", "torch", "transformers", "tantivy", "fastapi"}
    imports = "; ".join(f"import ovd_gym.envs.web_search.{module}" for module in modules)
    code = f"import sys; {imports}; print(*sorted(sys.modules.keys() & {heavy!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
