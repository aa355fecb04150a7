"""Elasticsearch and OpenSearch as a search backend, for corpora that outgrow one machine.

Requests use what both products have in common: a ``body`` with ``multi_match`` and ``highlight``, ``_bulk``, ``_doc``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field, JsonValue, ValidationError

from ovd_gym.envs.web_search.base import Hit, Passage, address_of
from ovd_gym.envs.web_search.elastic_client import connect, failures, meaning, package_of
from ovd_gym.envs.web_search.services import (
    Answer,
    BackendOutage,
    check_query,
    optional,
    read_answer,
)
from ovd_gym.errors import ConfigError, DataError, ToolError
from ovd_gym.records import Text, first_problem

__all__ = ["ElasticBackend"]

A = TypeVar("A", bound=Answer)
T = TypeVar("T")

MAX_QUERY_CHARS = 1000
OPEN, CLOSE = "\ue000", "\ue001"
"""Around highlighted words. From the private use area, so that taking them out changes nothing else."""
MAPPING: Mapping[str, Any] = {
    "dynamic": False,
    "properties": {
        "title": {"type": "text", "analyzer": "english"},
        "text": {"type": "text", "analyzer": "english"},
        "url": {"type": "keyword", "index": False},
        "metadata": {"type": "object", "enabled": False},
    },
}


class _Source(Answer):
    title: Text
    url: Text | None = None


class _Found(Answer):
    id: Text = Field(alias="_id")
    score: float | None = Field(None, alias="_score")
    source: _Source = Field(alias="_source")
    highlight: dict[str, tuple[Text, ...]] = {}


class _Hits(Answer):
    hits: tuple[_Found, ...]


class _Shards(Answer):
    failed: int


class SearchAnswer(Answer):
    """Of ``_search``; a part of the index that did not answer shows in ``timed_out`` and ``_shards`` alone."""

    timed_out: bool
    shards: _Shards = Field(alias="_shards")
    hits: _Hits


class _Document(Answer):
    found: bool = False
    error: Any = None
    source: dict[str, Any] = Field({}, alias="_source")


class DocumentsAnswer(Answer):
    """Of ``_mget``: in the order asked for; a missing index is an ``error`` here, not a status."""

    docs: tuple[_Document, ...]


class ElasticBackend:
    """Passages in an index of Elasticsearch (or OpenSearch, with a client of ``opensearch-py``).

    Args:
        client: the address of a server, ``http(s)://host:port``, or a client that is made already. With an address,
            the key is taken from the environment variable ``ELASTICSEARCH_API_KEY`` if that is set.
        index: name of the index.
        title_boost: how much more a match in the title counts than one in the text.
        snippet_chars: length of a snippet.
        timeout_s, retries: of each request; a client that is made already keeps its own.

    Raises:
        ConfigError: the client library is not installed, or an unsafe address.
    """

    name = "elastic"

    def __init__(
        self,
        client: Any,
        index: str,
        *,
        title_boost: float = 2.0,
        snippet_chars: int = 300,
        timeout_s: float = 10.0,
        retries: int = 3,
    ) -> None:
        if not index or any(c in index for c in "/*?,"):
            raise ConfigError(f"index must be the name of one index, got {index!r}")
        if not (title_boost > 0 and snippet_chars > 0 and timeout_s > 0 and retries >= 0):
            raise ConfigError("title_boost, snippet_chars and timeout_s must be positive, retries at least 0")
        self.index = index
        self._boost, self._snippet_chars = title_boost, snippet_chars
        self._made_from: tuple[str, str, dict[str, Any]] | None = None
        if isinstance(client, str):
            options = {"title_boost": title_boost, "snippet_chars": snippet_chars}
            self._made_from = (client, index, options | {"timeout_s": timeout_s, "retries": retries})
            client = connect(client, timeout_s, retries)
        self._client = client
        self._package = package_of(client)
        self._errors = optional(f"{self._package}.exceptions")

    # Searching ------------------------------------------------------------------------------------------

    def search(self, query: str, top_k: int) -> list[Hit]:
        """At most ``top_k`` passages, best first.

        Raises:
            ToolError: an empty or overlong query.
            BackendOutage: no answer, or one from a part of the index only.
        """
        body = self.query_body(check_query(query, top_k, MAX_QUERY_CHARS), top_k)
        answer = self._read(SearchAnswer, lambda: self._client.search(index=self.index, body=body))
        if answer.timed_out or answer.shards.failed:
            raise BackendOutage(self.name, "timeout", f"a part of the index {self.index!r} did not answer")
        return [self._hit(found) for found in answer.hits.hits]

    def query_body(self, query: str, top_k: int) -> dict[str, Any]:
        """The search request: words of ``query`` in title and text, any of them, the best field counts."""
        fields = [f"title^{self._boost:g}", "text"]
        return {
            "size": top_k,
            "_source": ["title", "url"],
            "query": {"multi_match": {"query": query, "fields": fields}},
            "highlight": {
                "pre_tags": [OPEN],
                "post_tags": [CLOSE],
                "fields": {
                    "text": {
                        "fragment_size": self._snippet_chars,
                        "number_of_fragments": 1,
                        "no_match_size": self._snippet_chars,
                    }
                },
            },
        }

    def passage(self, id: str) -> Passage:
        """The passage with that id. Raises :class:`~ovd_gym.errors.ToolError` if there is none."""
        return self.passages([id])[0]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Several at once, in order. Raises :class:`~ovd_gym.errors.ToolError` naming the first unknown id."""
        if not ids:
            return []
        answer = self._read(DocumentsAnswer, lambda: self._client.mget(index=self.index, body={"ids": list(ids)}))
        if len(answer.docs) != len(ids):
            raise BackendOutage(self.name, "malformed", f"{len(answer.docs)} documents for {len(ids)} ids")
        return [self._passage(id, document) for id, document in zip(ids, answer.docs, strict=True)]

    # Indexing -------------------------------------------------------------------------------------------

    def create_index(self, settings: Mapping[str, Any] | None = None) -> None:
        """Make the index, with English stemming for title and text.

        Args:
            settings: of the index, such as ``{"number_of_shards": 4}``.

        Raises:
            DataError: it exists already.
        """
        if self._ask(lambda: self._client.indices.exists(index=self.index)):
            raise DataError(f"the index {self.index!r} exists already: choose another name, or delete it first")
        body = {"settings": dict(settings or {}), "mappings": MAPPING}
        self._ask(lambda: self._client.indices.create(index=self.index, body=body))

    def index_passages(self, passages: Iterable[Passage], *, chunk: int = 500) -> int:
        """Add ``passages``, or replace those of the same id; returns how many. They are streamed: any number will do.

        Raises:
            DataError: the server refuses a passage; those before it are indexed.
            BackendOutage: the server does not answer; what was sent before is indexed.
        """
        helpers = optional(f"{self._package}.helpers")

        def send() -> int:
            count = 0
            for ok, report in helpers.streaming_bulk(
                self._client, self._actions(passages), chunk_size=chunk, max_retries=3, raise_on_error=False
            ):
                if not ok:
                    result = next(iter(report.values()))
                    raise DataError(f"passage {result.get('_id')!r} was refused with status {result.get('status')}")
                count += 1
            return count

        count = self._ask(send)
        self._ask(lambda: self._client.indices.refresh(index=self.index))
        return count

    def _actions(self, passages: Iterable[Passage]) -> Iterator[dict[str, Any]]:
        for passage in passages:
            source = passage.model_dump(mode="json", exclude={"id"})
            yield {"_op_type": "index", "_index": self.index, "_id": passage.id, "_source": source}

    # All else -------------------------------------------------------------------------------------------

    def describe(self) -> Mapping[str, JsonValue]:
        """Kind, index and settings. The corpus is known to its index alone: give indices telling names."""
        return {
            "kind": self.name,
            "index": self.index,
            "title_boost": self._boost,
            "snippet_chars": self._snippet_chars,
        }

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def __repr__(self) -> str:
        return f"ElasticBackend(index={self.index!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._made_from is None:
            raise TypeError("made from a client, which cannot be pickled: make it from an address")
        return _rebuild, self._made_from

    def _hit(self, found: _Found) -> Hit:
        fragments = " ".join(found.highlight.get("text", ()))
        return Hit(
            id=found.id,
            title=found.source.title,
            url=address_of(found.id, found.source.url or ""),
            snippet=" ".join(fragments.replace(OPEN, "").replace(CLOSE, "").split()),
            score=found.score,
            source=self.name,
        )

    def _passage(self, id: str, document: _Document) -> Passage:
        if document.error is not None:
            raise BackendOutage(self.name, "http", f"the index {self.index!r} cannot be read: has it been created?")
        if not document.found:
            raise ToolError(f"no document {id[:80]!r}: open one of the search results")
        try:
            return Passage.model_validate({**document.source, "id": id})
        except ValidationError as error:
            problem = first_problem(error)
        raise BackendOutage(self.name, "malformed", f"document {id!r} is no passage: {problem}")

    def _read(self, schema: type[A], request: Callable[[], Any]) -> A:
        answer = self._ask(request)
        return read_answer(self.name, schema, getattr(answer, "body", answer))

    def _ask(self, request: Callable[[], T]) -> T:
        """What ``request`` returns; a failure is raised outside ``except``, since the client's own can hold the key."""
        try:
            return request()
        except failures(self._errors) as error:
            cause, detail = meaning(error)
        raise BackendOutage(self.name, cause, detail)


def _rebuild(url: str, index: str, options: dict[str, Any]) -> ElasticBackend:
    return ElasticBackend(url, index, **options)
