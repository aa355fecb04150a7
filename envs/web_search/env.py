"""``SearchEnv``: answer a question by searching, opening pages and finding things on them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import JsonValue

from ovd_gym.envs.base import ToolEnv
from ovd_gym.envs.tools import tool
from ovd_gym.envs.web_search.base import (
    CORPUS_SCHEME,
    Hit,
    Page,
    PageReader,
    ReadOutage,
    SearchBackend,
    SearchOutage,
    bound_to,
    tell_update,
)
from ovd_gym.envs.web_search.metrics import cover_exact_match, exact_match, f1
from ovd_gym.envs.web_search.reading import find_in_text, paginate
from ovd_gym.envs.web_search.sources import WORLD, backend_of, questions, reader_of, require_backend
from ovd_gym.envs.web_search.timed import TimedCalls
from ovd_gym.errors import ConfigError, ToolError, unknown
from ovd_gym.records import Task, Trajectory

__all__ = ["SearchEnv"]

METRICS = {"em": exact_match, "f1": f1, "cover_em": cover_exact_match}
_TOP_K = 3
"""Results of a search that does not say how many; fewer where ``max_top_k`` is below."""
_RANK = re.compile(r"\[?(\d{1,4})\]?")


@dataclass(frozen=True)
class _OpenPage:
    """The page that ``find`` looks at."""

    address: str
    """What it was opened by."""
    page: Page
    parts: tuple[str, ...]


@dataclass
class _Trail:
    """What an episode has found so far."""

    began: float = 0.0
    """When it began, in seconds of the environment's clock."""
    hits: Sequence[Hit] = ()
    """Results of the last search."""
    ids: dict[str, str] = field(default_factory=dict)
    """Documents seen in results: id by address."""
    links: set[str] = field(default_factory=set)
    """Addresses of the links shown."""
    opened: _OpenPage | None = None
    visited: dict[str, None] = field(default_factory=dict)
    """Ids of the documents opened, in order."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the answer, once there is one."""


class SearchEnv(ToolEnv):
    """Questions answered by searching and reading; the reward is EM or F1 against the best gold answer.

    Without arguments: 100 questions about a fictional world of 1,000 pages, offline.

    Results name rank, title, source and address; everything from a page or a service is escaped, and what could pass
    for the frame around it is put on one line. A service that breaks or is late fails the episode
    (:class:`~ovd_gym.errors.InfrastructureError`); it is never an empty result.

    ``info`` of every step also holds ``em``, ``f1``, ``cover_em`` (None before the answer), ``seen`` and ``visited``:
    the ids of the documents found and opened so far, each once, in order.

    Args:
        tasks: tasks, "world", or what :func:`~ovd_gym.envs.web_search.datasets.load_questions` takes.
        task_options: options for it, such as ``{"count": 500, "seed": 1, "hops": (1, 2)}``.
        backend: a :class:`SearchBackend` or its spec (:func:`~ovd_gym.envs.web_search.backends.make_backend`); None
            is the fictional world that the questions are about.
        reader: a :class:`PageReader` or its spec (:func:`~ovd_gym.envs.web_search.sources.reader_of`): "corpus",
            "web", or None: what the backend brings, its own documents if it has some, else the web.
        reward: "em" or "f1".
        restrict_to_seen: whether ``open`` takes only results and links that were shown.
        max_top_k: most results of one search.
        page_chars: longest part of a page that ``open`` shows at once, in characters.
        max_links: most links shown with a part of a page.
        tool_timeout_s: deadline of one search or one reading, in seconds.
        max_hung: late calls that may be running still before further ones are refused at once.
        max_seconds: wall-clock budget of an episode; checked after every step ("time" in ``info["truncation"]``), so
            that an episode may exceed it by one tool deadline. None: no limit.
        clock: seconds on a clock that never goes back.
        action_format, max_turns and all others: as for :class:`~ovd_gym.envs.base.ToolEnv`.
    """

    canaries = "search"

    def __init__(
        self,
        tasks: str | Sequence[Task] = WORLD,
        *,
        task_options: Mapping[str, Any] | None = None,
        backend: str | Mapping[str, Any] | SearchBackend | None = None,
        reader: str | Mapping[str, Any] | PageReader | None = None,
        reward: Literal["em", "f1"] = "em",
        restrict_to_seen: bool = False,
        max_top_k: int = 10,
        page_chars: int = 3000,
        max_links: int = 10,
        tool_timeout_s: float = 30.0,
        max_hung: int = 4,
        max_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        if reward not in ("em", "f1"):
            raise ConfigError(unknown("reward", reward, ("em", "f1")))
        if min(max_top_k, page_chars) < 1 or max_links < 0 or (max_seconds is not None and max_seconds <= 0):
            raise ConfigError(f"limits must be positive: {max_top_k=}, {page_chars=}, {max_links=}, {max_seconds=}")
        require_backend(backend, tasks)
        super().__init__(questions(tasks, task_options or {}), **options)
        self._calls = TimedCalls(tool_timeout_s, max_hung)
        self.backend, self._owns_backend = backend_of(backend, tasks, task_options or {})
        self.reader, self._owns_reader = reader_of(reader, self.backend)
        self.reward = reward
        self.restrict_to_seen = restrict_to_seen
        self.max_top_k = max_top_k
        self.page_chars = page_chars
        self.max_links = max_links
        self.max_seconds = max_seconds
        self._clock = clock
        self._searched = self.backend
        self._trail = _Trail()

    # Tools ----------------------------------------------------------------------------------------------

    @tool
    def search(self, query: str, top_k: int = _TOP_K) -> str:
        """Search for documents; returns numbered results with title, source, address and a snippet.

        Args:
            query: what to search for.
            top_k: how many results.
        """
        if not query.strip():
            raise ToolError("the query is empty: say what to search for")
        if not 1 <= top_k <= max(self.max_top_k, _TOP_K):
            raise ToolError(f"top_k must be between 1 and {self.max_top_k}, got {top_k}")
        top_k = min(top_k, self.max_top_k)
        searched = self._searched
        found = self._calls.run(lambda: searched.search(query, top_k), "search", SearchOutage)[:top_k]
        self._trail.hits = hits = [self._openable(hit) for hit in found]
        self._trail.ids.update((hit.url, hit.id) for hit in hits)
        if not hits:
            return "No results. Try other words."
        return "\n\n".join(_result(rank, hit) for rank, hit in enumerate(hits, start=1))

    @tool
    def open(self, url: str | int, page: int = 1) -> str:
        """Open a document and read a part of it.

        Args:
            url: its address, or the number of one of the last results.
            page: which part of a long document.
        """
        address = self._address(str(url).strip())
        opened = self._trail.opened
        if opened is None or opened.address != address:
            found = self._calls.run(lambda: self.reader.read(address), "open", ReadOutage)
            opened = _OpenPage(address, found, paginate(found.text, self.page_chars))
            self._trail.opened = opened
            self._trail.visited[self._trail.ids.get(address, address)] = None
        if not 1 <= page <= len(opened.parts):
            raise ToolError(f"this document has {_count(len(opened.parts), 'page')}, got page {page}")
        return self._show(opened, page)

    @tool
    def find(self, text: str) -> str:
        """Find a text in the document that is open; returns the passages around it.

        Args:
            text: the words to look for, as they stand there.
        """
        if self._trail.opened is None:
            raise ToolError("no document is open: open one first")
        page = self._trail.opened.page
        findings, title = find_in_text(page.text, text), _line(page.title)
        if not findings.total:
            return f"Not found in {title}."
        head = f"Found {_count(findings.total, 'time')} in {title}:"
        return "\n".join([head, *(f"... {_line(match.passage)} ..." for match in findings.matches)])

    # What ToolEnv asks for ------------------------------------------------------------------------------

    def start_episode(self, task: Task) -> None:
        """Forget the last episode's results and pages; the clock starts."""
        self._searched = bound_to(self.backend, task)
        self._trail = _Trail(began=self._clock())

    def grade(self, task: Task, answer: str) -> float:
        """EM or F1 of ``answer`` against the best gold answer."""
        self._trail.metrics = {name: metric(answer, task.answers) for name, metric in METRICS.items()}
        return self._trail.metrics[self.reward]

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """As :meth:`ToolEnv.step`; ``info`` has more, see the class."""
        observation, reward, terminated, truncated, info = super().step(action)
        info |= {name: self._trail.metrics.get(name) for name in METRICS}
        info |= {"seen": list(dict.fromkeys(self._trail.ids.values())), "visited": list(self._trail.visited)}
        return observation, reward, terminated, truncated, info

    def describe(self) -> dict[str, JsonValue]:
        """As :meth:`ToolEnv.describe`, with the rule for answers and all that is said of the retriever."""
        return super().describe() | {
            "reward": self.reward,
            "answers": "normalised as by SQuAD 1.1, the best of the gold answers",
            "retriever": dict(self.backend.describe()),
            "reader": type(self.reader).__name__,
            "max_top_k": self.max_top_k,
            "page_chars": self.page_chars,
        }

    def measures(self, trajectory: Trajectory) -> dict[str, float]:
        """``em``, ``f1``, ``cover_em`` of the answer (0 without one); ``found``: a gold answer stood in what was read.

        ``found`` bounds what a student that only repeats what it reads could have got right.
        """
        answer, golds = trajectory.answer, trajectory.task.answers
        given = {name: 0.0 if answer is None else metric(answer, golds) for name, metric in METRICS.items()}
        read = "\n".join(step.observation for step in trajectory.steps[:-1])
        return given | {"found": cover_exact_match(read, golds)}

    def at_update(self, updates: int) -> None:
        """Tell the backend that there have been ``updates`` learner updates, if it wants to know."""
        tell_update(self.backend, updates)

    def shared_options(self) -> dict[str, Any]:
        """The tasks, the backend and the reader; this instance closes what it made itself."""
        return {"tasks": self.tasks, "backend": self.backend, "reader": self.reader}

    def close(self) -> None:
        """Close the backend and the reader if they were made here."""
        if self._owns_reader:
            self.reader.close()
        if self._owns_backend:
            self.backend.close()
        super().close()

    # Internals ------------------------------------------------------------------------------------------

    def _openable(self, hit: Hit) -> Hit:
        """``hit`` by an address that the reader opens: its own, else that of the document in the closed corpus."""
        document = f"{CORPUS_SCHEME}{hit.id}"
        if self.reader.opens(hit.url) or not self.reader.opens(document):
            return hit
        return hit.model_copy(update={"url": document})

    def _address(self, url: str) -> str:
        if rank := _RANK.fullmatch(url):
            number = int(rank[1])
            if not 1 <= number <= len(self._trail.hits):
                raise ToolError(
                    f"there is no result {number}: the last search gave {_count(len(self._trail.hits), 'result')}"
                )
            return self._trail.hits[number - 1].url
        if self.restrict_to_seen and url not in self._trail.ids and url not in self._trail.links:
            raise ToolError(f"{url[:200]!r} was not among the results and links so far: open one of those")
        return url

    def _show(self, opened: _OpenPage, number: int) -> str:
        """One part of a page, with the links whose text stands in it."""
        text, total = opened.parts[number - 1], len(opened.parts)
        where = f" (page {number} of {total})" if total > 1 else ""
        links = [link for link in opened.page.links if link.text.strip() and link.text in text][: self.max_links]
        self._trail.links.update(link.url for link in links)
        lines = [f"{_line(opened.page.title)} — {_line(opened.page.url)}{where}", text or "(no text)"]
        if links:
            lines += ["Links:", *(f"- {_line(link.text)}: {_line(link.url)}" for link in links)]
        return "\n".join(lines)

    def _exhausted(self) -> str | None:
        late = self.max_seconds is not None and self._clock() - self._trail.began >= self.max_seconds
        return super()._exhausted() or ("time" if late else None)


def _result(rank: int, hit: Hit) -> str:
    return f"[{rank}] {_line(hit.title)} — {_line(hit.source)} ({_line(hit.url)})\n{_line(hit.snippet)}"


def _line(text: str) -> str:
    """On one line: a title or snippet with line breaks could pass for a further result."""
    return " ".join(text.split())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
