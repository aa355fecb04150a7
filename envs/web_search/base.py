"""What search and reading are, whoever does them: a backend gives hits, a reader gives a page.

Both fail in two ways, and never by an empty answer: :class:`~ovd_gym.errors.ToolError` when the student asked for
something that cannot be had (an empty query, an address that is refused), :class:`SearchOutage` or
:class:`ReadOutage` when a service broke, timed out or refused *us*.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Protocol

from pydantic import Field, JsonValue

from ovd_gym.errors import InfrastructureError
from ovd_gym.records import Record, Task, Text

__all__ = ["CORPUS_SCHEME", "ClosedCorpus", "Hit", "Link", "Page", "PageReader", "Passage", "ReadOutage"]
__all__ += ["SearchBackend", "SearchOutage", "address_of", "bound_to", "tell_update"]

CORPUS_SCHEME = "doc:"
"""What the address of a document of a closed corpus begins with; its id follows."""


class SearchOutage(InfrastructureError):
    """A search backend gave no answer: down, timed out, out of quota, or talking nonsense. Never "no results"."""


class ReadOutage(InfrastructureError):
    """A page could not be read for a reason that is not the student's: the network is down, a time limit passed."""


class Passage(Record):
    """A document of a closed corpus."""

    id: str
    title: Text
    text: Text
    url: str = ""
    """Where it stands on the web, if it does: what a hit leads to where that can be read."""
    metadata: dict[str, JsonValue] = {}


class Hit(Record):
    """One search result."""

    id: str
    """The document's id within its backend; the address where there is nothing else."""
    title: Text
    url: str
    """What ``open`` takes; for a passage of a closed corpus see :func:`address_of`."""
    snippet: Text
    """The part around the match, plain text."""
    score: float | None = None
    """The backend's own score, higher is better; comparable within one answer alone."""
    source: str
    """Name of the backend."""


class Link(Record):
    """A link on a page."""

    text: Text
    url: str


class Page(Record):
    """What can be read at an address."""

    url: str
    """Where it was found in the end, after redirects."""
    title: Text
    text: Text
    links: tuple[Link, ...] = ()
    content_type: str = "text/html"


class SearchBackend(Protocol):
    """Finds documents. Safe to call from several threads.

    A backend may have more, and is then asked for it: the methods of a :class:`ClosedCorpus`; ``reader()``, a
    :class:`PageReader` for the pages that its hits lead to; ``for_task(task)``, the same backend as this task is to
    see it; ``at_update(updates)``, told before each training step how many learner updates there have been.
    """

    name: str

    def search(self, query: str, top_k: Annotated[int, Field(ge=1)]) -> list[Hit]:
        """At most ``top_k`` hits, best first; an empty list means that nothing matched.

        Raises:
            ToolError: an empty or overlong query.
            SearchOutage: no answer could be had.
        """

    def describe(self) -> Mapping[str, JsonValue]:
        """What makes its results comparable: kind, corpus hash, settings. Never a key or a password."""

    def close(self) -> None:
        """Give connections and files back."""


class PageReader(Protocol):
    """Reads pages. Safe to call from several threads."""

    def opens(self, url: str) -> bool:
        """Whether :meth:`read` would try ``url``. Nothing is looked up: true does not mean that a page is there."""
        return True

    def read(self, url: str) -> Page:
        """The page at ``url``.

        Raises:
            ToolError: an address that is malformed, refused, missing (404) or of a kind that cannot be read.
            ReadOutage: the service did not answer within its limits.
        """

    def close(self) -> None:
        """Give connections back."""


class ClosedCorpus(Protocol):
    """Passages by id: what ``open("doc:<id>")`` reads."""

    def passage(self, id: str) -> Passage:
        """The passage. Raises :class:`~ovd_gym.errors.ToolError` for an unknown id."""

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Several at once, in order."""


def address_of(id: str, url: str) -> str:
    """What leads to a passage: its own ``url`` if that is one of the web, else ``doc:<id>``.

    >>> address_of("r", "https://example.org/r"), address_of("r", "file:///etc/passwd")
    ('https://example.org/r', 'doc:r')
    """
    return url if url.startswith(("http://", "https://")) else f"{CORPUS_SCHEME}{id}"


def bound_to(backend: SearchBackend, task: Task) -> SearchBackend:
    """``backend`` as ``task`` is to see it: for most backends the same."""
    bind: Callable[[Task], SearchBackend] | None = getattr(backend, "for_task", None)
    return bind(task) if bind else backend


def tell_update(backend: SearchBackend, updates: int) -> None:
    """Tell ``backend``, if it wants to know, that there have been ``updates`` learner updates."""
    tell: Callable[[int], None] | None = getattr(backend, "at_update", None)
    if tell:
        tell(updates)
