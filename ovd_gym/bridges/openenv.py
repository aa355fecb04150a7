"""Tool environments as OpenEnv environments, and a server of them: what ``ovd-gym serve-env`` runs.

The server is OpenEnv's own: it has the sessions, one per WebSocket connection, and closes those that are idle. Its
routes ``/reset`` and ``/step`` are left out: they take a new environment for every request, and no episode has a second
step there. Checked with OpenEnv 0.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

import ovd_gym
from ovd_gym.bridges.sessions import Heard, Session, SessionLimits, Status, Stock
from ovd_gym.errors import ConfigError
from ovd_gym.serving import serve_app

try:
    from fastapi import FastAPI, WebSocketDisconnect
    from openenv.core.env_server.http_server import HTTPEnvServer
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, ConcurrencyConfig, EnvironmentMetadata, Observation, State
except ImportError as missing:
    raise ConfigError(
        "serving environments needs the package openenv-core, best in an environment of its own: "
        f'pip install "ovd-gym[openenv]" ({missing})'
    ) from missing

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["TextAction", "TextEnvironment", "TextObservation", "make_app", "serve"]

MAX_MESSAGE_BYTES = 1_000_000
"""Longest message of a client; the longest action, all of it escaped, is shorter."""


def _encodable(text: object) -> object:
    """JSON can write halves of characters that no answer could repeat."""
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else text


class TextAction(Action):  # type: ignore[misc]
    """What the student wrote in one turn. Everything but ``text`` is refused or not read."""

    text: Annotated[str, BeforeValidator(_encodable)]


class TextObservation(Observation):  # type: ignore[misc]
    """What came of it: :class:`~ovd_gym.bridges.sessions.Heard`, and ``done`` unless the episode goes on."""

    text: str
    status: Status
    reason: str = ""
    messages: list[dict[str, str]] = Field(default_factory=list)

    @classmethod
    def of(cls, heard: Heard) -> TextObservation:
        """``heard`` as OpenEnv sends it."""
        return cls(**heard._asdict() | {"messages": list(heard.messages)}, done=heard.status != "running")


class TextEnvironment(Environment):  # type: ignore[misc]
    """A session in a tool environment, as OpenEnv's server plays it."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, stock: Stock) -> None:
        super().__init__()
        self._first = stock.first
        self._session = Session(stock)
        self._state = State()

    def reset(self, seed: int | None = None, episode_id: str | None = None, **options: Any) -> TextObservation:
        """Begin an episode; ``task_index`` asks that question, otherwise one is drawn."""
        heard = self._session.reset({"seed": seed, "episode_id": episode_id, **options})
        self._state = State(episode_id=episode_id)
        return TextObservation.of(heard)

    def step(self, action: TextAction, timeout_s: float | None = None, **_: Any) -> TextObservation:
        """Carry out the call in the student's text."""
        heard = self._session.step(action.text, timeout_s)
        self._state.step_count += 1
        return TextObservation.of(heard)

    @property
    def state(self) -> State:
        """Number of steps and, if the client gave one, the episode's name. Never the task."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """What this world is, and how many questions it has."""
        world = self._first
        tools = ", ".join(spec.name for spec in world.tools)
        told = f"{len(world.tasks)} questions; tools: {tools}; action format: {world.action_format.name}"
        return EnvironmentMetadata(name=type(world).__name__, description=told, version=ovd_gym.__version__)

    def close(self) -> None:
        """End the session."""
        self._session.close()


def make_app(stock: Stock) -> FastAPI:
    """OpenEnv's server around ``stock``: ``/ws`` for episodes, ``/health``, ``/metadata`` and ``/schema``."""
    limits = stock.limits
    concurrency = ConcurrencyConfig(max_concurrent_envs=limits.sessions, session_timeout=limits.idle_timeout_s)
    server = HTTPEnvServer(partial(TextEnvironment, stock), TextAction, TextObservation, concurrency_config=concurrency)
    app = FastAPI(title="ovd-gym environment", version=ovd_gym.__version__)
    server.register_routes(app, "production")
    app.add_middleware(_Sockets)
    return app


class _Sockets:
    """Connections of programs alone: a browser says which page opens one, and any page could open one to this machine.

    OpenEnv closes connections that their clients have closed, and Starlette raises at that; it stays in here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and any(name == b"origin" for name, _ in scope["headers"]):
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: HTTP 403
            return
        with contextlib.suppress(WebSocketDisconnect):
            await self._app(scope, receive, send)


def serve(
    env: str,
    options: Mapping[str, Any] | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    limits: SessionLimits | None = None,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the environment ``env`` until SIGTERM or SIGINT.

    Args:
        env: Gymnasium id of a tool environment (``module:id`` imports the module that registers it).
        options: of the environment.
        host, port: where to listen; port 0 takes a free one.
        limits: see :class:`~ovd_gym.bridges.sessions.SessionLimits`.
        on_ready: called with the address once it is open.

    Raises:
        ConfigError: no such tool environment, options it does not take, or an address that cannot be used.
    """
    with contextlib.closing(Stock(env, options or {}, limits or SessionLimits())) as stock:
        serve_app(make_app(stock), host, port, on_ready=on_ready, ws_max_size=MAX_MESSAGE_BYTES)
