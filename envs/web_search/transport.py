"""The way to a server and back: connections to checked numbers only, every answer within its limits.

Everything that is sent passes through :class:`Transport`, also what a cache asks again, so none of it can get around
the checks. An answer comes back whole, or not at all.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import certifi
import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from ovd_gym.envs.web_search.addresses import AddressPolicy
from ovd_gym.envs.web_search.base import ReadOutage
from ovd_gym.errors import ConfigError, ToolError

__all__ = ["Deadline", "FetchLimits", "Transport", "tls_context"]

CHUNK_BYTES = 65_536
ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")
"""Content codings that are undone; only these are asked for, and none within another."""


@dataclass(frozen=True)
class FetchLimits:
    """Limits on one reading. Raises :class:`~ovd_gym.errors.ConfigError` unless all are positive."""

    connect_s: float = 5.0
    read_s: float = 10.0
    """The longest silence of a server."""
    total_s: float = 20.0
    """Everything together: lookups, redirects, robots.txt, the last byte. Waiting for one's turn is not counted."""
    max_bytes: int = 10_000_000
    """Size of the body after decompression."""
    max_redirects: int = 5
    attempts: int = 2
    """Of each request, after a failure that may pass and within the total."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"fetch limit {name} must be positive, got {value}")


class Deadline:
    """A point in time, and how much is left until then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds

    def left(self, at_most: float = float("inf")) -> float:
        """Seconds left, or ``at_most``. Raises :class:`ReadOutage` when none are left."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise ReadOutage(f"the page took longer than {self.seconds:g} s")
        return min(left, at_most)

    def extend(self, seconds: float) -> None:
        """Leave out ``seconds`` that should not count."""
        self._ends += seconds


def tls_context(ca_file: str | None = None) -> ssl.SSLContext:
    """A context that checks certificates and names, against ``ca_file`` instead of the public authorities if given."""
    context = urllib3.util.ssl_.create_urllib3_context(cert_reqs=ssl.CERT_REQUIRED)
    context.load_verify_locations(ca_file or certifi.where())
    context.sslsocket_class = _TimedTLSSocket
    return context


class Transport(HTTPAdapter):
    """The connections of one reading.

    Args:
        policy: what may be connected to.
        limits: of each answer.
        deadline: of all of them together.
        context: from :func:`tls_context`.
        accept: called with every answer before its body is read; raises where that should not be.
        turn: called with the host before anything is sent; waits, and returns for how long (seconds).
    """

    def __init__(
        self,
        policy: AddressPolicy,
        limits: FetchLimits,
        deadline: Deadline,
        context: ssl.SSLContext,
        accept: Callable[[requests.Response], None],
        turn: Callable[[str], float],
    ) -> None:
        self.policy = policy
        self.limits = limits
        self.deadline = deadline
        self._accept = accept
        self._turn = turn
        self._context = context
        super().__init__(pool_connections=4, pool_maxsize=1)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **_: Any) -> None:
        """Make the pools whose connections :meth:`dial` opens."""
        self.poolmanager = _Pools(self, num_pools=connections, maxsize=maxsize, block=block, ssl_context=self._context)

    def cert_verify(self, *_: Any) -> None:
        """Nothing: the context holds the authorities, and its users cannot turn the check off."""

    def proxy_manager_for(self, proxy: str, **_: Any) -> Any:
        """Refuse: a proxy would choose the number to connect to."""
        raise ConfigError(f"pages are read without proxies, but one is set for {proxy.rpartition('@')[2]}")

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: Any = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send ``request`` and read the answer within the limits; its body is there already.

        Raises:
            ToolError: an address that is refused, too large a body, or what ``accept`` raises.
            ReadOutage: a limit of time.
            requests.RequestException: the connection broke.
        """
        self.deadline.extend(self._turn(urlsplit(request.url or "").netloc))
        wait = (self.deadline.left(self.limits.connect_s), self.deadline.left(self.limits.read_s))
        response = super().send(request, stream=True, timeout=wait, verify=True, proxies=dict(proxies or {}))
        try:
            self._accept(response)
            response._content = self._body(response) if response.status_code == 200 else b""
        finally:
            response.raw.close()
        return response

    def dial(self, host: str, port: int) -> _TimedSocket:
        """A connection to ``host``, at a number that was checked. Called by urllib3 for each new connection."""
        for ip in self.policy.resolve(host, port, self.deadline.left(self.limits.connect_s)):
            sock = _TimedSocket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM)
            sock.allowance = self.allowance
            try:
                sock.settimeout(self.deadline.left(self.limits.connect_s))
                sock.connect((ip, port))
            except OSError as error:
                sock.close()
                problem = error
            except BaseException:
                sock.close()
                raise
            else:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        raise ReadOutage(f"{host} could not be reached on port {port}: {problem}")

    def allowance(self) -> float:
        """Seconds that the next bytes may take. Without it, a server that drips would reset the clock each time."""
        return self.deadline.left(self.limits.read_s)

    def _body(self, response: requests.Response) -> bytes:
        limit = self.limits.max_bytes
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ENCODINGS:
            raise ToolError(f"{response.url} is compressed as {encoding[:40]!r}, which cannot be read")
        if (length := response.headers.get("Content-Length", "")).isdecimal() and int(length[:20]) > limit:
            raise ToolError(f"{response.url} is too large: {length[:20]} bytes, allowed are {limit}")
        body = bytearray()
        for chunk in response.raw.stream(CHUNK_BYTES, decode_content=True):
            body += chunk
            if len(body) > limit:
                raise ToolError(f"{response.url} is too large: more than {limit} bytes")
        return bytes(body)


class _TimedSocket(socket.socket):
    """A socket that asks before each reading how long that may take."""

    allowance: Callable[[], float] | None = None

    def recv_into(self, *arguments: Any) -> int:
        if self.allowance is not None:
            self.settimeout(self.allowance())
        return super().recv_into(*arguments)


class _TimedTLSSocket(ssl.SSLSocket):
    """The same on TLS."""

    allowance: Callable[[], float] | None = None

    def recv_into(self, *arguments: Any) -> int:
        if self.allowance is not None:
            self.settimeout(self.allowance())
        return super().recv_into(*arguments)


class _Plain(HTTPConnection):
    def __init__(self, transport: Transport, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._transport = transport

    def _new_conn(self) -> socket.socket:
        return self._transport.dial(self.host, self.port)


class _Secure(HTTPSConnection):
    """Host name, SNI and the certificate's name stay those of the address; only the number is chosen here."""

    def __init__(self, transport: Transport, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._transport = transport

    def _new_conn(self) -> socket.socket:
        return self._transport.dial(self.host, self.port)

    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, _TimedTLSSocket)
        self.sock.allowance = self._transport.allowance


class _Pools(urllib3.PoolManager):
    """Pools whose connections all go through one transport."""

    def __init__(self, transport: Transport, **options: Any) -> None:
        self._transport = transport
        super().__init__(**options)

    def _new_pool(self, scheme: str, *arguments: Any, **options: Any) -> urllib3.HTTPConnectionPool:
        pool = super()._new_pool(scheme, *arguments, **options)
        pool.ConnectionCls = partial(_Secure if scheme == "https" else _Plain, self._transport)  # type: ignore[assignment]
        return pool
