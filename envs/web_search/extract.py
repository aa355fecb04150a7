"""From bytes to a page: the work is done in processes that are killed when it takes too long or too much memory."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib.util import find_spec

from ovd_gym.envs.processes import WorkerPool, WorkFailed, WorkTimeout
from ovd_gym.envs.web_search.base import Link, Page
from ovd_gym.envs.web_search.fetch import Fetched, content_kind
from ovd_gym.errors import ConfigError, ToolError

__all__ = ["ExtractLimits", "extract", "require_libraries"]

LIBRARIES = ("trafilatura", "pypdf", "bs4")

_LOG = logging.getLogger(__name__)
_POOL = WorkerPool("ovd_gym.envs.web_search.documents:worker", size=max(2, (os.cpu_count() or 2) // 2))


@dataclass(frozen=True)
class ExtractLimits:
    """Limits on reading one document. Raises :class:`~ovd_gym.errors.ConfigError` unless all are positive."""

    time_s: float = 10.0
    max_pages: int = 50
    """Of a PDF."""
    max_chars: int = 1_000_000
    max_links: int = 500

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"extraction limit {name} must be positive, got {value}")


def require_libraries() -> None:
    """Raises :class:`~ovd_gym.errors.ConfigError` when a library that reads pages is missing."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise ConfigError(f'reading pages needs {", ".join(missing)}: pip install "ovd-gym[search]"')


def extract(fetched: Fetched, limits: ExtractLimits) -> Page:
    """The page in ``fetched``.

    Raises :class:`~ovd_gym.errors.ToolError` for a document that is damaged, encrypted, without text, or takes more
    than the limits; :class:`~ovd_gym.errors.InfrastructureError` when no worker process can be started.
    """
    kind = content_kind(fetched.content_type, fetched.body)
    limit = (limits.max_pages, limits.time_s / 2) if kind == "pdf" else (fetched.url, fetched.charset, limits.max_links)
    try:
        title, text, links = _POOL.call(kind, fetched.body, limits.max_chars, *limit, timeout_s=limits.time_s)
    except WorkTimeout:
        raise ToolError(f"{fetched.url} could not be read in {limits.time_s:g} s: it is too large or tangled") from None
    except WorkFailed as error:
        _LOG.warning("%s: %s", fetched.url, error)
        tangled = error.died or error.args[0].startswith("MemoryError")
        raise ToolError(f"{fetched.url} cannot be read: {'it takes too much memory' if tangled else error}") from None
    if not text:
        raise ToolError(f"{fetched.url} holds no text: it may be drawn by a script, or a scanned image")
    return Page(
        url=fetched.url,
        title=title,
        text=text,
        links=tuple(Link(text=label, url=target) for label, target in links),
        content_type=fetched.content_type or {"html": "text/html", "pdf": "application/pdf"}.get(kind, "text/plain"),
    )
