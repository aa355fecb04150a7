"""Fetching against servers of our own: limits, redirects, pinned addresses, TLS, manners, the cache."""

from __future__ import annotations

import gzip
import json
import socket
import sqlite3
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.envs.web_search import addresses
from ovd_gym.envs.web_search.addresses import AddressPolicy
from ovd_gym.envs.web_search.base import ReadOutage
from ovd_gym.envs.web_search.fetch import Fetcher, FetchLimits, content_kind
from ovd_gym.envs.web_search.manners import Manners, Pace
from ovd_gym.envs.web_search.page_cache import CacheSettings
from ovd_gym.envs.web_search.transport import Deadline, Transport, tls_context
from ovd_gym.errors import ConfigError, ToolError

LIMITS = FetchLimits(connect_s=2, read_s=2, total_s=4, max_bytes=100_000, max_redirects=3, attempts=1)
HASTY = FetchLimits(connect_s=0.5, read_s=0.5, total_s=0.8, max_bytes=100_000, attempts=1)
SLACK_S = 1.0
"""What a busy machine may add to a limit of time."""
BLUNT = Manners(interval_s=0, robots=False)

# A key and a certificate for "pages.test" that serve here and nowhere else.
PEM = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg+4nD5h5juuLoYvgs
ga3IgeEKRGf9/TgC/mGCsX4pw12hRANCAAQ55oGyTs2UZWnQj+HqlIcklI+h+9di
TA0vZ4dOzxzamhDTbD6VxbnPClO3Nd/sGAyADMgm5hbaK4cTuVBAon8Y
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBlTCCATugAwIBAgIBATAKBggqhkjOPQQDAjAVMRMwEQYDVQQDDApwYWdlcy50
ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAVMRMwEQYDVQQD
DApwYWdlcy50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEOeaBsk7NlGVp
0I/h6pSHJJSPofvXYkwNL2eHTs8c2poQ02w+lcW5zwpTtzXf7BgMgAzIJuYW2iuH
E7lQQKJ/GKN6MHgwHQYDVR0OBBYEFD1EJEmjhIeK0ggfmUHxxq+AHUqZMB8GA1Ud
IwQYMBaAFD1EJEmjhIeK0ggfmUHxxq+AHUqZMA8GA1UdEwEB/wQFMAMBAf8wDgYD
VR0PAQH/BAQDAgKEMBUGA1UdEQQOMAyCCnBhZ2VzLnRlc3QwCgYIKoZIzj0EAwID
SAAwRQIhAO4VYBwDgpRpfmww4JKZJwlP4YoQ50S2uQCjeEX3KDwSAiAtQjryz1Ul
Yop7e1RbY6scCx2jV8saMid7PY7mPkRsKg==
-----END CERTIFICATE-----
"""

Answer = tuple[int, dict[str, str], bytes]


class Site:
    """A server on 127.0.0.1 that gives the answers in ``pages`` and notes what it was asked."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.pages: dict[str, Answer | Callable[[BaseHTTPRequestHandler], None]] = {}
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.names: list[str | None] = []
        """What TLS clients said they want (SNI)."""
        self.closing = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked.append((self.path, dict(self.headers)))
                page = site.pages.get(self.path, (404, {}, b"nothing here"))
                if callable(page):
                    page(self)
                    return
                status, headers, body = page
                self.send_response(status)
                for name, value in ({"Content-Type": "text/html", "Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None: ...  # clients that hang up are what is tested here

        self.server = Server(("127.0.0.1", 0), Handler)
        if context:
            context.sni_callback = lambda _, name, __: self.names.append(name)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port: int = self.server.server_port
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def drip(self, start: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
        """Send ``start``, then a byte every 20 ms until the client hangs up: never silent, never done."""

        def page(handler: BaseHTTPRequestHandler) -> None:
            handler.close_connection = True
            handler.wfile.write(start)
            while not self.closing.wait(0.02):
                handler.wfile.write(b"x")

        return page

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


@pytest.fixture
def other() -> Iterator[Site]:
    other = Site()
    yield other
    other.close()


@pytest.fixture
def pem(tmp_path: Path) -> str:
    path = tmp_path / "pages.pem"
    path.write_text(PEM)
    return str(path)


@pytest.fixture
def secure(pem: str) -> Iterator[Site]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    secure = Site(context)
    yield secure
    secure.close()


def fetcher(
    *sites: Site,
    limits: FetchLimits = LIMITS,
    manners: Manners = BLUNT,
    cache: CacheSettings | None = None,
) -> Fetcher:
    return Fetcher(AddressPolicy(frozenset(("127.0.0.1", site.port) for site in sites)), limits, manners, cache)


def resolver(*answers: str) -> tuple[Any, list[str]]:
    """A name service that gives one number after another, the last one forever, and the names it was asked for."""
    left, asked = list(answers), []

    def look_up(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        ip = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

    return look_up, asked


def open_loopback(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Let 127.0.0.1 play the public internet: for tests in which the list of exceptions must stay empty."""
    monkeypatch.setattr(addresses, "is_public", lambda ip: ip == "127.0.0.1")
    monkeypatch.setattr(addresses, "PORTS", frozenset({site.port}))


# Pages ------------------------------------------------------------------------------------------------------


def test_a_page_comes_with_its_address_type_charset_and_bytes(site: Site) -> None:
    site.pages["/a?b=%C3%A9"] = 200, {"Content-Type": "Text/HTML; charset=ISO-8859-1"}, b"caf\xe9"
    page = fetcher(site).fetch(site.url("/a?b=é#part"))
    assert page == (site.url("/a?b=%C3%A9"), "text/html", "iso-8859-1", b"caf\xe9")
    headers = site.asked[0][1]
    assert headers["Host"] == f"127.0.0.1:{site.port}"
    assert headers["User-Agent"].startswith("ovd-gym/")
    assert not headers.keys() & {"Cookie", "Authorization", "Referer"}


@pytest.mark.parametrize(
    ("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)]
)
def test_compressed_pages_are_unpacked(site: Site, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    site.pages["/"] = 200, {"Content-Encoding": encoding}, pack(b"text " * 1000)
    assert fetcher(site).fetch(site.url("/")).body == b"text " * 1000


@pytest.mark.parametrize(
    ("headers", "body", "message"),
    [
        ({"Content-Encoding": "br"}, b"x", "compressed as 'br'"),
        ({"Content-Encoding": "gzip, gzip"}, b"x", "compressed as 'gzip, gzip'"),
        ({"Content-Encoding": "gzip"}, b"no gzip at all", "compression cannot be undone"),
        ({"Content-Type": "image/png"}, b"x", "of type 'image/png' cannot be read"),
        ({"Content-Type": "application/zip"}, b"x", "of type 'application/zip'"),
        ({"Content-Type": "text/html", "Content-Length": "999999999"}, b"x", "too large: 999999999 bytes"),
        ({}, b"x" * 100_001, "too large"),
        ({"Content-Encoding": "gzip"}, gzip.compress(b"x" * 100_001), "too large: more than 100000 bytes"),
    ],
)
def test_what_cannot_be_read_is_refused_and_never_cached(
    site: Site, tmp_path: Path, headers: dict[str, str], body: bytes, message: str
) -> None:
    site.pages["/"] = 200, headers, body
    reader = fetcher(site, cache=CacheSettings(tmp_path / "pages.sqlite"))
    for _ in range(2):
        with pytest.raises(ToolError, match=message):
            reader.fetch(site.url("/"))
    assert len(site.asked) == 2
    reader.close()


def test_a_gzip_bomb_takes_little_memory(site: Site) -> None:
    site.pages["/"] = 200, {"Content-Encoding": "gzip"}, gzip.compress(b"\0" * 200_000_000, 1)
    reader = fetcher(site)
    tracemalloc.start()
    try:
        with pytest.raises(ToolError, match="too large"):
            reader.fetch(site.url("/"))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content_type", "body", "kind"),
    [
        ("text/html", b"", "html"),
        ("application/xhtml+xml", b"", "html"),
        ("text/markdown", b"", "text"),
        ("application/ld+json", b"", "text"),
        ("application/octet-stream", b"%PDF-1.4", "pdf"),
        ("", b"  <!DOCTYPE HTML>", "html"),
        ("", b"plain", "text"),
    ],
)
def test_kinds(content_type: str, body: bytes, kind: str) -> None:
    assert content_kind(content_type, body) == kind


def test_an_unnamed_binary_is_no_page() -> None:
    with pytest.raises(ToolError, match="readable are text/html"):
        content_kind("application/octet-stream", b"\x7fELF\0\0")


# Statuses and outages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (404, ToolError, "no page at"),
        (410, ToolError, "no page at"),
        (401, ToolError, "not given out"),
        (403, ToolError, "not given out"),
        (451, ToolError, "not given out"),
        (204, ToolError, "holds no page"),
        (300, ToolError, "holds no page"),
        (429, ReadOutage, "for now: the server answered 429"),
        (500, ReadOutage, "for now: the server answered 500"),
        (503, ReadOutage, "for now: the server answered 503"),
    ],
)
def test_statuses(site: Site, status: int, error: type[Exception], message: str) -> None:
    site.pages["/"] = status, {}, b""
    with pytest.raises(error, match=message):
        fetcher(site).fetch(site.url("/"))


def test_what_may_pass_is_tried_again(site: Site) -> None:
    def first_time(handler: BaseHTTPRequestHandler) -> None:
        site.pages["/"] = 200, {}, b"there"
        handler.send_error(503)

    site.pages["/"] = first_time
    assert fetcher(site, limits=FetchLimits(attempts=2)).fetch(site.url("/")).body == b"there"


def test_a_closed_port_is_an_outage() -> None:
    gone = Site()
    gone.close()
    with pytest.raises(ReadOutage, match="could not be reached"):
        fetcher(gone).fetch(gone.url("/"))


def test_a_body_cut_short_is_an_outage(site: Site) -> None:
    site.pages["/"] = 200, {"Content-Length": "100"}, b"only this"
    with pytest.raises(ReadOutage, match="broke the connection"):
        fetcher(site).fetch(site.url("/"))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"302 Found\r\nLocation: \xff\xfe", "makes no sense"),
        (b"302 Found\r\nLocation: /\xe9?\x80", "makes no sense"),
        (b"302 Found\r\nLocation: http://[", "makes no sense"),
        (b"302 Found\r\nLocation: http://\xc3\xa9:99999/", "redirects to"),
        (b"302 Found", "holds no page"),
        (b"200 OK\r\nContent-Length: 5\r\nContent-Length: 6", "makes no sense"),
        (b"200 OK\r\nContent-Type: \xff\xfe/;;charset*=x'y'%ff", "of type"),
        (b"200 OK\r\nContent-Type: text/html\r\nContent-Encoding: \xff", "compressed as"),
    ],
)
def test_an_answer_that_makes_no_sense_is_named(site: Site, head: bytes, message: str) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.0 " + head + b"\r\n\r\n")

    site.pages["/"] = answer
    with pytest.raises(ToolError, match=message):
        fetcher(site).fetch(site.url("/"))


def test_silence_is_an_outage(site: Site) -> None:
    def wait(_: BaseHTTPRequestHandler) -> None:
        site.closing.wait(10)

    site.pages["/"] = wait
    started = time.monotonic()
    with pytest.raises(ReadOutage, match="fell silent"):
        fetcher(site, limits=FetchLimits(read_s=0.2, total_s=5, attempts=1)).fetch(site.url("/"))
    assert time.monotonic() - started < 0.2 + SLACK_S


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n",
        b"",
    ],
    ids=["body", "header", "chunk", "status"],
)
def test_a_slow_drip_does_not_outlast_the_total(site: Site, start: bytes) -> None:
    site.pages["/"] = site.drip(start)
    began = time.monotonic()
    with pytest.raises(ReadOutage, match=r"longer than 0\.8 s"):
        fetcher(site, limits=HASTY).fetch(site.url("/"))
    assert time.monotonic() - began < HASTY.total_s + SLACK_S


# Redirects and addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site: Site, status: int) -> None:
    site.pages["/old/a"] = status, {"Location": "../new?x=1#y"}, b""
    site.pages["/new?x=1"] = 200, {}, b"new"
    assert fetcher(site).fetch(site.url("/old/a"))[::3] == (site.url("/new?x=1"), b"new")


def test_circles_and_long_chains_are_named(site: Site) -> None:
    site.pages["/a"] = 302, {"Location": "/b"}, b""
    site.pages["/b"] = 302, {"Location": "/a#again"}, b""
    with pytest.raises(ToolError, match=r"in a circle: .*/a -> .*/b -> .*/a$"):
        fetcher(site).fetch(site.url("/a"))
    for step in range(9):
        site.pages[f"/{step}"] = 302, {"Location": f"/{step + 1}"}, b""
    with pytest.raises(ToolError, match="redirects more than 3 times"):
        fetcher(site).fetch(site.url("/0"))
    assert site.paths == ["/a", "/b", "/0", "/1", "/2", "/3"]


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/",
        "//127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://x@127.0.0.1:{port}/",
        "file:///etc/passwd",
        "http://127.1:{port}/",
    ],
)
def test_a_redirect_into_the_network_is_refused(site: Site, other: Site, target: str) -> None:
    other.pages["/"] = 200, {}, b"internal"
    site.pages["/"] = 302, {"Location": target.format(port=other.port)}, b""
    with pytest.raises(ToolError, match="redirects to"):
        fetcher(site).fetch(site.url("/"))
    assert not other.asked


def test_a_redirect_to_a_name_inside_the_network_is_refused(
    site: Site, other: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_loopback(monkeypatch, site)
    look_up, asked = resolver("127.0.0.1", "10.0.0.1")
    site.pages["/"] = 302, {"Location": site.url("/", "inside.test")}, b""
    with pytest.raises(ToolError, match=r"inside\.test is refused"):
        Fetcher(AddressPolicy(resolver=look_up), LIMITS, BLUNT).fetch(site.url("/", "outside.test"))
    assert asked == ["outside.test", "inside.test"]
    assert len(site.asked) == 1


def test_the_transport_itself_refuses(site: Site) -> None:
    """Whatever asks it: nothing gets around the check by not asking for it."""
    policy, deadline = AddressPolicy(), Deadline(5)
    transport = Transport(policy, LIMITS, deadline, tls_context(), lambda _: None, lambda _: 0.0)
    with pytest.raises(ToolError, match="refused"):
        transport.dial("127.0.0.1", site.port)
    with pytest.raises(ToolError, match="refused"):
        AddressPolicy().resolve("127.0.0.1", 80, 1.0)
    with pytest.raises(ConfigError, match="without proxies"):
        transport.proxy_manager_for("http://user:secret@proxy.test:3128")
    assert not site.asked


def test_the_connection_goes_to_the_number_that_was_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to a public number when checked and to a private one when used (DNS rebinding)."""
    open_loopback(monkeypatch, site)
    look_up, asked = resolver("127.0.0.1", "10.0.0.1")
    site.pages["/"] = 200, {}, b"public"
    system = socket.getaddrinfo

    def numbers_only(host: str, *arguments: Any, **options: Any) -> Any:
        assert host == "127.0.0.1", f"{host} was resolved a second time"
        return system(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", numbers_only)
    reader = Fetcher(AddressPolicy(resolver=look_up), LIMITS, BLUNT)
    assert reader.fetch(site.url("/", "rebind.test")).body == b"public"
    assert asked == ["rebind.test"]
    assert site.asked[0][1]["Host"] == f"rebind.test:{site.port}"
    with pytest.raises(ToolError, match="refused"):
        reader.fetch(site.url("/", "rebind.test"))


def test_the_environment_sets_no_proxy(site: Site, other: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, other.url(""))
    site.pages["/"] = 200, {}, b"direct"
    assert fetcher(site).fetch(site.url("/")).body == b"direct"
    assert not other.asked


def test_cookies_end_with_the_reading_and_stay_with_their_host(site: Site, other: Site) -> None:
    site.pages["/"] = 302, {"Set-Cookie": "who=me", "Location": other.url("/", "localhost")}, b""
    other.pages["/"] = 200, {}, b"page"
    allowed = frozenset({("127.0.0.1", site.port), ("localhost", other.port)})
    look_up, _ = resolver("127.0.0.1")
    reader = Fetcher(AddressPolicy(allowed, resolver=look_up), LIMITS, BLUNT)
    for _ in range(2):
        reader.fetch(site.url("/"))
    assert [headers.get("Cookie") for _, headers in site.asked + other.asked] == [None] * 4


# TLS --------------------------------------------------------------------------------------------------------


def https(site: Site, host: str, ca_file: str | None) -> Fetcher:
    look_up, _ = resolver("127.0.0.1")
    return Fetcher(AddressPolicy(frozenset({(host, site.port)}), resolver=look_up), LIMITS, BLUNT, ca_file=ca_file)


def test_tls_keeps_the_name_in_sni_and_certificate(secure: Site, pem: str) -> None:
    secure.pages["/"] = 200, {}, b"safe"
    assert https(secure, "pages.test", pem).fetch(f"https://pages.test:{secure.port}/").body == b"safe"
    assert secure.names == ["pages.test"]
    with pytest.raises(ToolError, match="certificate is not valid"):
        https(secure, "other.test", pem).fetch(f"https://other.test:{secure.port}/")
    with pytest.raises(ToolError, match="certificate is not valid"):
        https(secure, "pages.test", None).fetch(f"https://pages.test:{secure.port}/")
    assert len(secure.asked) == 1


def test_a_slow_drip_over_tls_does_not_outlast_the_total(secure: Site, pem: str) -> None:
    secure.pages["/"] = secure.drip(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
    reader = https(secure, "pages.test", pem)
    reader.limits = HASTY
    began = time.monotonic()
    with pytest.raises(ReadOutage, match=r"longer than 0\.8 s"):
        reader.fetch(f"https://pages.test:{secure.port}/")
    assert time.monotonic() - began < HASTY.total_s + SLACK_S


def test_a_missing_ca_file_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ca_file .*none\.pem"):
        Fetcher(AddressPolicy(), LIMITS, BLUNT, ca_file=str(tmp_path / "none.pem"))


# Manners ----------------------------------------------------------------------------------------------------


def test_each_host_has_its_own_pace() -> None:
    now, slept = [100.0], list[float]()
    pace = Pace(2.0, 5.0, clock=lambda: now[0], sleep=slept.append)
    assert [pace.wait("a"), pace.wait("a"), pace.wait("b"), pace.wait("a")] == [0.0, 2.0, 0.0, 4.0]
    with pytest.raises(ReadOutage, match="asked too often"):
        pace.wait("a")
    now[0] = 107.0
    assert pace.wait("a") == 0.0
    assert slept == [2.0, 4.0]


def test_threads_share_the_pace(site: Site) -> None:
    times: list[float] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        times.append(time.monotonic())
        handler.send_error(404)

    site.pages["/"] = note
    reader = fetcher(site, manners=Manners(interval_s=0.1, robots=False))

    def read() -> None:
        with pytest.raises(ToolError):
            reader.fetch(site.url("/"))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 4
    assert max(times) - min(times) > 0.2


def test_waiting_for_a_turn_is_not_the_servers_time(site: Site) -> None:
    site.pages["/"] = 200, {}, b"x"
    limits = FetchLimits(connect_s=0.3, read_s=0.3, total_s=0.3, attempts=1)
    reader = fetcher(site, limits=limits, manners=Manners(interval_s=0.5, robots=False))
    assert [reader.fetch(site.url("/")).body for _ in range(2)] == [b"x", b"x"]


def test_robots_txt_is_respected_and_asked_once(site: Site) -> None:
    rules = b"User-agent: *\nDisallow: /secret\nUser-agent: ovd-gym\nDisallow: /private\n"
    site.pages |= {
        "/robots.txt": (200, {"Content-Type": "text/plain"}, rules),
        "/open": (200, {}, b"x"),
        "/to": (302, {"Location": "/private/x"}, b""),
    }
    polite = fetcher(site, manners=Manners(interval_s=0))
    assert polite.fetch(site.url("/open")).body == b"x"
    for path in ("/private/x", "/to"):
        with pytest.raises(ToolError, match=r"robots\.txt"):
            polite.fetch(site.url(path))
    assert site.paths == ["/robots.txt", "/open", "/to"]
    with pytest.raises(ToolError, match="no page"):
        fetcher(site).fetch(site.url("/private/x"))


def test_no_robots_txt_allows_and_a_broken_one_does_not(site: Site) -> None:
    site.pages["/"] = 200, {}, b"x"
    assert fetcher(site, manners=Manners(interval_s=0)).fetch(site.url("/")).body == b"x"
    site.pages["/robots.txt"] = 500, {}, b""
    with pytest.raises(ReadOutage, match=r"robots\.txt"):
        fetcher(site, manners=Manners(interval_s=0)).fetch(site.url("/"))


@pytest.mark.parametrize("options", [{"interval_s": -1}, {"max_wait_s": -1}, {"user_agent": "a\r\nb"}])
def test_bad_manners_are_a_configuration_error(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Manners(**options)


# The cache --------------------------------------------------------------------------------------------------


def test_pages_and_redirects_are_kept_and_failures_are_not(site: Site, tmp_path: Path) -> None:
    site.pages |= {
        "/old": (302, {"Location": "/new"}, b""),
        "/new": (200, {}, b"\xff\x00 bytes"),
        "/bad": (500, {}, b""),
    }
    settings = CacheSettings(tmp_path / "deep" / "pages.sqlite")
    first = fetcher(site, cache=settings)
    fresh = first.fetch(site.url("/old"))
    first.close()
    second = fetcher(site, cache=settings)
    assert second.fetch(site.url("/old")) == fresh == (site.url("/new"), "text/html", "", b"\xff\x00 bytes")
    assert site.paths == ["/old", "/new"]
    for path, error in (("/bad", ReadOutage), ("/none", ToolError)):
        for _ in range(2):
            with pytest.raises(error):
                second.fetch(site.url(path))
        assert site.paths.count(path) == 2
    second.close()


def test_what_is_asked_again_is_checked_again(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_loopback(monkeypatch, site)
    site.pages["/"] = 200, {"ETag": '"1"'}, b"page"
    look_up, _ = resolver("127.0.0.1", "127.0.0.1", "10.0.0.1")
    settings = CacheSettings(tmp_path / "pages.sqlite", keep_s=0.05)
    reader = Fetcher(AddressPolicy(resolver=look_up), LIMITS, BLUNT, settings)
    assert reader.fetch(site.url("/", "rebind.test")).body == b"page"
    time.sleep(0.1)
    site.pages["/"] = 304, {"ETag": '"1"'}, b""
    assert reader.fetch(site.url("/", "rebind.test")).body == b"page"
    assert site.asked[1][1]["If-None-Match"] == '"1"'
    time.sleep(0.1)
    with pytest.raises(ToolError, match=r"rebind\.test is refused"):
        reader.fetch(site.url("/", "rebind.test"))
    assert len(site.asked) == 2
    reader.close()


def test_a_cached_page_of_a_refused_address_is_not_given_out(site: Site, tmp_path: Path) -> None:
    site.pages["/"] = 200, {}, b"page"
    settings = CacheSettings(tmp_path / "pages.sqlite")
    reader = fetcher(site, cache=settings)
    reader.fetch(site.url("/"))
    reader.close()
    stranger = fetcher(cache=settings)
    with pytest.raises(ToolError, match="refused"):
        stranger.fetch(site.url("/"))
    stranger.close()


def test_the_cache_holds_data_and_no_code(site: Site, tmp_path: Path) -> None:
    site.pages["/"] = 200, {}, b"page"
    path = tmp_path / "pages.sqlite"
    reader = fetcher(site, cache=CacheSettings(path))
    reader.fetch(site.url("/"))
    reader.close()
    connection = sqlite3.connect(path)
    (value,) = connection.execute("SELECT value FROM responses").fetchone()
    connection.close()
    assert json.loads(value)["status_code"] == 200


def test_many_threads_share_a_cache(site: Site, tmp_path: Path) -> None:
    site.pages |= {f"/{n}": (200, {}, b"page %d" % n) for n in range(8)}
    reader = fetcher(site, cache=CacheSettings(tmp_path / "pages.sqlite"))
    bodies: list[bytes] = []

    def read() -> None:
        bodies.extend(reader.fetch(site.url(f"/{n}")).body for n in range(8))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(bodies) == sorted(b"page %d" % n for n in range(8) for _ in range(8))
    reader.close()


def test_a_cache_that_cannot_be_used_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "folder.d").mkdir()
    (tmp_path / "a.text").write_text("this is no data base " * 100)
    for path in (tmp_path / "folder.d", tmp_path / "a.text", tmp_path / "a.text" / "below.sqlite", tmp_path / "bare"):
        with pytest.raises(ConfigError, match="page cache"):
            fetcher(cache=CacheSettings(path))
    with pytest.raises(ConfigError, match="keep_s"):
        CacheSettings(tmp_path / "x.sqlite", keep_s=0)


@pytest.mark.parametrize("name", ["connect_s", "read_s", "total_s", "max_bytes", "max_redirects", "attempts"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        FetchLimits(**{name: 0})
