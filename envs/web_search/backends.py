"""Search backends by name, and two that are made of others: one stands in for another, one remembers."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from importlib.metadata import entry_points
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import JsonValue, TypeAdapter, ValidationError

from ovd_gym.envs.web_search.base import Hit, SearchBackend, SearchOutage, bound_to, tell_update
from ovd_gym.envs.web_search.engines.limits import SYSTEM, Clock
from ovd_gym.errors import ConfigError, DataError, unknown
from ovd_gym.plugins import check_options
from ovd_gym.records import Task

__all__ = ["BUILT_IN", "ENTRY_POINTS", "BackendSpec", "CachedBackend", "FailoverBackend", "make_backend"]

B = TypeVar("B")
T = TypeVar("T")
BackendSpec = str | Mapping[str, Any] | SearchBackend
"""Whatever :func:`make_backend` takes."""

ENTRY_POINTS = "ovd_gym.search_backends"
"""Group of entry points under which another package offers a backend: ``name = "package.module:ClassName"``."""
_HERE = "ovd_gym.envs.web_search"
BUILT_IN: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "local": (f"{_HERE}.local:LocalIndex.open", ("path",)),
    "retriever": (f"{_HERE}.retriever:RetrieverClient", ("url",)),
    "brave": (f"{_HERE}.engines:BraveSearch", ()),
    "serper": (f"{_HERE}.engines:SerperSearch", ()),
    "tavily": (f"{_HERE}.engines:TavilySearch", ()),
    "searxng": (f"{_HERE}.engines:SearxngSearch", ("base_url",)),
    "ddgs": (f"{_HERE}.engines:DdgsSearch", ()),
    "elastic": (f"{_HERE}.elastic:ElasticBackend", ("client", "index")),
    "simulated": (f"{_HERE}.simulated:SimulatedSearch", ()),
    "failover": (f"{_HERE}.backends:FailoverBackend", ()),
    "cached": (f"{_HERE}.backends:CachedBackend", ()),
}
"""Where a backend is made, and the arguments that stand after its name: ``searxng:URL``, ``elastic:URL/INDEX``."""


def make_backend(spec: BackendSpec, **options: Any) -> SearchBackend:
    """The backend that ``spec`` names, made with ``options``.

    Args:
        spec: ``"local:PATH"``, ``"retriever:URL"``, ``"brave"``, ``"serper"``, ``"tavily"``, ``"searxng:URL"``,
            ``"ddgs"``, ``"elastic:URL/INDEX"``, the name of an entry point, ``"package.module:ClassName"``, a mapping
            with one of these as ``name`` and options beside it, or a backend (returned as it is).
        options: keyword arguments of the backend; they go before those in a mapping.

    Raises:
        ConfigError: an unknown name, an unknown or missing option, or something that is no backend.
    """
    if isinstance(spec, Mapping):
        rest = dict(spec)
        if not isinstance(name := rest.pop("name", None), str):
            raise ConfigError(f"a search backend needs a 'name', got the keys {sorted(spec)}")
        return make_backend(name, **rest | options)
    if not isinstance(spec, str):
        if options:
            raise ConfigError(f"options {sorted(options)} for a backend that is made already: give them to its class")
        return _checked(spec, spec)
    factory, arguments = _find(spec)
    label = spec if spec.partition(":")[0] not in BUILT_IN else spec.partition(":")[0]  # without its address
    check_options(f"search backend {label!r}", factory, arguments | options)
    return _checked(label, factory(**arguments | options))


def _find(spec: str) -> tuple[Callable[..., Any], dict[str, str]]:
    """What makes the backend, and the arguments that the spec itself gives."""
    name, colon, rest = spec.partition(":")
    if name in BUILT_IN:
        path, names = BUILT_IN[name]
        if colon and not names:
            raise ConfigError(f"{name!r} takes nothing after its name, got {spec!r}: give options by name")
        values = rest.rsplit("/", len(names) - 1) if colon else []
        if colon and (len(values) < len(names) or not all(values)):
            form = "/".join(names).upper().replace("CLIENT", "URL")
            raise ConfigError(f"expected '{name}:{form}', got {spec!r}")
        return _import(name, path), dict(zip(names, values, strict=False))
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    if spec in found:
        return _import(spec, found[spec]), {}
    if not colon or ("." not in name and importlib.util.find_spec(name or "-") is None):
        raise ConfigError(unknown("search backend", name, {*BUILT_IN, *found}) + ", or 'package.module:ClassName'")
    return _import(spec, spec), {}


def _import(spec: str, path: str) -> Callable[..., Any]:
    """The class at ``path`` or a class method of it; nothing else is ever called, whatever a configuration may name."""
    module, _, attribute = path.partition(":")
    try:
        factory = attrgetter(attribute)(importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot import search backend {spec!r} from {path!r}: {error}") from error
    owner = factory if isinstance(factory, type) else getattr(factory, "__self__", None)
    if not (isinstance(owner, type) and callable(getattr(owner, "search", None))):
        raise ConfigError(f"search backend {spec!r}: {path!r} is no class with a method search")
    return cast(Callable[..., Any], factory)


def _checked(spec: object, backend: Any) -> SearchBackend:
    if isinstance(getattr(backend, "name", None), str) and all(
        callable(getattr(backend, method, None)) for method in ("search", "describe", "close")
    ):
        return cast(SearchBackend, backend)
    what = f"{spec!r} made a" if isinstance(spec, str) else "got a"
    raise ConfigError(f"{what} {type(backend).__name__}: expected a SearchBackend (name, search, describe, close)")


class FailoverBackend:
    """Asks the first backend; after an outage the next one. A backend that failed goes last for a while.

    Args:
        backends: in order of preference; backends or what :func:`make_backend` takes.
        rest_s: how long a backend that failed is asked only after the others, in seconds.
        clock: time, for tests.

    Raises:
        ConfigError: no backends.
    """

    name = "failover"

    def __init__(self, backends: Sequence[BackendSpec], *, rest_s: float = 60.0, clock: Clock = SYSTEM) -> None:
        if isinstance(backends, str) or not backends:
            raise ConfigError(f"failover needs a list of backends, got {backends!r}")
        self.backends = tuple(make_backend(backend) for backend in backends)
        self._rest_s, self._clock = rest_s, clock
        self._back_at = [clock.now()] * len(self.backends)

    def search(self, query: str, top_k: int) -> list[Hit]:
        """The first answer; ``Hit.source`` says whose it is.

        Raises:
            ToolError: of the backend that was asked: a bad query is one for all of them.
            SearchOutage: all failed; lists why.
        """
        return self._first(lambda backend: backend.search(query, top_k))

    def describe(self) -> Mapping[str, JsonValue]:
        """All backends in order; which of them answered is known of each hit alone."""
        return {"kind": self.name, "backends": [dict(backend.describe()) for backend in self.backends]}

    def for_task(self, task: Task) -> FailoverBackend:
        """The same, with each backend as ``task`` is to see it."""
        return _copy(self, backends=tuple(bound_to(backend, task) for backend in self.backends))

    def at_update(self, updates: int) -> None:
        """Tell all."""
        for backend in self.backends:
            tell_update(backend, updates)

    def close(self) -> None:
        """Close all."""
        for backend in self.backends:
            backend.close()

    def _first(self, ask: Callable[[SearchBackend], T]) -> T:
        outages = []
        now = self._clock.now()
        for i in sorted(range(len(self.backends)), key=lambda i: self._back_at[i] > now):
            try:
                return ask(self.backends[i])
            except SearchOutage as outage:
                self._back_at[i] = self._clock.now() + self._rest_s
                outages.append(f"{self.backends[i].name} ({outage})")
        raise SearchOutage(f"all {len(outages)} backends failed: {'; '.join(outages)}")

    def __getattr__(self, name: str) -> Any:
        if name in _CORPUS and all(hasattr(backend, name) for backend in self.backends):
            return lambda ids: self._first(lambda backend: getattr(backend, name)(ids))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _copy(original: B, /, **changed: Any) -> B:
    """``original`` with some attributes ``changed``; it shares all others."""
    copied = object.__new__(type(original))
    copied.__dict__.update(original.__dict__, **changed)
    return copied


_CORPUS = ("passage", "passages")
"""The methods of a closed corpus; a wrapper has them if what it wraps has."""
_HITS = TypeAdapter(list[Hit])


class CachedBackend:
    """Remembers answers, on disk or in memory; never failures. Share the file among processes as you like.

    An answer is found by what the backend says of itself (``describe()``), the query and ``top_k``: a changed setting
    or corpus never gets the answers of another. Answers do not age; delete the file to ask anew.

    Args:
        backend: a backend, or what :func:`make_backend` takes.
        path: an SQLite file, made if need be; None: in memory.

    Raises:
        DataError: ``path`` is no such file.
    """

    name = "cached"

    def __init__(self, backend: BackendSpec, path: str | Path | None = None) -> None:
        self.backend = make_backend(backend)
        self.path = path
        self._lock = threading.Lock()
        try:
            self._database = sqlite3.connect(path or ":memory:", timeout=30.0, check_same_thread=False)
            with self._database as database:
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, hits BLOB) WITHOUT ROWID")
        except sqlite3.Error as error:
            raise DataError(f"{path}: no cache of searches ({error}): name another file") from error

    def search(self, query: str, top_k: int) -> list[Hit]:
        """The remembered answer, or the backend's.

        Raises:
            ToolError, SearchOutage: of the backend; SearchOutage also when the disk fails.
        """
        key = self._key(query, top_k)
        found = self._execute("SELECT hits FROM answers WHERE key = ?", key)
        if found:
            try:
                return _HITS.validate_json(found[0][0])
            except ValidationError as error:
                raise SearchOutage(f"the cache of searches is damaged: delete {self.path}") from error
        hits = self.backend.search(query, top_k)
        self._execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, _HITS.dump_json(hits))
        return hits

    def describe(self) -> Mapping[str, JsonValue]:
        """The backend's own: remembered answers are its answers."""
        return self.backend.describe()

    def for_task(self, task: Task) -> CachedBackend:
        """The same, with the backend as ``task`` is to see it."""
        return _copy(self, backend=bound_to(self.backend, task))

    def at_update(self, updates: int) -> None:
        """Tell the backend."""
        tell_update(self.backend, updates)

    def close(self) -> None:
        """Close the file and the backend."""
        with self._lock:
            self._database.close()
        self.backend.close()

    def _key(self, query: str, top_k: int) -> str:
        parts = json.dumps([self.backend.describe(), query, top_k], sort_keys=True, default=dict)
        return hashlib.sha256(parts.encode()).hexdigest()

    def _execute(self, statement: str, *values: str | bytes) -> list[Any]:
        try:
            with self._lock, self._database as database, closing(database.execute(statement, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            raise SearchOutage(f"the cache of searches failed ({error})") from error

    def __getattr__(self, name: str) -> Any:
        if name in _CORPUS:
            return getattr(self.backend, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.path)
