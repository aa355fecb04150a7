"""The fictional world as a web site on this machine, for searchers that open pages and follow links."""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from ovd_gym.envs.web_search.addresses import AddressPolicy
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.envs.web_search.manners import Manners
from ovd_gym.envs.web_search.reader import CorpusReader, WebReader
from ovd_gym.envs.web_search.world.render import ROOT
from ovd_gym.envs.web_search.world.world import World
from ovd_gym.errors import ConfigError, ToolError

__all__ = ["SiteIndex", "WorldSite"]

_HOST = "127.0.0.1"
_IDLE_TIMEOUT_S = 30.0
"""A connection that says nothing for so long is closed."""


class WorldSite:
    """Serves ``/`` (a list of all pages) and ``/wiki/<id>``; anything else is a 404. Reachable from this machine only.

    :meth:`reader` reads it; any other reader refuses private addresses, unless it is told to allow :attr:`url`.

    >>> with WorldSite(World.generate(seed=0, size=60)) as site:
    ...     address = site.page_url("p00007")

    Args:
        world: what to serve.
        port: 0 takes any free one.

    Raises:
        ConfigError: the port cannot be had.
    """

    def __init__(self, world: World, port: int = 0) -> None:
        self.world = world
        try:
            self._server = _Server((_HOST, port), world)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"cannot serve the world on port {port}: {error}; port 0 takes any free one") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="world-site", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._server.server_port

    @property
    def url(self) -> str:
        """Where the site is, without a slash at the end."""
        return f"http://{_HOST}:{self.port}"

    def page_url(self, page_id: str) -> str:
        """Where a page is."""
        return f"{self.url}{ROOT}{page_id}"

    def reader(self) -> WebReader:
        """A reader of this site's pages and no others."""
        policy = AddressPolicy(frozenset({(_HOST, self.port)}), only_allowed=True)
        return WebReader(policy, manners=Manners(interval_s=0, robots=False))

    def close(self) -> None:
        """Stop serving and give the port back. May be called again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class SiteIndex(LocalIndex):
    """The pages of a site by full text: a hit leads to the page itself, where links lead on. Make one with :meth:`of`.

    >>> with WorldSite(World.generate(seed=0, size=60)) as site:
    ...     SiteIndex.of(site).search("university", 1)[0].url.startswith(site.url)
    True
    """

    site: WorldSite

    @classmethod
    def of(cls, site: WorldSite) -> Self:
        """An index in memory; the site stays the caller's."""
        made = cls.in_memory(site.world.passages(base_url=site.url))
        made.site = site
        return made

    def reader(self) -> CorpusReader:
        """A reader of the site, and of the same pages without links as ``doc:<id>``."""
        return CorpusReader(self, self.site.reader())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    """Many episodes may open pages at once."""

    def __init__(self, address: tuple[str, int], world: World) -> None:
        self.world = world
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_TIMEOUT_S

    def do_GET(self) -> None:
        status, page = self._page()
        body = page.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are the student's business."""

    def _page(self) -> tuple[HTTPStatus, str]:
        path = unquote(urlsplit(self.path).path)
        if path == "/":
            return HTTPStatus.OK, self.server.world.index_html()
        try:
            return HTTPStatus.OK, self.server.world.html(path.removeprefix(ROOT) if path.startswith(ROOT) else "")
        except ToolError:
            return HTTPStatus.NOT_FOUND, _NOT_FOUND


_NOT_FOUND = "<!DOCTYPE html>\n<html><head><title>Not found</title></head><body><h1>Not found</h1></body></html>\n"
