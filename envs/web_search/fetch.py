"""From an address to the bytes behind it: redirects, content types, statuses, the cache on disk."""

from __future__ import annotations

import dataclasses
import sqlite3
import ssl
import time
from collections.abc import Callable
from email.message import Message
from functools import partial
from typing import NamedTuple
from urllib.parse import urljoin

import requests
import urllib3

from ovd_gym.envs.web_search.addresses import Address, AddressPolicy, parse_address
from ovd_gym.envs.web_search.base import ReadOutage
from ovd_gym.envs.web_search.manners import Manners, Pace, Robots
from ovd_gym.envs.web_search.page_cache import CacheSettings, PageCache
from ovd_gym.envs.web_search.transport import Deadline, FetchLimits, Transport, tls_context
from ovd_gym.errors import ConfigError, ToolError

__all__ = ["FetchLimits", "Fetched", "Fetcher", "content_kind"]

READABLE = {
    "text/html": "html",
    "application/xhtml+xml": "html",
    "text/plain": "text",
    "text/markdown": "text",
    "text/x-markdown": "text",
    "application/json": "text",
    "application/pdf": "pdf",
}
UNNAMED = ("", "application/octet-stream", "binary/octet-stream")
"""Types that say nothing: the first bytes decide."""
REDIRECTS = (301, 302, 303, 307, 308)
LATER = (408, 425, 429)
"""Statuses below 500 that mean "not now"."""
ROBOTS_BYTES = 1_000_000
PAUSE_S = 0.5
"""Between two attempts."""


class Fetched(NamedTuple):
    """What was found at an address."""

    url: str
    """After redirects."""
    content_type: str
    """Lower case, without parameters; empty when the server named none."""
    charset: str
    """As the header says; empty when it does not."""
    body: bytes
    """Decompressed."""


class Fetcher:
    """Fetches pages within limits. Thread-safe: readings share the cache and the manners, never a connection.

    Args:
        policy: what may be connected to.
        limits: on each reading.
        manners: towards servers.
        cache: None keeps nothing.
        ca_file: certificate authorities to trust instead of the public ones.

    Raises:
        ConfigError: the cache or ``ca_file`` cannot be used.
    """

    def __init__(
        self,
        policy: AddressPolicy,
        limits: FetchLimits,
        manners: Manners,
        cache: CacheSettings | None = None,
        ca_file: str | None = None,
    ) -> None:
        self.policy = policy
        self.limits = limits
        self.manners = manners
        self._pace = Pace(manners.interval_s, manners.max_wait_s)
        self._robots = Robots(manners.user_agent)
        try:
            self._context = tls_context(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"ca_file {ca_file}: {error}") from error
        self._cache = PageCache(cache) if cache else None

    def fetch(self, url: str) -> Fetched:
        """What is at ``url``.

        Raises:
            ToolError: an address that is malformed or refused, no such page, a kind or size that cannot be read.
            ReadOutage: a limit of time, a broken connection, a server in trouble.
        """
        deadline = Deadline(self.limits.total_s)
        address, response = self._follow(parse_address(url), deadline, partial(_accept, url))
        if response.status_code != 200:
            raise _failure(response.status_code, address.url)
        return Fetched(address.url, *_content_type(response), response.content)

    def close(self) -> None:
        """Give the cache's file back."""
        if self._cache:
            self._cache.close()

    def _follow(
        self, address: Address, deadline: Deadline, accept: Callable[[requests.Response], None], robots: bool = False
    ) -> tuple[Address, requests.Response]:
        """The answer at the end of the redirects, and where that was. ``robots``: robots.txt itself is being read."""
        limits = dataclasses.replace(self.limits, max_bytes=ROBOTS_BYTES) if robots else self.limits
        transport = Transport(self.policy, limits, deadline, self._context, accept, self._pace.wait)
        seen: list[str] = []
        with self._session(transport) as session:
            while True:
                self.policy.check(address)
                if self.manners.robots and not robots:
                    self._robots.check(address, partial(self._robots_txt, deadline))
                seen.append(address.url)
                response = self._get(session, address.url, deadline)
                target = session.get_redirect_target(response)
                if target is None:
                    return address, response
                address = self._redirected(seen, target)

    def _redirected(self, seen: list[str], target: str) -> Address:
        try:
            address = parse_address(urljoin(seen[-1], target))
            self.policy.check(address)
        except (ToolError, ValueError) as error:
            raise ToolError(f"{seen[-1]} redirects to {target[:200]!r}: {error}") from None
        if address.url in seen:
            raise ToolError(f"{seen[0]} redirects in a circle: " + " -> ".join([*seen, address.url]))
        if len(seen) > self.limits.max_redirects:
            raise ToolError(f"{seen[0]} redirects more than {self.limits.max_redirects} times")
        return address

    def _get(self, session: requests.Session, url: str, deadline: Deadline) -> requests.Response:
        """One answer; tried again after what may pass, as long as there is time."""
        for attempt in range(1, self.limits.attempts + 1):
            try:
                response = _once(session, url, deadline)
                if not _passing(response.status_code):
                    return response
                problem = _failure(response.status_code, url)
            except ReadOutage as error:
                problem = error
            if attempt < self.limits.attempts:
                time.sleep(deadline.left(PAUSE_S))
        raise problem

    def _session(self, transport: Transport) -> requests.Session:
        """A session for one reading: its cookies end with it, and the environment sets no proxy or password."""
        session = self._cache.session() if self._cache else requests.Session()
        session.trust_env = False
        session.headers.clear()
        session.headers.update(
            {
                "User-Agent": self.manners.user_agent,
                "Accept": "text/html, application/xhtml+xml, application/pdf;q=0.9, text/*;q=0.8, */*;q=0.5",
                "Accept-Encoding": "gzip, deflate",
            }
        )
        session.adapters.clear()
        session.mount("http://", transport)
        session.mount("https://", transport)
        return session

    def _robots_txt(self, deadline: Deadline, url: str) -> str:
        _, response = self._follow(parse_address(url), deadline, lambda _: None, robots=True)
        return response.content.decode("utf-8", "replace") if response.status_code == 200 else ""


def content_kind(content_type: str, body: bytes) -> str:
    """``"html"``, ``"text"`` or ``"pdf"``. Raises :class:`~ovd_gym.errors.ToolError` for a body that is none of them.

    >>> content_kind("application/geo+json", b"{}")
    'text'
    >>> content_kind("", b"%PDF-1.7")
    'pdf'
    """
    kind = READABLE.get(content_type) or ("text" if content_type.endswith("+json") else None)
    if kind is None and content_type in UNNAMED:
        start = body[:1024].lstrip().lower()
        if start.startswith(b"%pdf-"):
            kind = "pdf"
        elif start.startswith((b"<!doctype html", b"<html")):
            kind = "html"
        elif b"\0" not in body[:65536]:
            kind = "text"
    if kind is None:
        readable = ", ".join(READABLE)
        raise ToolError(f"a page of type {content_type[:80] or 'unknown'!r} cannot be read; readable are {readable}")
    return kind


def _accept(url: str, response: requests.Response) -> None:
    """Raises before the download where the type is none that can be read."""
    if response.status_code == 200 and (content_type := _content_type(response)[0]) not in UNNAMED:
        content_kind(content_type, b"")


def _content_type(response: requests.Response) -> tuple[str, str]:
    """(type, charset) of the header, in lower case."""
    header = Message()
    header["Content-Type"] = response.headers.get("Content-Type", "").partition(",")[0]
    if "Content-Type" not in response.headers:
        return "", ""
    return header.get_content_type(), (header.get_content_charset("") or "")


def _once(session: requests.Session, url: str, deadline: Deadline) -> requests.Response:
    """One request; every way in which it can fail gets its name."""
    try:
        return session.get(url, allow_redirects=False)
    except (urllib3.exceptions.DecodeError, requests.exceptions.ContentDecodingError):
        raise ToolError(f"{url} is damaged: its compression cannot be undone") from None
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        deadline.left()  # raises where it was the total that ran out
        raise ReadOutage(f"{url} fell silent") from None
    except (
        ValueError,
        requests.exceptions.InvalidHeader,
    ) as error:  # requests takes every redirect apart, also a bad one
        raise ToolError(f"{url} gives an answer that makes no sense: {str(error)[:200]}") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        if _is_certificate_error(error):
            raise ToolError(f"{url} is refused: its certificate is not valid") from None
        deadline.left()
        raise ReadOutage(f"{url} broke the connection: {type(error).__name__}") from error
    except sqlite3.Error as error:
        raise ReadOutage(f"the page cache failed: {error}") from error


def _is_certificate_error(error: BaseException | None) -> bool:
    """Whether a bad certificate lies behind ``error``: libraries wrap it several times."""
    while error is not None:
        reason = getattr(error, "reason", None)
        if isinstance(error, ssl.SSLCertVerificationError) or isinstance(reason, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _passing(status: int) -> bool:
    return status >= 500 or status in LATER


def _failure(status: int, url: str) -> ToolError | ReadOutage:
    if _passing(status):
        return ReadOutage(f"{url} cannot be read for now: the server answered {status}")
    if status in (404, 410):
        return ToolError(f"there is no page at {url} (the server answered {status})")
    if 400 <= status < 500:
        return ToolError(f"{url} is not given out to this program (the server answered {status})")
    return ToolError(f"{url} holds no page (the server answered {status})")
