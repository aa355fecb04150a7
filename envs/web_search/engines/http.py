"""The HTTP that all engines share: requests that are bounded in time, size and number, and typed when they fail.

Nothing here repeats what a service or ``requests`` said: their texts, addresses and exceptions can hold the key.
Failures are values, not exceptions, for the same reason: no original hangs on to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from urllib.parse import urlsplit

import requests
import urllib3
from pydantic import JsonValue
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from ovd_gym.envs.web_search.engines.limits import Failure, Patience
from ovd_gym.envs.web_search.services import EnvKey

__all__ = ["HeaderKey", "HttpService", "Reply", "Request", "refused"]

RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_BYTES = 2_000_000
"""Of one answer, unpacked; a page of twenty results has about 100 kB."""
CHUNK_BYTES = 65_536


@dataclass(frozen=True)
class Request:
    """What to send: JSON in ``body`` makes it a POST."""

    url: str
    params: Mapping[str, str]
    body: Mapping[str, JsonValue] | None = None


@dataclass(frozen=True)
class Reply:
    """A complete answer."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    content: bytes


class HeaderKey(AuthBase):
    """Adds the key when a request is sent: it stands in no session, and no ``.netrc`` replaces it."""

    def __init__(self, header: str, key: EnvKey | None, prefix: str = "") -> None:
        self._header, self._key, self._prefix = header, key, prefix

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Called by ``requests`` with what is about to be sent."""
        if self._key is not None:
            request.headers[self._header] = self._prefix + self._key.reveal()
        return request


class HttpService:
    """Sends requests to one service. Safe to use from several threads."""

    def __init__(self, auth: HeaderKey, patience: Patience) -> None:
        self._auth, self._patience = auth, patience
        self._session = requests.Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))  # what threads share stays constant
        for scheme in ("https://", "http://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=64))

    def send(self, request: Request, refusal: Callable[[Reply], Failure | None]) -> Reply:
        """The answer to ``request``, status 200.

        Args:
            request: what to send.
            refusal: called with every other reply; the :class:`Failure` it means, or None for the general rule.

        Raises:
            BackendOutage: no such answer within the limits.
        """

        def attempt(deadline: float) -> Reply | Failure:
            reply = self._exchange(request, deadline)
            if isinstance(reply, Failure) or reply.status == 200:
                return reply
            return refusal(reply) or refused(reply)

        return self._patience.call(attempt)

    def close(self) -> None:
        """Give the connections back."""
        self._session.close()

    def _exchange(self, request: Request, deadline: float) -> Reply | Failure:
        timeout_s = min(self._patience.limits.timeout_s, deadline - self._patience.clock.now())
        try:
            with self._session.request(
                "GET" if request.body is None else "POST",
                request.url,
                params=request.params,
                json=request.body,
                auth=self._auth,
                headers={"Accept": "application/json"},
                timeout=max(0.001, timeout_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                return self._read(response, deadline)
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            return Failure("timeout", f"no answer within {timeout_s:g} s", again=True)
        except urllib3.exceptions.DecodeError:
            return Failure("malformed", "the answer cannot be unpacked")
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            return Failure("connection", f"the connection failed ({type(error).__name__})", again=True)

    def _read(self, response: requests.Response, deadline: float) -> Reply | Failure:
        content = bytearray()
        # read1 returns what has come so far: an answer that drips is seen to be late, a huge one to be huge.
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
            content += chunk
            if len(content) > MAX_BYTES:
                return Failure("malformed", f"an answer of more than {MAX_BYTES} bytes")
            if self._patience.clock.now() >= deadline:
                return Failure("timeout", f"no whole answer within {self._patience.limits.deadline_s:g} s")
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, bytes(content))


def refused(reply: Reply) -> Failure:
    """What a status other than 200 means where a service documents nothing else."""
    status = reply.status
    again = status in RETRIED_STATUSES
    if status in (401, 403, 407):
        return Failure("auth", f"status {status}: the key was refused")
    if status in (402, 429):
        return Failure("quota", f"status {status}: too many requests, or none left", again, _retry_after_s(reply))
    if 300 <= status < 400:
        host = urlsplit(reply.headers.get("location", "")).hostname or "another path"
        return Failure("http", f"status {status}: redirects are not followed; set base_url if {host} is right")
    return Failure("http", f"status {status}", again, _retry_after_s(reply))


def _retry_after_s(reply: Reply) -> float:
    """Seconds asked for by ``Retry-After`` (RFC 9110, 10.2.3): a number, or a date; 0 for none or nonsense."""
    value = reply.headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0
