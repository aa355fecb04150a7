"""The Elasticsearch backend on the client's own transport, with nodes that give recorded answers."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any, NamedTuple

import pytest
from elastic_transport import (
    ApiResponseMeta,
    BaseNode,
    ConnectionError,
    ConnectionTimeout,
    HttpHeaders,
)
from elastic_transport._node import NodeApiResponse
from elasticsearch import Elasticsearch

from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.elastic import ElasticBackend
from ovd_gym.envs.web_search.services import BackendOutage
from ovd_gym.errors import ConfigError, DataError, ToolError

KEY = "ZXM6czNjcjN0LTAxMjM0NTY3ODk="
PRODUCT = {"x-elastic-product": "Elasticsearch", "content-type": "application/json"}

SEARCH = {
    "took": 4,
    "timed_out": False,
    "_shards": {"total": 1, "successful": 1, "skipped": 0, "failed": 0},
    "hits": {
        "total": {"value": 2, "relation": "eq"},
        "max_score": 7.31,
        "hits": [
            {
                "_index": "wiki",
                "_id": "42",
                "_score": 7.31,
                "_source": {"title": "Jeddah Light", "url": ""},
                "highlight": {
                    "text": ["The \ue000tallest\ue001 \ue000lighthouse\ue001 is <b>133 m</b>\nhigh & built in 1990."]
                },
            },
            {"_index": "wiki", "_id": "7", "_score": 2.5, "_source": {"title": "Perry", "url": "https://a.example/"}},
        ],
    },
}
DOCUMENTS = {
    "docs": [
        {
            "_index": "wiki",
            "_id": "7",
            "_version": 1,
            "_seq_no": 3,
            "_primary_term": 1,
            "found": True,
            "_source": {"title": "Perry", "text": "107 m", "url": "https://a.example/", "metadata": {"lang": "en"}},
        },
        {"_index": "wiki", "_id": "8", "found": False},
    ]
}
NO_INDEX = {
    "error": {
        "root_cause": [{"type": "index_not_found_exception", "reason": "no such index [wiki]", "index": "wiki"}],
        "type": "index_not_found_exception",
        "reason": "no such index [wiki]",
    },
    "status": 404,
}


class Asked(NamedTuple):
    method: str
    target: str
    body: bytes


class FakeNode(BaseNode):
    """A node of the client's transport that gives ``reply(method, target, body)`` instead of asking a server."""

    _CLIENT_META_HTTP_CLIENT = ("fake", "1.0")
    reply: Callable[[str, str, bytes], tuple[int, Any] | Exception]
    asked: list[Asked]
    headers_given: dict[str, str] = PRODUCT

    def perform_request(
        self, method: str, target: str, body: bytes | None = None, *args: Any, **kwargs: Any
    ) -> NodeApiResponse:
        self.asked.append(Asked(method, target, body or b""))
        reply = type(self).reply(method, target, body or b"")
        if isinstance(reply, Exception):
            raise reply
        status, content = reply
        meta = ApiResponseMeta(status, "1.1", HttpHeaders(self.headers_given), 0.001, self.config)
        return NodeApiResponse(meta, content if isinstance(content, bytes) else json.dumps(content).encode())

    def close(self) -> None:
        """Nothing to close."""


class World(NamedTuple):
    node: type[FakeNode]
    client: Elasticsearch

    def backend(self, **options: Any) -> ElasticBackend:
        return ElasticBackend(self.client, "wiki", **options)

    def gives(self, status: int, content: Any) -> ElasticBackend:
        self.node.reply = staticmethod(lambda method, target, body: (status, content))
        return self.backend()


@pytest.fixture
def world() -> Iterator[World]:
    node = type("Node", (FakeNode,), {"asked": []})
    with Elasticsearch("http://es.example:9200", node_class=node, max_retries=1) as client:
        yield World(node, client)


# Searching ------------------------------------------------------------------------------------------------------


def test_hits(world: World) -> None:
    first, second = world.gives(200, SEARCH).search("tallest  lighthouse", 2)
    assert (first.id, first.url, first.title, first.score) == ("42", "doc:42", "Jeddah Light", 7.31)
    assert first.snippet == "The tallest lighthouse is <b>133 m</b> high & built in 1990."
    assert (second.id, second.url, second.snippet, second.source) == ("7", "https://a.example/", "", "elastic")


def test_the_request(world: World) -> None:
    world.gives(200, SEARCH)
    world.backend(title_boost=1.5, snippet_chars=120).search("tallest lighthouse", 2)
    asked = world.node.asked[0]
    assert (asked.method, asked.target) == ("POST", "/wiki/_search")
    fragments = {"fragment_size": 120, "number_of_fragments": 1, "no_match_size": 120}
    assert json.loads(asked.body) == {
        "size": 2,
        "_source": ["title", "url"],
        "query": {"multi_match": {"query": "tallest lighthouse", "fields": ["title^1.5", "text"]}},
        "highlight": {"pre_tags": ["\ue000"], "post_tags": ["\ue001"], "fields": {"text": fragments}},
    }


def test_nothing_matched(world: World) -> None:
    empty = {**SEARCH, "hits": {"total": {"value": 0, "relation": "eq"}, "max_score": None, "hits": []}}
    assert world.gives(200, empty).search("qwzx", 3) == []


@pytest.mark.parametrize(("query", "top_k"), [("", 3), ("x" * 1001, 3), ("lighthouse", 0)])
def test_queries_that_cannot_be_asked(query: str, top_k: int, world: World) -> None:
    with pytest.raises(ToolError):
        world.gives(200, SEARCH).search(query, top_k)
    assert world.node.asked == []


@pytest.mark.parametrize(
    ("status", "content", "cause"),
    [
        (401, {"error": {"type": "security_exception", "root_cause": [{"reason": KEY}]}, "status": 401}, "auth"),
        (403, {"error": {"type": "security_exception", "root_cause": [{"reason": KEY}]}, "status": 403}, "auth"),
        (404, NO_INDEX, "http"),
        (429, {"error": {"type": "circuit_breaking_exception", "reason": "Data too large"}, "status": 429}, "quota"),
        (500, {"error": "boom"}, "http"),
        (503, b"", "http"),
        (200, b"<html>", "malformed"),
        (200, {}, "malformed"),
        (200, {**SEARCH, "hits": {"hits": [{"_id": "1", "_source": {}}]}}, "malformed"),
        (200, {**SEARCH, "hits": {"hits": [{"_id": "1", "_source": {"title": "half \ud800"}}]}}, "malformed"),
        (200, {**SEARCH, "timed_out": True}, "timeout"),
        (200, {**SEARCH, "_shards": {"total": 2, "successful": 1, "failed": 1}}, "timeout"),
    ],
)
def test_outages_have_a_cause(status: int, content: Any, cause: str, world: World) -> None:
    with pytest.raises(BackendOutage) as caught:
        world.gives(status, content).search("lighthouse", 3)
    assert caught.value.cause == cause
    assert caught.value.__context__ is None
    assert KEY not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("error", "cause", "calls"),
    [(ConnectionTimeout("late"), "timeout", 1), (ConnectionError("refused"), "connection", 2)],
)
def test_a_server_that_does_not_answer(error: Exception, cause: str, calls: int, world: World) -> None:
    world.node.reply = staticmethod(lambda method, target, body: error)
    with pytest.raises(BackendOutage) as caught:
        world.backend().search("lighthouse", 3)
    assert caught.value.cause == cause
    assert len(world.node.asked) == calls


def test_a_server_that_is_something_else(world: World) -> None:
    world.node.headers_given = {"content-type": "application/json"}
    with pytest.raises(BackendOutage, match="not Elasticsearch"):
        world.gives(200, SEARCH).search("lighthouse", 3)


# Documents ------------------------------------------------------------------------------------------------------


def test_passages(world: World) -> None:
    backend = world.gives(200, {"docs": DOCUMENTS["docs"][:1]})
    perry = Passage(id="7", title="Perry", text="107 m", url="https://a.example/", metadata={"lang": "en"})
    assert backend.passage("7") == perry
    assert json.loads(world.node.asked[0].body) == {"ids": ["7"]}
    assert backend.passages([]) == []


def test_an_unknown_passage_is_the_students_mistake(world: World) -> None:
    with pytest.raises(ToolError, match="'8'"):
        world.gives(200, DOCUMENTS).passages(["7", "8"])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ({"docs": [{"_index": "wiki", "_id": "7", "error": NO_INDEX["error"]}]}, "http"),
        ({"docs": []}, "malformed"),
        ({"docs": [{"_id": "7", "found": True, "_source": {"title": "no text"}}]}, "malformed"),
    ],
)
def test_documents_that_cannot_be_had(content: Any, cause: str, world: World) -> None:
    with pytest.raises(BackendOutage) as caught:
        world.gives(200, content).passage("7")
    assert caught.value.cause == cause


# Indexing -------------------------------------------------------------------------------------------------------


def test_create_index(world: World) -> None:
    world.node.reply = staticmethod(
        lambda method, target, body: (404, b"") if method == "HEAD" else (200, {"acknowledged": True, "index": "wiki"})
    )
    world.backend().create_index({"number_of_shards": 2})
    assert [(asked.method, asked.target) for asked in world.node.asked] == [("HEAD", "/wiki"), ("PUT", "/wiki")]
    body = json.loads(world.node.asked[1].body)
    assert body["settings"] == {"number_of_shards": 2}
    assert body["mappings"]["properties"]["text"] == {"type": "text", "analyzer": "english"}


def test_an_index_that_exists_is_left_alone(world: World) -> None:
    with pytest.raises(DataError, match="exists already"):
        world.gives(200, b"").create_index()
    assert [asked.method for asked in world.node.asked] == ["HEAD"]


def bulk(refuse: str = "") -> Callable[[str, str, bytes], tuple[int, Any]]:
    """A server's ``_bulk`` that refuses the passage with the id ``refuse``."""

    def reply(method: str, target: str, body: bytes) -> tuple[int, Any]:
        if not target.endswith("/_bulk"):
            return 200, {"_shards": {"total": 1, "successful": 1, "failed": 0}}
        ids = [json.loads(line)["index"]["_id"] for line in body.splitlines()[::2]]
        items = [{"index": {"_id": id, "status": 400 if id == refuse else 201, "result": "created"}} for id in ids]
        return 200, {"took": 1, "errors": refuse in ids, "items": items}

    return reply


def test_passages_are_streamed(world: World) -> None:
    world.node.reply = staticmethod(bulk())
    drawn: list[int] = []
    sent_when_drawn: list[int] = []

    def passages() -> Iterator[Passage]:
        for i in range(25):
            drawn.append(i)
            sent_when_drawn.append(len(world.node.asked))
            yield Passage(id=str(i), title=f"t{i}", text="x", metadata={"n": i})

    assert world.backend().index_passages(passages(), chunk=10) == 25
    sizes = [len(asked.body.splitlines()) // 2 for asked in world.node.asked if asked.target.endswith("/_bulk")]
    assert sizes == [10, 10, 5]
    assert sent_when_drawn[-1] == 2, "all passages were read before the first was sent"
    first = world.node.asked[0].body.splitlines()
    assert json.loads(first[0]) == {"index": {"_index": "wiki", "_id": "0"}}
    assert json.loads(first[1]) == {"title": "t0", "text": "x", "url": "", "metadata": {"n": 0}}
    assert world.node.asked[-1].target == "/wiki/_refresh"


def test_a_refused_passage_is_named(world: World) -> None:
    world.node.reply = staticmethod(bulk(refuse="3"))
    passages = [Passage(id=str(i), title="t", text="x") for i in range(5)]
    with pytest.raises(DataError, match="passage '3' was refused with status 400"):
        world.backend().index_passages(passages)


def test_an_outage_while_indexing(world: World) -> None:
    with pytest.raises(BackendOutage) as caught:
        world.gives(503, {"error": "unavailable"}).index_passages([Passage(id="1", title="t", text="x")])
    assert caught.value.cause == "http"


# Construction ---------------------------------------------------------------------------------------------------


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.authorization = self.headers.get("authorization")  # type: ignore[attr-defined]
        body = json.dumps(SEARCH).encode()
        self.send_response(200)
        for name, value in {**PRODUCT, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    fake = HTTPServer(("127.0.0.1", 0), _Handler)
    thread = Thread(target=fake.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield fake
    fake.shutdown()
    thread.join()
    fake.server_close()


@pytest.mark.parametrize("key", [KEY, None])
def test_by_address(
    key: str | None, server: HTTPServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    if key:
        monkeypatch.setenv("ELASTICSEARCH_API_KEY", key)
    else:
        monkeypatch.delenv("ELASTICSEARCH_API_KEY", raising=False)
    backend = ElasticBackend(f"http://127.0.0.1:{server.server_port}", "wiki", title_boost=3.0)
    stored = pickle.dumps(backend)
    twin = pickle.loads(stored)  # noqa: S301
    assert [hit.id for hit in twin.search("lighthouse", 2)] == ["42", "7"]
    assert server.authorization == (f"ApiKey {KEY}" if key else None)  # type: ignore[attr-defined]
    shown = [repr(backend), repr(vars(backend)), json.dumps(backend.describe()), repr(stored), caplog.text]
    assert not [text for text in shown if KEY in text]
    assert twin.describe() == {"kind": "elastic", "index": "wiki", "title_boost": 3.0, "snippet_chars": 300}
    backend.close()
    twin.close()


@pytest.mark.parametrize(
    ("client", "index", "options", "message"),
    [
        (f"http://elastic:{KEY}@es.example:9200", "wiki", {}, "leave these out"),
        ("es.example:9200", "wiki", {}, "must be http"),
        ("http://es.example:9200", "", {}, "name of one index"),
        ("http://es.example:9200", "wiki,other", {}, "name of one index"),
        ("http://es.example:9200", "wiki", {"title_boost": 0}, "title_boost"),
        (object(), "wiki", {}, "got object"),
    ],
)
def test_what_cannot_work(client: Any, index: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        ElasticBackend(client, index, **options)
    assert KEY not in str(caught.value)


def test_a_key_is_not_sent_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELASTICSEARCH_API_KEY", KEY)
    with pytest.raises(ConfigError, match="in the clear"):
        ElasticBackend("http://es.example:9200", "wiki")


def test_a_given_client_cannot_be_stored(world: World) -> None:
    with pytest.raises(TypeError, match="from an address"):
        pickle.dumps(world.backend())
