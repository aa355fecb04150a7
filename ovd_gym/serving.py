"""An ASGI application on an address, until it is told to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from ovd_gym.errors import ConfigError

__all__ = ["serve_app"]


def serve_app(app: Any, host: str, port: int, *, on_ready: Callable[[str], None], **settings: Any) -> None:
    """Serve ``app`` until SIGTERM or SIGINT; requests under way are finished first (10 s at most).

    Args:
        app: an ASGI application.
        host, port: where to listen; port 0 takes a free one.
        on_ready: called with the address once it is open.
        settings: for ``uvicorn.Config``.

    Raises:
        ConfigError: the address cannot be used.
    """
    import uvicorn

    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=10, **settings)
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
    # uvicorn stops on both signals and then raises them again: here both mean a normal end.
    with listener, contextlib.suppress(KeyboardInterrupt), _sigterm_like_sigint():
        on_ready(f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run(sockets=[listener])


@contextlib.contextmanager
def _sigterm_like_sigint() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
