"""Which addresses a page may be read from: none inside the network this program runs in.

An address is checked twice. Its text is taken apart and put together again, so that what is checked is what is asked
for; then the numbers its host resolves to are checked, and the connection goes to those very numbers
(:mod:`ovd_gym.envs.web_search.transport`). A name that resolves to something else a moment later gains nothing.
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

import idna

from ovd_gym.envs.web_search.base import ReadOutage
from ovd_gym.errors import ConfigError, ToolError

__all__ = ["Address", "AddressPolicy", "is_public", "parse_address"]

MAX_URL = 2048
PORTS = frozenset({80, 443, 8080, 8443})
"""Ports of public web servers; other services answer to HTTP requests in ways that can do harm."""

_REFUSED_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this network, unspecified
            "10.0.0.0/8",
            "100.64.0.0/10",  # carrier-grade NAT; metadata of some clouds
            "127.0.0.0/8",
            "168.63.129.16/32",  # metadata of a cloud, at a public address
            "169.254.0.0/16",  # link-local; metadata of most clouds
            "172.16.0.0/12",
            "192.0.0.0/24",  # protocol assignments; metadata of a cloud
            "192.0.2.0/24",
            "192.88.99.0/24",  # relays into IPv6
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",  # multicast, reserved, broadcast
        ),
    )
)
"""https://www.iana.org/assignments/iana-ipv4-special-registry; the tables of Python 3.11 leave some of them out."""
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")
"""Everything else is loopback, local, multicast, reserved, or an IPv4 address in disguise (::ffff:0:0, 64:ff9b::)."""
_REFUSED_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo and others, examples, 6to4, examples
    )
)

_KEPT = "/%:@!$&'()*+,;=~-._"
"""What stands for itself in a path, besides letters and digits; '%' since the path may be encoded already."""
_UNSAFE = re.compile(r"[\x00-\x20\x7f-\x9f\\\s]")
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*")
_NUMERIC_END = re.compile(r"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)")
"""Hosts that resolvers and browsers read as IPv4 in one of its odd spellings (127.1, 0x7f000001, 2130706433)."""

Resolver = Callable[..., Iterable[tuple[Any, ...]]]
"""As :func:`socket.getaddrinfo`."""


@dataclass(frozen=True)
class Address:
    """A web address in one normal form."""

    scheme: str
    host: str
    """Lower-case ASCII name, or a number without brackets."""
    port: int
    path: str
    """With the query, without the fragment; percent-encoded."""

    @property
    def origin(self) -> str:
        """``scheme://host:port``; the port only where it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}" + ("" if self.port == _default_port(self.scheme) else f":{self.port}")

    @property
    def url(self) -> str:
        """The whole address."""
        return self.origin + self.path


def parse_address(url: str) -> Address:
    """The address in ``url``. Raises :class:`~ovd_gym.errors.ToolError` for whatever is no plain web address.

    >>> parse_address("HTTP://Example.COM.:80/a b?q=é#top".replace(" ", "%20")).url
    'http://example.com/a%20b?q=%C3%A9'
    """
    shown = repr(url[:200])
    url = url.strip()
    if len(url) > MAX_URL:
        raise ToolError(f"the address has {len(url)} characters, allowed are {MAX_URL}")
    if _UNSAFE.search(url):
        raise ToolError(f"the address {shown} holds blanks, backslashes or control characters: percent-encode them")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ToolError(f"{shown} is not a web address: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ToolError(f"{shown} is not a web address: it must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ToolError("the address holds a user name or password: write it without the part up to '@'")
    if port == 0 or not parts.hostname:
        raise ToolError(f"{shown} is not a web address: it names no {'host' if port != 0 else 'usable port'}")
    if ("[" in parts.netloc) != (":" in parts.hostname) or "%" in parts.hostname:
        raise ToolError(f"{shown} is not a web address: its host {parts.hostname!r} is malformed")
    path = quote(parts.path or "/", safe=_KEPT)
    query = "?" + quote(parts.query, safe=_KEPT + "?[]|") if parts.query else ""
    return Address(parts.scheme, _host(parts.hostname, shown), port or _default_port(parts.scheme), path + query)


def is_public(ip: str) -> bool:
    """Whether ``ip`` (a number, not a name) is an address on the open internet, for machines outside it too."""
    number = ipaddress.ip_address(ip)
    if isinstance(number, ipaddress.IPv4Address):
        return not any(number in network for network in _REFUSED_V4)
    return number in _GLOBAL_V6 and not any(number in network for network in _REFUSED_V6)


@dataclass(frozen=True)
class AddressPolicy:
    """What may be connected to.

    Raises :class:`~ovd_gym.errors.ConfigError` when an entry of ``allow`` is no host with a port.
    """

    allow: frozenset[tuple[str, int]] = frozenset()
    """(host, port) pairs that may be reached wherever they are: test servers, the server of a closed corpus."""
    only_allowed: bool = False
    """Refuse everything that ``allow`` does not name: no page of the live web."""
    resolver: Resolver = field(default=socket.getaddrinfo, repr=False)

    def __post_init__(self) -> None:
        try:
            allowed = frozenset((_host(host, repr(host)), _port(port)) for host, port in self.allow)
        except (ToolError, TypeError, ValueError) as error:
            raise ConfigError(f"allow must hold (host, port) pairs such as ('localhost', 8000): {error}") from None
        object.__setattr__(self, "allow", allowed)

    def check(self, address: Address) -> None:
        """Raises :class:`~ovd_gym.errors.ToolError` where no lookup is needed to see that it is refused."""
        if (address.host, address.port) in self.allow:
            return
        if self.only_allowed:
            raise ToolError(f"{address.origin} is not among the sites that can be read here")
        if address.port not in PORTS:
            ports = ", ".join(map(str, sorted(PORTS)))
            raise ToolError(f"{address.origin} is refused: web pages are read from ports {ports}, not {address.port}")
        if _is_number(address.host) and not is_public(address.host):
            raise _refusal(address.host)

    def resolve(self, host: str, port: int, timeout_s: float) -> tuple[str, ...]:
        """The numbers to connect to, in the resolver's order: every one of them is allowed.

        Raises:
            ToolError: there is no such host, or one of its numbers is refused.
            ReadOutage: the lookup failed or took longer than ``timeout_s``.
        """
        self.check(Address("http", host, port, "/"))
        ips = (host,) if _is_number(host) else self._lookup(host, port, timeout_s)
        if (host, port) not in self.allow and not all(map(is_public, ips)):
            raise _refusal(host)
        return ips

    def _lookup(self, host: str, port: int, timeout_s: float) -> tuple[str, ...]:
        """Resolve in a thread: the system's resolver knows no time limit."""
        answer: queue.SimpleQueue[tuple[str, ...] | OSError | UnicodeError] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                found = self.resolver(host, port, type=socket.SOCK_STREAM)
                answer.put(tuple(dict.fromkeys(str(entry[4][0]) for entry in found)))
            except (OSError, UnicodeError) as error:
                answer.put(error)

        threading.Thread(target=look_up, name="lookup", daemon=True).start()
        try:
            found = answer.get(timeout=timeout_s)
        except queue.Empty:
            raise ReadOutage(f"the name lookup of {host} took longer than {timeout_s:.1f} s") from None
        if found and isinstance(found, tuple):
            return found
        if not isinstance(found, OSError) or found.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
            raise ToolError(f"there is no host named {host}: check the address")
        raise ReadOutage(f"the name lookup of {host} failed: {found}")


def _refusal(host: str) -> ToolError:
    # The number a name resolves to is not told: it would map the network this program runs in.
    return ToolError(f"{host} is refused: it is not an address on the public internet")


def _host(host: str, shown: str) -> str:
    """The host in one spelling: a number as :mod:`ipaddress` writes it, or a name in ASCII."""
    if ":" in host:
        try:
            return str(ipaddress.IPv6Address(host))
        except ValueError:
            raise ToolError(f"{shown}: [{host}] is not an IPv6 address") from None
    try:
        name = host.lower() if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise ToolError(f"{shown}: {host!r} is not a host name: {error}") from None
    name = name.removesuffix(".")
    if _NUMERIC_END.fullmatch(name):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise ToolError(f"{shown}: write a numeric host as four decimal numbers, such as 93.184.215.14") from None
    if len(name) > 253 or not _NAME.fullmatch(name):
        raise ToolError(f"{shown}: {host[:100]!r} is not a host name")
    return name


def _is_number(host: str) -> bool:
    return ":" in host or _NUMERIC_END.fullmatch(host) is not None


def _port(port: int) -> int:
    if not isinstance(port, int) or not 0 < port < 65536:
        raise ValueError(f"{port!r} is not a port")
    return port


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80
