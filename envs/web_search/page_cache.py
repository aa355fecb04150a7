"""Pages on disk, so that the same address gives the same page for a while and no server is asked twice."""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ovd_gym.errors import ConfigError

if TYPE_CHECKING:
    from requests_cache import CachedSession
    from requests_cache.backends.sqlite import SQLiteCache

__all__ = ["CacheSettings", "PageCache"]

KEPT_STATUSES = (200, 301, 302, 303, 307, 308)
"""Pages and the redirects on the way to them; never a failure."""


@dataclass(frozen=True)
class CacheSettings:
    """Where pages are kept. Raises :class:`~ovd_gym.errors.ConfigError` for a time or name that cannot work."""

    path: Path
    """An SQLite file, named with its ending; made when missing. Threads and processes may share it."""
    keep_s: float = 86_400.0
    """After this time the server is asked whether the page has changed."""

    def __post_init__(self) -> None:
        if not self.keep_s > 0:
            raise ConfigError(f"keep_s of the page cache must be positive, got {self.keep_s}")
        if not self.path.suffix:  # requests-cache would add one, and use another file than the one named
            raise ConfigError(f"page cache {self.path}: name a file with an ending, such as pages.sqlite")


class PageCache:
    """The open cache. Only what was received whole and within the limits gets here: the transport sees to that.

    Raises :class:`~ovd_gym.errors.ConfigError` when the file cannot be used.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self._stores = {os.getpid(): _open(settings.path)}
        self._lock = threading.Lock()

    def session(self) -> CachedSession:
        """A fresh session over the shared file."""
        from requests_cache import CachedSession

        with self._lock:
            if os.getpid() not in self._stores:  # SQLite connections do not survive a fork
                self._stores[os.getpid()] = _open(self.settings.path)
            store = self._stores[os.getpid()]
        return CachedSession(
            backend=store,
            expire_after=self.settings.keep_s,
            allowable_codes=KEPT_STATUSES,
            allowable_methods=("GET",),
            ignored_parameters=(),
            autoclose=False,
        )

    def close(self) -> None:
        """Close this process's connections; the next session opens them again."""
        with self._lock:
            if store := self._stores.pop(os.getpid(), None):
                store.close()  # type: ignore[no-untyped-call]


def _open(path: Path) -> SQLiteCache:
    try:
        from requests_cache.backends.sqlite import SQLiteCache
    except ImportError as error:
        raise ConfigError('a page cache needs requests-cache: pip install "ovd-gym[search]"') from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # requests-cache waits without end for the lock of a file that it can never write; this finds out at once.
        with path.open("ab"):
            pass
        # JSON instead of the default, pickle: reading the file would run whatever somebody put there.
        return SQLiteCache(path, serializer="json", wal=True)
    except (OSError, sqlite3.Error) as error:
        raise ConfigError(f"page cache {path}: {error}; name a file that can be written, or remove this one") from error
