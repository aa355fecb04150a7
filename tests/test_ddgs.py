"""The ddgs backend on a stand-in for the library."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

from ovd_gym.envs.web_search.base import Hit
from ovd_gym.envs.web_search.engines import DdgsSearch
from ovd_gym.envs.web_search.services import BackendOutage
from ovd_gym.errors import ConfigError

PASSWORD = "s3cr3t-0123456789"


class FakeClock:
    """Time that passes when somebody sleeps."""

    time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


class FakeDdgs:
    """Stands in for ``ddgs.DDGS``: gives or raises what it is told, and remembers what it was asked."""

    replies: list[Any] = []
    asked: list[tuple[str, dict[str, Any]]] = []

    def __init__(self, timeout: int) -> None:
        self.timeout = timeout

    def text(self, query: str, **options: Any) -> Any:
        self.asked.append((query, {"timeout": self.timeout} | options))
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        if isinstance(reply, Exception):
            raise reply
        return reply


@pytest.fixture
def ddgs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., DdgsSearch]:
    monkeypatch.setattr("ddgs.DDGS", FakeDdgs)
    monkeypatch.setattr(FakeDdgs, "asked", [])

    def engine(*replies: Any, **options: Any) -> DdgsSearch:
        monkeypatch.setattr(FakeDdgs, "replies", list(replies))
        return DdgsSearch(**{"calls_per_s": None, "clock": FakeClock()} | options)

    return engine


DDGS = [{"title": "Jeddah <b>Light</b>", "href": "https://lights.example/jeddah", "body": "133&nbsp;m"}]


def test_ddgs_hits(ddgs: Callable[..., DdgsSearch]) -> None:
    assert ddgs(DDGS, engines="mojeek, brave", region="de-de").search("lighthouse", 4) == [
        Hit(
            id="https://lights.example/jeddah",
            title="Jeddah Light",
            url="https://lights.example/jeddah",
            snippet="133 m",
            source="ddgs",
        )
    ]
    options = {"timeout": 10, "region": "de-de", "backend": "mojeek, brave", "max_results": 4}
    assert FakeDdgs.asked == [("lighthouse", options)]


def test_ddgs_finds_nothing(ddgs: Callable[..., DdgsSearch]) -> None:
    assert ddgs(DDGSException("No results found."), DDGS).search("qwzx", 4) == []
    assert [query for query, _ in FakeDdgs.asked] == ["qwzx", "wikipedia"]


def test_ddgs_failures(ddgs: Callable[..., DdgsSearch]) -> None:
    for error, cause in (
        (DDGSException("No results found."), "http"),
        (DDGSException(f"proxy http://user:{PASSWORD}@proxy.example"), "connection"),
        (TimeoutException("timed out"), "timeout"),
        (RatelimitException("429"), "quota"),
    ):
        with pytest.raises(BackendOutage) as caught:
            ddgs(error, retries=1).search("lighthouse", 4)
        assert caught.value.cause == cause
        assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(BackendOutage) as caught:
        ddgs([{"url": "https://lights.example"}]).search("lighthouse", 4)
    assert caught.value.cause == "malformed"


def test_ddgs_tries_again(ddgs: Callable[..., DdgsSearch]) -> None:
    assert len(ddgs(TimeoutException("timed out"), DDGS).search("lighthouse", 4)) == 1


def test_ddgs_knows_its_engines(ddgs: Callable[..., DdgsSearch]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mojeek'"):
        ddgs(DDGS, engines="mojek")


def test_ddgs_can_be_stored(ddgs: Callable[..., DdgsSearch]) -> None:
    engine = ddgs(DDGS, region="de-de")
    assert pickle.loads(pickle.dumps(engine)).describe() == engine.describe()  # noqa: S301


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ddgs", None)
    with pytest.raises(ConfigError, match=r'pip install "ovd-gym\[search\]"'):
        DdgsSearch()
