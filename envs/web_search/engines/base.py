"""What an engine on HTTP is: an address, a request for a query, and a schema of the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

from pydantic import JsonValue

from ovd_gym.envs.web_search.base import Hit
from ovd_gym.envs.web_search.engines.http import HeaderKey, HttpService, Reply, Request
from ovd_gym.envs.web_search.engines.limits import SYSTEM, Clock, Failure, Limits, Patience
from ovd_gym.envs.web_search.engines.text import plain_text
from ovd_gym.envs.web_search.services import Answer, EnvKey, check_address, check_query, read_answer
from ovd_gym.errors import ConfigError

__all__ = ["HttpEngine"]


class HttpEngine(ABC):
    """A search engine's HTTP API as a search backend. Share one among all environments: pace and budget are its own.

    The key comes from the environment variable :attr:`key_variable` and goes into the request's header, nowhere else.

    Args:
        base_url: another address than the engine's own, such as that of a proxy or a test server.
        params: further parameters of the engine's API, such as ``{"country": "DE"}``.
        timeout_s, deadline_s, retries, calls_per_s, max_calls: see
            :class:`~ovd_gym.envs.web_search.engines.limits.Limits`.
        clock: time, for tests.

    Raises:
        ConfigError: a missing key (naming its variable), an unsafe address or a limit that is not positive.
    """

    name: ClassVar[str]
    default_url: ClassVar[str] = ""
    key_variable: ClassVar[str] = ""
    """Empty: the engine has no keys."""
    key_header: ClassVar[str] = ""
    key_prefix: ClassVar[str] = ""
    max_query_chars: ClassVar[int] = 400
    max_results: ClassVar[int] = 20
    answer: ClassVar[type[Answer]]
    """Schema of a good answer."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        params: Mapping[str, JsonValue] | None = None,
        timeout_s: float = 10.0,
        deadline_s: float = 30.0,
        retries: int = 3,
        calls_per_s: float | None = 1.0,
        max_calls: int | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        if not (address := base_url or self.default_url):
            raise ConfigError(f"{self.name} is a service of your own: give its address as base_url")
        key = EnvKey(self.key_variable) if self.key_variable else None
        self.base_url = check_address(address, with_key=key is not None)
        self.params = dict(params or {})
        limits = Limits(timeout_s, deadline_s, retries, calls_per_s, max_calls)
        self._made_with: dict[str, Any] = {"params": self.params, **asdict(limits)}
        auth = HeaderKey(self.key_header, key, self.key_prefix)
        self._service = HttpService(auth, Patience(self.name, limits, clock))

    def search(self, query: str, top_k: int) -> list[Hit]:
        """At most ``top_k`` hits, and at most :attr:`max_results`, best first, in plain text.

        Raises:
            ToolError: an empty or overlong query.
            BackendOutage: no answer; its ``cause`` says why.
        """
        query = self.check(query, top_k)
        reply = self._service.send(self.request(query, min(top_k, self.max_results)), self.refusal)
        return self.hits(read_answer(self.name, self.answer, reply.content))[:top_k]

    def describe(self) -> Mapping[str, JsonValue]:
        """Kind, address and parameters; the web behind it is dated by whoever records this."""
        return {"kind": self.name, "base_url": self.base_url, "params": self.params}

    def close(self) -> None:
        """Give the connections back."""
        self._service.close()

    def check(self, query: str, top_k: int) -> str:
        """The query as it is sent. Raises :class:`~ovd_gym.errors.ToolError` when the engine would refuse it."""
        return check_query(query, top_k, self.max_query_chars)

    @abstractmethod
    def request(self, query: str, top_k: int) -> Request:
        """The request for ``query``."""

    @abstractmethod
    def hits(self, answer: Any) -> list[Hit]:
        """The hits in ``answer``, an instance of :attr:`answer`; an outage if it says that it is not complete."""

    def refusal(self, reply: Reply) -> Failure | None:
        """What a reply with another status than 200 means to this engine; None: nothing special."""
        return None

    def hit(self, title: str, url: str, snippet: str, score: float | None = None) -> Hit:
        """A hit of this engine, in plain text."""
        return Hit(id=url, title=plain_text(title), url=url, snippet=plain_text(snippet), score=score, source=self.name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process reads the key there; pace and budget start anew.
        return _rebuild, (type(self), self.base_url, self._made_with)


def _rebuild(kind: type[HttpEngine], base_url: str, options: dict[str, Any]) -> HttpEngine:
    return kind(base_url, **options)
