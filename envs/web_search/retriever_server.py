"""A server of the retriever API of Search-R1 around any search backend; see :mod:`ovd_gym.envs.web_search.retriever`
for the protocol. Beside ``POST /retrieve`` there is ``GET /health``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, JsonValue

from ovd_gym.envs.web_search.base import Hit, SearchBackend, SearchOutage
from ovd_gym.envs.web_search.index_sources import join_contents
from ovd_gym.envs.web_search.services import Answer, optional
from ovd_gym.errors import ConfigError, ToolError
from ovd_gym.records import Text
from ovd_gym.serving import serve_app

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ServerLimits", "make_app", "serve"]

DEFAULT_TOP_K = 3
"""What Search-R1 retrieves where ``topk`` is not given."""


@dataclass(frozen=True)
class ServerLimits:
    """What one request may ask for."""

    max_body_bytes: int = 1_000_000
    max_queries: int = 512
    max_topk: int = 100
    threads: int = 4
    """That share the queries of all requests."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")


class RetrieveRequest(Answer):
    """The body of a request. Fields of other implementations are ignored."""

    queries: Annotated[tuple[Text, ...], Field(min_length=1)]
    topk: Annotated[int, Field(ge=1)] | None = None
    return_scores: bool = False


def make_app(backend: SearchBackend, limits: ServerLimits | None = None) -> FastAPI:
    """The server around ``backend``. A closed corpus sends whole passages, another backend its snippets.

    It answers 422 to a request that is malformed or asks for too much, 413 to a body that is too large, 403 to a page
    in a browser, and 503 when the backend has an outage; always with ``{"detail": "..."}``.
    """
    fastapi = optional("fastapi")
    limits = limits or ServerLimits()
    pool = ThreadPoolExecutor(limits.threads, thread_name_prefix="retrieve")

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        pool.shutdown()

    app: FastAPI = fastapi.FastAPI(title="ovd-gym retriever", lifespan=lifespan)
    app.add_middleware(_Gate, max_bytes=limits.max_body_bytes)
    _explain_errors(app)

    # Both are plain functions: FastAPI runs them in threads, and a long search does not hold up /health.
    @app.get("/health", response_model=None)
    def health() -> dict[str, JsonValue]:
        return {"status": "ok", "backend": dict(backend.describe())}

    @app.post("/retrieve", response_model=None)
    def retrieve(request: RetrieveRequest) -> dict[str, JsonValue]:
        topk = request.topk or min(DEFAULT_TOP_K, limits.max_topk)
        for name, got, most in (("queries", len(request.queries), limits.max_queries), ("topk", topk, limits.max_topk)):
            if got > most:
                raise ToolError(f"{name}: at most {most} allowed, got {got}")
        ask = _asker(backend, topk, request.return_scores)
        return {"result": list(pool.map(ask, range(len(request.queries)), request.queries))}

    return app


def serve(
    backend: SearchBackend,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    limits: ServerLimits | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve ``backend`` until SIGTERM or SIGINT; requests under way are finished first (10 s at most).

    Args:
        backend: what to serve; closed in the end.
        host, port: where to listen; port 0 takes a free one.
        limits: see :class:`ServerLimits`.
        on_ready: called with the address once it is open.

    Raises:
        ConfigError: the address cannot be used.
    """
    optional("uvicorn")
    app = make_app(backend, limits)
    with contextlib.closing(backend):
        serve_app(app, host, port, on_ready=on_ready, ws="none")


def _asker(backend: SearchBackend, topk: int, with_scores: bool) -> Callable[[int, str], JsonValue]:
    """What answers one query of a request; its number is for errors."""

    def ask(number: int, query: str) -> JsonValue:
        try:
            hits = backend.search(query, topk)
        except ToolError as error:
            raise ToolError(f"queries[{number}]: {error}") from error
        documents: list[JsonValue] = [
            {"id": hit.id, "contents": contents} for hit, contents in zip(hits, _contents(backend, hits), strict=True)
        ]
        if not with_scores:
            return documents
        return [{"document": document, "score": hit.score} for document, hit in zip(documents, hits, strict=True)]

    return ask


def _contents(backend: SearchBackend, hits: Sequence[Hit]) -> list[str]:
    passages = getattr(backend, "passages", None)
    if passages is None:
        return [join_contents(hit.title, hit.snippet) for hit in hits]
    return [join_contents(passage.title, passage.text) for passage in passages([hit.id for hit in hits])]


def _explain_errors(app: FastAPI) -> None:
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    @app.exception_handler(RequestValidationError)
    def malformed(_: object, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]  # without its input: that may be what cannot be encoded
        where = ".".join(str(part) for part in problem["loc"] if part != "body")
        return JSONResponse({"detail": f"{where or 'body'}: {problem['msg']}"}, 422)

    @app.exception_handler(ToolError)
    def refused(_: object, error: ToolError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(SearchOutage)
    def outage(_: object, error: SearchOutage) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 503)


class _Gate:
    """Reads a request's body before the application does, and answers 413 when it is too large.

    A browser says which page asks, and any page could ask this machine: such a request is answered 403.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if any(name == b"origin" for name, _ in scope["headers"]):
            await self._refuse(403, "requests of web pages are not answered", scope, receive, send)
            return
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                detail = f"the body is too large: at most {self._max_bytes} bytes allowed"
                await self._refuse(413, detail, scope, receive, send)
                return
            more = message.get("more_body", False)
        messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self._app(scope, replay, send)

    async def _refuse(self, status: int, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
        from fastapi.responses import JSONResponse

        await JSONResponse({"detail": detail}, status, {"Connection": "close"})(scope, receive, send)
