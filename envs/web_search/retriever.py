"""A client of the retriever API of Search-R1 (https://github.com/PeterGriffinJin/Search-R1).

``POST /retrieve`` with ``{"queries": [...], "topk": 3, "return_scores": true}`` gives, query by query::

    {"result": [[{"document": {"id": "r", "contents": "\\"Title\\"\\ntext"}, "score": 1.2}, ...], ...]}

and without scores the documents alone, not wrapped. :mod:`ovd_gym.envs.web_search.retriever_server` is a server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pydantic import FiniteFloat, JsonValue

from ovd_gym.envs.web_search.base import Hit
from ovd_gym.envs.web_search.engines.base import HttpEngine
from ovd_gym.envs.web_search.engines.http import Request
from ovd_gym.envs.web_search.index_sources import split_contents
from ovd_gym.envs.web_search.services import Answer, BackendOutage, read_answer
from ovd_gym.records import Text

__all__ = ["RetrieverClient"]

MAX_SNIPPET_CHARS = 2000


class _Document(Answer):
    id: str | int | None = None
    contents: Text


class _Scored(Answer):
    document: _Document
    score: FiniteFloat | None


class RetrieverAnswer(Answer):
    """One list of scored documents per query."""

    result: tuple[tuple[_Scored, ...], ...]


class RetrieverClient(HttpEngine):
    """A retriever server as a search backend. The API knows no way to ask for one document, so that a hit's snippet
    is its whole text (at most 2,000 characters).

    Args:
        url: address of the server, with or without the closing ``/retrieve``.
        timeout_s: to connect, and between two pieces of an answer.
        deadline_s: for a whole search, retries and waiting included.
        retries: after the first attempt, with exponential back-off.

    Raises:
        ConfigError: an unsafe address, or a limit that is not positive.
    """

    name = "retriever"
    answer = RetrieverAnswer
    max_query_chars = 1000
    max_results = 100

    def __init__(self, url: str, *, timeout_s: float = 10.0, deadline_s: float = 30.0, retries: int = 3) -> None:
        address = url.rstrip("/").removesuffix("/retrieve")
        super().__init__(address, timeout_s=timeout_s, deadline_s=deadline_s, retries=retries, calls_per_s=None)
        self._limits = {"timeout_s": timeout_s, "deadline_s": deadline_s, "retries": retries}

    def search(self, query: str, top_k: int) -> list[Hit]:
        """At most ``top_k`` hits (and at most 100), best first.

        Raises:
            ToolError: an empty or overlong query.
            BackendOutage: no answer, or not one of this API; its ``cause`` says why.
        """
        return self.search_many([query], top_k)[0]

    def search_many(self, queries: Sequence[str], top_k: int) -> list[list[Hit]]:
        """The hits of each query, in one request. Raises what :meth:`search` raises."""
        checked: list[JsonValue] = [self.check(query, top_k) for query in queries]
        top_k = min(top_k, self.max_results)
        reply = self._service.send(self._request(checked, top_k), self.refusal)
        lists = read_answer(self.name, RetrieverAnswer, reply.content).result
        if len(lists) != len(queries):
            raise BackendOutage(self.name, "malformed", f"{len(lists)} lists of results for {len(queries)} queries")
        return [[self._hit(found) for found in results[:top_k]] for results in lists]

    def request(self, query: str, top_k: int) -> Request:
        """The request for one query."""
        return self._request([query], top_k)

    def hits(self, answer: RetrieverAnswer) -> list[Hit]:
        """The hits of the first query."""
        return [self._hit(found) for found in answer.result[0]]

    def _request(self, queries: list[JsonValue], top_k: int) -> Request:
        body: dict[str, JsonValue] = {"queries": queries, "topk": top_k, "return_scores": True}
        return Request(f"{self.base_url}/retrieve", {}, body)

    def _hit(self, found: _Scored) -> Hit:
        document = found.document
        title, text = split_contents(document.contents)
        id = hashlib.sha256(document.contents.encode()).hexdigest()[:16] if document.id is None else str(document.id)
        cut = text[:MAX_SNIPPET_CHARS]
        return Hit(id=id, title=title, url=f"doc:{id}", snippet=cut, score=found.score, source=self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.base_url, self._limits)


def _rebuild(url: str, limits: dict[str, Any]) -> RetrieverClient:
    return RetrieverClient(url, **limits)
