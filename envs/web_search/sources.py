"""What a search environment stands on, from short specs: questions, a backend and a reader that belong together.

Several environments in one process share a world and its index.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from ovd_gym.envs.web_search.base import ClosedCorpus, PageReader, SearchBackend
from ovd_gym.errors import ConfigError, unknown
from ovd_gym.records import Task

if TYPE_CHECKING:
    from ovd_gym.envs.web_search.world import World

__all__ = ["WORLD", "backend_of", "questions", "reader_of", "require_backend"]

WORLD = "world"
"""The fictional world, as questions and as a backend: needs nothing but this package."""


def questions(spec: str | Sequence[Task], options: Mapping[str, Any]) -> Sequence[Task]:
    """The tasks of ``spec``: tasks, or what :func:`~ovd_gym.envs.web_search.datasets.load_questions` takes.

    For ``"world"`` the options are those of :meth:`World.tasks <ovd_gym.envs.web_search.world.World.tasks>` with
    ``world_seed`` and ``size`` beside them.
    """
    if not isinstance(spec, str):
        if options:
            raise ConfigError("task_options belong to tasks given by name; these are given as a sequence")
        return spec
    if spec == WORLD:
        rest = dict(options)
        world = _world(**_world_options(rest))
        try:
            return world.tasks(**rest)
        except TypeError as error:
            raise ConfigError(f"task_options {sorted(options)}: {error}") from error
    from ovd_gym.envs.web_search.datasets import load_questions

    return load_questions(spec, **options)


def require_backend(spec: object, tasks: object) -> None:
    """Raise ConfigError if the questions ``tasks`` need a backend and ``spec`` is none; nothing is loaded to find out.

    An unknown name passes: :func:`questions` says which there are.
    """
    from ovd_gym.envs.web_search.datasets import BENCHMARKS

    named = isinstance(tasks, str)
    if spec is None and (not named or tasks in BENCHMARKS or str(tasks).endswith((".jsonl", ".jsonl.gz"))):
        which = f"the questions {tasks!r} need" if named else "these questions need"
        raise ConfigError(
            f"{which} a search backend, and none was given: set the option backend to local:PATH (an index that "
            "`ovd-gym index build` made), retriever:URL, searxng:URL, brave or another, for an evaluation with --env "
            "'ovd_gym/Search-v0 backend=local:PATH'. Only 'world' and 'closed:NAME' bring their own"
        )


def backend_of(
    spec: str | Mapping[str, Any] | SearchBackend | None, tasks: object, task_options: Mapping[str, Any]
) -> tuple[SearchBackend, bool]:
    """The backend, and whether it was made for the caller, who then has to close it.

    Args:
        spec: a backend or what :func:`~ovd_gym.envs.web_search.backends.make_backend` takes; ``"world"`` with
            ``world_seed``, ``size`` and ``port``; None is the world that the questions are about, or the passages
            beside a closed set. With a port the world is also served there, on this machine, as a web site whose pages
            link to each other.
        tasks, task_options: as given to :func:`questions`.
    """
    if spec is None:
        if isinstance(tasks, str) and tasks.startswith("closed:"):
            return _passages(str(task_options["data_folder"])), False
        require_backend(spec, tasks)
        return _index(**_world_options(dict(task_options))), False
    name, options = (spec.get("name"), dict(spec)) if isinstance(spec, Mapping) else (spec, {})
    if name == WORLD:
        options.pop("name", None)
        chosen, port = _world_options(options), options.pop("port", None)
        if options:
            raise ConfigError(unknown("option of backend 'world':", min(options), ("world_seed", "size", "port")))
        return (_index(**chosen) if port is None else _site(**chosen, port=port)), False
    from ovd_gym.envs.web_search.backends import make_backend

    return make_backend(spec), isinstance(spec, str | Mapping)


def reader_of(spec: str | Mapping[str, Any] | PageReader | None, backend: SearchBackend) -> tuple[PageReader, bool]:
    """The reader, and whether it was made for the caller, who then has to close it.

    Args:
        spec: a reader; ``"corpus"``, the documents of ``backend`` alone; ``"web"``, these and the pages of the web; a
            mapping with one of these as ``name`` and, for the web, the options of
            :func:`~ovd_gym.envs.web_search.reader.web_reader` beside it; None: the backend's own reader if it brings
            one, else the corpus where it has one, else the web.
    """
    if spec is not None and not isinstance(spec, str | Mapping):
        return _checked(spec), False
    if spec is None and (own := getattr(backend, "reader", None)):
        return own(), True
    corpus = cast(ClosedCorpus, backend) if callable(getattr(backend, "passage", None)) else None
    options = dict(spec) if isinstance(spec, Mapping) else {"name": spec or ("corpus" if corpus else "web")}
    name = str(options.pop("name", None))
    if name not in ("corpus", "web"):
        raise ConfigError(unknown("reader", name, ("corpus", "web")))
    if name == "corpus" and corpus is None:
        raise ConfigError(f"reader 'corpus': the backend {backend.name!r} has no documents of its own to read")
    if name == "corpus" and options:
        raise ConfigError(f"reader 'corpus' takes no options, got {', '.join(map(str, options))}")
    from ovd_gym.envs.web_search.reader import CorpusReader, web_reader

    web = web_reader(options) if name == "web" else None
    return (CorpusReader(corpus, web) if corpus else cast(PageReader, web)), True


def _checked(reader: PageReader) -> PageReader:
    if all(callable(getattr(reader, method, None)) for method in ("opens", "read", "close")):
        return reader
    raise ConfigError(f"got a {type(reader).__name__} as reader: expected a PageReader (opens, read, close)")


def _world_options(options: dict[str, Any]) -> dict[str, int]:
    """Takes what concerns the world itself out of ``options``."""
    return {"seed": options.pop("world_seed", 0), "size": options.pop("size", 1000)}


@functools.lru_cache(maxsize=4)
def _world(seed: int, size: int) -> World:
    from ovd_gym.envs.web_search.world import World

    return World.generate(seed, size)


@functools.lru_cache(maxsize=4)
def _index(seed: int, size: int) -> SearchBackend:
    from ovd_gym.envs.web_search.local import LocalIndex

    return LocalIndex.in_memory(_world(seed, size).passages())


@functools.lru_cache(maxsize=1)
def _passages(data_folder: str) -> SearchBackend:
    from ovd_gym.envs.web_search.datasets import closed_passages
    from ovd_gym.envs.web_search.local import LocalIndex

    return LocalIndex.in_memory(closed_passages(data_folder))


@functools.lru_cache(maxsize=4)
def _site(seed: int, size: int, port: int) -> SearchBackend:
    from ovd_gym.envs.web_search.world.site import SiteIndex, WorldSite

    return SiteIndex.of(WorldSite(_world(seed, size), port))
