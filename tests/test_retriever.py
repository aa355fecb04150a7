"""The retriever API over real sockets: client against server, and each against the other's misbehaviour."""

from __future__ import annotations

import json
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import JsonValue

from ovd_gym.envs.web_search.base import Hit, Passage, SearchBackend, SearchOutage
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.envs.web_search.retriever import RetrieverClient
from ovd_gym.envs.web_search.retriever_server import ServerLimits, make_app
from ovd_gym.envs.web_search.services import BackendOutage
from ovd_gym.errors import ConfigError, ToolError

PASSAGES = [
    Passage(id="r", title="Wilhelm Röntgen", text="He discovered X-rays\nin Würzburg."),
    Passage(id="c", title="Marie Curie", text="She discovered polonium. " + "She lived in Paris. " * 30),
]


@contextmanager
def serving(backend: SearchBackend, limits: ServerLimits | None = None) -> Iterator[str]:
    """The server in a thread, on a free port."""
    config = uvicorn.Config(make_app(backend, limits), log_level="error", ws="none", lifespan="on")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    limits = ServerLimits(max_body_bytes=10_000, max_queries=4, max_topk=10)
    with serving(LocalIndex.in_memory(PASSAGES), limits) as address:
        yield address


def post(url: str, body: Any, **options: Any) -> requests.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return requests.post(
        f"{url}/retrieve", data=content, headers={"Content-Type": "application/json"}, timeout=10, **options
    )


# The protocol -------------------------------------------------------------------------------------------


def test_the_answer_is_that_of_search_r1(url: str) -> None:
    answer = post(url, {"queries": ["x-rays", "zeppelin"], "topk": 3, "return_scores": True}).json()
    found, nothing = answer["result"]
    score = found[0].pop("score")
    assert found == [{"document": {"id": "r", "contents": '"Wilhelm Röntgen"\nHe discovered X-rays\nin Würzburg.'}}]
    assert score > 0
    assert nothing == []
    bare = post(url, {"queries": ["x-rays"], "topk": 3}).json()
    assert bare == {"result": [[found[0]["document"]]]}


def test_topk_is_three_by_default_and_unknown_fields_are_ignored(url: str) -> None:
    with serving(LocalIndex.in_memory(Passage(id=str(i), title="x", text="same") for i in range(9))) as other:
        assert len(post(other, {"queries": ["same"], "retriever": "e5"}).json()["result"][0]) == 3
        assert len(post(other, {"queries": ["same"], "topk": 5}).json()["result"][0]) == 5


def test_health_names_the_corpus(url: str) -> None:
    health = requests.get(f"{url}/health", timeout=10).json()
    assert health["status"] == "ok"
    assert health["backend"]["documents"] == 2


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"queries": ["x"] * 5}, 422, "queries: at most 4 allowed, got 5"),
        ({"queries": ["x"], "topk": 11}, 422, "topk: at most 10 allowed, got 11"),
        ({"queries": ["x"], "topk": 0}, 422, "topk: Input should be greater than or equal to 1"),
        ({"queries": []}, 422, "queries: Tuple should have at least 1 item"),
        ({"queries": "x"}, 422, "queries: Input should be a valid"),
        ({"queries": ["x", " "]}, 422, "queries[1]: the query is empty"),
        ({"queries": ["\ud800"]}, 422, "queries.0: "),
        ({}, 422, "queries: Field required"),
        (b"nonsense", 422, "JSON decode error"),
        (b'{"queries": ["' + b"x" * 20_000 + b'"]}', 413, "the body is too large: at most 10000 bytes"),
        (b"[" * 5_000, 400, "error parsing the body"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_one_line(url: str, body: Any, status: int, message: str) -> None:
    response = post(url, body)
    detail = response.json()["detail"]
    assert message in detail
    assert "\n" not in detail
    assert response.status_code == status


def test_a_body_in_chunks_is_bounded_too(url: str) -> None:
    response = requests.post(f"{url}/retrieve", data=(b"x" * 1000 for _ in range(100)), timeout=10)
    assert response.status_code == 413


def test_a_page_in_a_browser_is_not_answered(url: str) -> None:
    """Any page could ask this machine, and one whose name is pointed here could read what it says."""
    for origin in ("http://evil.test", url, "null"):
        answer = requests.post(f"{url}/retrieve", json={"queries": ["x"]}, headers={"Origin": origin}, timeout=10)
        assert (answer.status_code, answer.json()["detail"]) == (403, "requests of web pages are not answered")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["queries", "topk", "return_scores", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=50) | JSON.map(json.dumps).map(str.encode))
def test_any_body_is_answered_or_refused(url: str, body: bytes) -> None:
    response = post(url, body)
    assert response.status_code in (200, 400, 422)
    assert response.json().keys() == {"result" if response.status_code == 200 else "detail"}


# Client and server together -----------------------------------------------------------------------------


def test_the_client_finds_what_the_index_finds(url: str) -> None:
    client = RetrieverClient(url)
    (hit,) = client.search("x-rays", 3)
    assert (hit.id, hit.title, hit.url, hit.source) == ("r", "Wilhelm Röntgen", "doc:r", "retriever")
    assert hit.snippet == PASSAGES[0].text
    assert [h.id for h in client.search("discovered", 1)] == [
        h.id for h in LocalIndex.in_memory(PASSAGES).search("discovered", 1)
    ]
    assert [[h.id for h in hits] for hits in client.search_many(["polonium", "zeppelin", "x-rays"], 2)] == [
        ["c"],
        [],
        ["r"],
    ]
    assert client.describe() == {"kind": "retriever", "base_url": url, "params": {}}
    client.close()


def test_the_address_may_end_in_retrieve_and_the_client_can_be_pickled(url: str) -> None:
    client = pickle.loads(pickle.dumps(RetrieverClient(f"{url}/retrieve", retries=0)))  # noqa: S301
    assert client.base_url == url
    assert client.search("polonium", 1)[0].id == "c"
    client.close()


def test_a_bad_query_is_the_students_mistake(url: str) -> None:
    client = RetrieverClient(url)
    for query, top_k in (("", 3), ("word " * 300, 3), ("fine", 0)):
        with pytest.raises(ToolError):
            client.search(query, top_k)
    client.close()


def test_an_unsafe_address_is_refused() -> None:
    for address in ("ftp://host", "http://user:hunter2@host", "host:8000"):
        with pytest.raises(ConfigError) as caught:
            RetrieverClient(address)
        assert "hunter2" not in str(caught.value)


class Engine:
    """A backend without passages: it has hits alone, or an outage."""

    name = "engine"

    def __init__(self, outages: int = 0) -> None:
        self.outages = outages

    def search(self, query: str, top_k: int) -> list[Hit]:
        if self.outages:
            self.outages -= 1
            raise SearchOutage("the engine is on fire")
        return [Hit(id="u", title="T", url="https://example.org", snippet=f"about {query}", source="engine")]

    def describe(self) -> Mapping[str, JsonValue]:
        return {"kind": "engine"}

    def close(self) -> None:
        """Nothing to close."""


def test_a_backend_without_passages_sends_its_snippets() -> None:
    with serving(Engine()) as address:
        client = RetrieverClient(address)
        (hit,) = client.search("cats", 1)
        assert (hit.title, hit.snippet, hit.score) == ("T", "about cats", None)
        client.close()


def test_an_outage_behind_the_server_is_tried_again_and_then_one_of_the_client() -> None:
    with serving(Engine(outages=1)) as address:
        client = RetrieverClient(address, retries=1)
        assert client.search("cats", 1)[0].id == "u"
        client.close()
    with serving(Engine(outages=99)) as address:
        response = post(address, {"queries": ["cats"]})
        assert (response.status_code, response.json()) == (503, {"detail": "the engine is on fire"})
        client = RetrieverClient(address, retries=0)
        with pytest.raises(BackendOutage, match="retriever: http: status 503"):
            client.search("cats", 1)
        client.close()


# A server that misbehaves -------------------------------------------------------------------------------


@contextmanager
def fake_server(reply: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            reply(self)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def sends(body: bytes, status: int = 200, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return reply


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "malformed"),
        (b"<html>It works!</html>", "malformed"),
        (b'{"results": []}', "malformed"),
        (b'{"result": []}', "malformed"),
        (b'{"result": [[], []]}', "malformed"),
        (b'{"result": [[{"document": {"id": "a"}, "score": 1}]]}', "malformed"),
        (b'{"result": [[{"document": {"id": "a", "contents": "x"}, "score": NaN}]]}', "malformed"),
        (b'{"result": [[{"document": {"id": "a", "contents": "\\ud800"}, "score": 1}]]}', "malformed"),
        (b'{"result": [["text"]]}', "malformed"),
        (b"[" * 100_000, "malformed"),
        (b" " * 3_000_000, "malformed"),
    ],
)
def test_nonsense_is_an_outage_never_no_results(body: bytes, cause: str) -> None:
    with fake_server(sends(body)) as address:
        client = RetrieverClient(address, retries=0)
        with pytest.raises(BackendOutage) as caught:
            client.search("cats", 3)
        assert caught.value.cause == cause
        client.close()


def test_a_redirect_is_not_followed(url: str) -> None:
    with fake_server(sends(b"", 307, Location=f"{url}/retrieve")) as address:
        client = RetrieverClient(address)
        with pytest.raises(BackendOutage, match="redirects are not followed"):
            client.search("x-rays", 3)
        client.close()


def test_a_hung_server_costs_one_deadline() -> None:
    release = threading.Event()

    def hang(_: BaseHTTPRequestHandler) -> None:
        release.wait(10)

    with fake_server(hang) as address:
        client = RetrieverClient(address, timeout_s=0.1, deadline_s=0.3, retries=50)
        started = time.monotonic()
        with pytest.raises(BackendOutage, match="timeout"):
            client.search("cats", 3)
        assert time.monotonic() - started < 5
        release.set()
        client.close()


def test_a_dead_server_is_an_outage() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = RetrieverClient(f"http://127.0.0.1:{port}", retries=0)
    with pytest.raises(BackendOutage, match="connection"):
        client.search("cats", 3)
    client.close()


def test_more_results_than_asked_for_are_cut_and_documents_without_an_id_get_one() -> None:
    row = '{"document": {"contents": "\\"T\\"\\ntext %d"}, "score": 1}'
    body = '{"result": [[' + ", ".join(row % i for i in range(5)) + "]]}"
    with fake_server(sends(body.encode())) as address:
        client = RetrieverClient(address)
        hits = client.search("cats", 2)
        assert [hit.snippet for hit in hits] == ["text 0", "text 1"]
        assert hits[0].id != hits[1].id
        client.close()


# The process --------------------------------------------------------------------------------------------

SLOW_SERVER = """
import sys, time
from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.envs.web_search.retriever_server import serve

class Slow(LocalIndex):
    def search(self, query, top_k):
        print("searching", flush=True)
        time.sleep(0.5)
        return super().search(query, top_k)

    def close(self):
        print("closed", flush=True)

serve(Slow.in_memory([Passage(id="a", title="A", text="cats")]), port=0, on_ready=lambda url: print(url, flush=True))
print("done", flush=True)
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_finish_and_ends_the_server_well(signum: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "server.py"
    script.write_text(SLOW_SERVER)
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        answers: list[requests.Response] = []
        thread = threading.Thread(target=lambda: answers.append(post(address, {"queries": ["cats"]})))
        thread.start()
        assert server.stdout.readline() == "searching\n"
        server.send_signal(signum)
        thread.join()
        out, err = server.communicate(timeout=20)
    assert answers[0].json()["result"][0][0]["id"] == "a"
    assert (out, err, server.returncode) == ("closed\ndone\n", "", 0)
