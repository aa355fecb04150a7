"""Backends by name, standing in for each other, and remembering."""

from __future__ import annotations

import importlib.metadata
import pickle
import sqlite3
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from ovd_gym.envs.web_search import backends
from ovd_gym.envs.web_search.backends import BUILT_IN, CachedBackend, FailoverBackend, make_backend
from ovd_gym.envs.web_search.base import Hit, Passage, SearchOutage
from ovd_gym.envs.web_search.elastic import ElasticBackend
from ovd_gym.envs.web_search.engines import BraveSearch, DdgsSearch, SearxngSearch, SerperSearch, TavilySearch
from ovd_gym.envs.web_search.services import BackendOutage
from ovd_gym.envs.web_search.simulated import SimulatedSearch
from ovd_gym.errors import ConfigError, DataError, ToolError

KEY = "s3cr3t-0123456789"


class Shelf:
    """A backend that finds one book per query, unless it is told to fail."""

    name = "shelf"

    def __init__(self, label: str = "a", *, failure: Exception | None = None) -> None:
        self.label, self.failure = label, failure
        self.asked: list[tuple[str, int]] = []
        self.closed = False

    def search(self, query: str, top_k: int) -> list[Hit]:
        self.asked.append((query, top_k))
        if self.failure is not None:
            raise self.failure
        if query == "nothing":
            return []
        return [Hit(id="1", title=f"{query} \U0001f600", url="doc:1", snippet="", score=0.1 + 0.2, source=self.label)]

    def describe(self) -> Mapping[str, JsonValue]:
        return {"kind": "shelf", "label": self.label}

    def close(self) -> None:
        self.closed = True


class Library(Shelf):
    """A shelf whose books can be opened."""

    def passage(self, id: str) -> Passage:
        if self.failure is not None:
            raise self.failure
        return Passage(id=id, title=self.label, text="text")


def not_a_backend() -> object:
    return object()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("BRAVE_API_KEY", "SERPER_API_KEY", "TAVILY_API_KEY"):
        monkeypatch.setenv(variable, KEY)
    monkeypatch.delenv("ELASTICSEARCH_API_KEY", raising=False)
    monkeypatch.setitem(sys.modules, "shelves.example", sys.modules[__name__])


# By name --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("brave", BraveSearch),
        ("serper", SerperSearch),
        ("tavily", TavilySearch),
        ("searxng:https://search.example", SearxngSearch),
        ("ddgs", DdgsSearch),
        ("elastic:http://127.0.0.1:9200/wiki", ElasticBackend),
        ({"name": "brave", "calls_per_s": 5.0}, BraveSearch),
        ({"name": "simulated", "generate": str}, SimulatedSearch),
        ({"name": "failover", "backends": ["brave", {"name": "serper", "retries": 0}]}, FailoverBackend),
        ({"name": "cached", "backend": "brave"}, CachedBackend),
    ],
)
def test_by_name(spec: Any, kind: type) -> None:
    backend = make_backend(spec)
    assert type(backend) is kind
    assert KEY not in repr(backend.describe())
    backend.close()


def test_what_stands_after_the_name() -> None:
    elastic = make_backend("elastic:http://127.0.0.1:9200/prefix/wiki", title_boost=3.0)
    assert (elastic.describe()["index"], elastic.describe()["title_boost"]) == ("wiki", 3.0)
    searxng = make_backend("searxng:https://search.example/", params={"language": "de"})
    assert searxng.describe() == {
        "kind": "searxng",
        "base_url": "https://search.example",
        "params": {"language": "de"},
    }
    elastic.close()
    searxng.close()


def test_a_local_index(tmp_path: Path) -> None:
    local = pytest.importorskip("ovd_gym.envs.web_search.local")
    pytest.importorskip("tantivy")
    local.LocalIndex.build(tmp_path / "books", [Passage(id="7", title="Lighthouses", text="A lighthouse is tall.")])
    backend = make_backend(f"local:{tmp_path / 'books'}")
    assert [hit.id for hit in backend.search("lighthouse", 3)] == ["7"]
    cached = CachedBackend(backend)
    assert cached.passage("7").title == "Lighthouses"
    cached.close()


def test_a_retriever() -> None:
    pytest.importorskip("ovd_gym.envs.web_search.retriever")
    backend = make_backend("retriever:http://127.0.0.1:8000/retrieve", timeout_s=3.0, retries=1)
    assert backend.name == "retriever"
    backend.close()


def test_a_backend_is_returned_as_it_is() -> None:
    shelf = Shelf()
    assert make_backend(shelf) is shelf
    with pytest.raises(ConfigError, match=r"\['label'\] for a backend that is made already"):
        make_backend(shelf, label="b")


def test_by_import_path() -> None:
    backend = make_backend("shelves.example:Shelf", label="b")
    assert backend.describe() == {"kind": "shelf", "label": "b"}


def test_options_go_before_those_of_a_mapping() -> None:
    backend = make_backend({"name": "shelves.example:Shelf", "label": "b"}, label="c")
    assert backend.describe()["label"] == "c"


def test_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = importlib.metadata.EntryPoint("shelf", "shelves.example:Shelf", backends.ENTRY_POINTS)
    monkeypatch.setattr(backends, "entry_points", lambda group: [point] if group == "ovd_gym.search_backends" else [])
    assert make_backend("shelf", label="b").describe()["label"] == "b"
    with pytest.raises(ConfigError, match="did you mean 'shelf'"):
        make_backend("shelff")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("brvae", {}, "did you mean 'brave'"),
        ("searxn:https://search.example", {}, "did you mean 'searxng'"),
        ("", {}, "unknown search backend"),
        (":x", {}, "unknown search backend"),
        ("brave", {"timeout": 3}, "'timeout': did you mean 'timeout_s'"),
        ("brave:x", {}, "nothing after its name"),
        ("searxng:", {}, "expected 'searxng:BASE_URL'"),
        ("elastic:wiki", {}, "expected 'elastic:URL/INDEX'"),
        ("elastic", {}, "missing a required argument: 'client'"),
        ("local", {}, "path"),
        ("local:x", {"pth": 1}, "pth"),
        ("no.such.module:Thing", {}, "cannot import"),
        ("shelves.example:Nothing", {}, "cannot import"),
        ("shelves.example:KEY", {}, "is no class with a method search"),
        ("os:system", {"command": "exit 1"}, "is no class with a method search"),
        ("shelves.example:not_a_backend", {}, "is no class with a method search"),
        ({"backend": "brave"}, {}, "needs a 'name'"),
        ({"name": 3}, {}, "needs a 'name'"),
        (3, {}, "got a int: expected a SearchBackend"),
        ({"name": "failover", "backends": []}, {}, "a list of backends"),
        ({"name": "failover", "backends": "brave"}, {}, "a list of backends"),
    ],
)
def test_what_cannot_be_made(spec: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_backend(spec, **options)


@pytest.mark.parametrize("options", [{}, {"nonsense": 1}])
@pytest.mark.parametrize("name", ["searxng", "elastic"])
def test_a_password_in_an_address_is_not_repeated(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_backend(f"{name}:https://user:{KEY}@search.example/wiki", **options)
    assert KEY not in str(caught.value)


def test_every_built_in_can_be_imported() -> None:
    for name in BUILT_IN:
        with pytest.raises(ConfigError, match="no_such_option"):
            make_backend(name, no_such_option=1)


# Standing in ----------------------------------------------------------------------------------------------------


class FakeClock:
    time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def test_the_next_one_answers_after_an_outage() -> None:
    first, second, third = Shelf("a", failure=SearchOutage("down")), Shelf("b"), Shelf("c")
    failover = FailoverBackend([first, second, third])
    assert [hit.source for hit in failover.search("book", 3)] == ["b"]
    assert (first.asked, second.asked, third.asked) == ([("book", 3)], [("book", 3)], [])
    failover.close()
    assert all(shelf.closed for shelf in (first, second, third))


def test_all_failed() -> None:
    failures = [BackendOutage("brave", "quota", "status 429"), SearchOutage("the disk is gone")]
    failover = FailoverBackend([Shelf(failure=failure) for failure in failures])
    with pytest.raises(SearchOutage, match=r"all 2 backends failed: .*brave: quota: status 429.*the disk is gone"):
        failover.search("book", 3)


def test_no_results_are_an_answer() -> None:
    second = Shelf("b")
    assert FailoverBackend([Shelf("a"), second]).search("nothing", 3) == []
    assert second.asked == []


@pytest.mark.parametrize("error", [ToolError("the query is empty"), ZeroDivisionError()])
def test_other_errors_pass_through(error: Exception) -> None:
    second = Shelf("b")
    with pytest.raises(type(error)):
        FailoverBackend([Shelf("a", failure=error), second]).search("book", 3)
    assert second.asked == []


def test_a_backend_that_failed_rests() -> None:
    clock = FakeClock()
    first, second = Shelf("a", failure=SearchOutage("down")), Shelf("b")
    failover = FailoverBackend([first, second], rest_s=60.0, clock=clock)
    failover.search("one", 1)
    failover.search("two", 1)
    assert [query for query, _ in first.asked] == ["one"]
    second.failure = SearchOutage("down too")
    with pytest.raises(SearchOutage, match="all 2"):  # resting, but better than nothing
        failover.search("three", 1)
    first.failure = None
    clock.time = 61.0
    assert failover.search("four", 1)[0].source == "a"


def test_a_corpus_behind_failover() -> None:
    failover = FailoverBackend([Library("a", failure=SearchOutage("down")), Library("b")])
    assert failover.passage("1").title == "b"
    assert not hasattr(FailoverBackend([Library("a"), Shelf("b")]), "passage")


# Remembering ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path) -> Callable[[Shelf], CachedBackend]:
    return lambda shelf: CachedBackend(shelf, tmp_path / "cache.db")


def test_answers_are_remembered_exactly(cache: Callable[[Shelf], CachedBackend]) -> None:
    shelf = Shelf()
    first = cache(shelf)
    answer = first.search("book", 3)
    assert first.search("book", 3) == answer
    first.close()
    assert shelf.closed
    again = cache(other := Shelf())
    assert again.search("book", 3) == answer
    assert answer[0].score == 0.1 + 0.2
    assert (shelf.asked, other.asked) == ([("book", 3)], [])
    again.close()


def test_an_empty_answer_is_an_answer() -> None:
    shelf = Shelf()
    cached = CachedBackend(shelf)
    assert (cached.search("nothing", 3), cached.search("nothing", 3)) == ([], [])
    assert len(shelf.asked) == 1
    cached.close()


def test_backend_query_and_top_k_are_the_key(cache: Callable[[Shelf], CachedBackend]) -> None:
    first, second = Shelf("a"), Shelf("b")
    for shelf in (first, second):
        cached = cache(shelf)
        for query, top_k in (("book", 3), ("book", 4), ("books", 3)):
            assert cached.search(query, top_k)[0].source == shelf.label
        cached.close()
    assert len(first.asked) == len(second.asked) == 3


@pytest.mark.parametrize("failure", [SearchOutage("down"), ToolError("empty")])
def test_failures_are_not_remembered(failure: Exception) -> None:
    shelf = Shelf(failure=failure)
    cached = CachedBackend(shelf)
    with pytest.raises(type(failure)):
        cached.search("book", 3)
    shelf.failure = None
    assert cached.search("book", 3)
    cached.close()


def test_threads_and_a_second_connection_share_it(cache: Callable[[Shelf], CachedBackend]) -> None:
    one, two = cache(Shelf()), cache(Shelf())
    barrier = threading.Barrier(8)

    def work(i: int) -> bool:
        barrier.wait(10)
        cached = (one, two)[i % 2]
        return all(cached.search(f"book {n}", 1)[0].title == f"book {n} \U0001f600" for n in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    one.close()
    two.close()


def test_it_says_what_the_backend_says() -> None:
    cached = CachedBackend(Library("a"))
    assert cached.describe() == {"kind": "shelf", "label": "a"}
    assert cached.passage("1").title == "a"
    cached.close()


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to be taken for one" * 40)
    with pytest.raises(DataError, match="no cache of searches"):
        CachedBackend(Shelf(), path)
    assert path.read_text().startswith("not a database")


def test_a_disk_that_fails_is_an_outage(tmp_path: Path) -> None:
    cached = CachedBackend(Shelf(), tmp_path / "cache.db")
    with sqlite3.connect(tmp_path / "cache.db") as other:
        other.execute("DROP TABLE answers")
    other.close()
    with pytest.raises(SearchOutage, match="the cache of searches failed"):
        cached.search("book", 3)
    cached.close()


def test_a_damaged_entry_is_an_outage(tmp_path: Path) -> None:
    cached = CachedBackend(Shelf(), tmp_path / "cache.db")
    cached.search("book", 3)
    with sqlite3.connect(tmp_path / "cache.db") as other:
        other.execute("UPDATE answers SET hits = '[{}]'")
    other.close()
    with pytest.raises(SearchOutage, match="damaged"):
        cached.search("book", 3)
    cached.close()


def test_a_cache_can_be_stored(tmp_path: Path) -> None:
    cached = CachedBackend("ddgs", tmp_path / "cache.db")
    twin = pickle.loads(pickle.dumps(cached))  # noqa: S301
    assert twin.describe() == cached.describe()
    assert twin.path == cached.path
    twin.close()
    cached.close()
