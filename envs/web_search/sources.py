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

__all__ = ["WORLD", "backend_of", "questions", "reader_of"]

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


def backend_of(
    spec: str | Mapping[str, Any] | SearchBackend | None, tasks: object, task_options: Mapping[str, Any]
) -> tuple[SearchBackend, bool]:
    """The backend, and whether it was made for the caller, who then has to close it.

    Args:
        spec: a backend or what :func:`~ovd_gym.envs.web_search.backends.make_backend` takes; ``"world"`` with
            ``world_seed`` and ``size``; None is the world that the questions are about.
        tasks, task_options: as given to :func:`questions`.
    """
    if spec is None:
        if tasks != WORLD:
            raise ConfigError("these questions need a backend: give one, or a spec such as 'local:PATH'")
        return _index(**_world_options(dict(task_options))), False
    name, options = (spec.get("name"), dict(spec)) if isinstance(spec, Mapping) else (spec, {})
    if name == WORLD:
        options.pop("name", None)
        chosen = _world_options(options)
        if options:
            raise ConfigError(unknown("option of backend 'world':", min(options), ("world_seed", "size")))
        return _index(**chosen), False
    from ovd_gym.envs.web_search.backends import make_backend

    return make_backend(spec), isinstance(spec, str | Mapping)


def reader_of(spec: str | PageReader | None, backend: SearchBackend) -> tuple[PageReader, bool]:
    """The reader, and whether it was made for the caller, who then has to close it.

    Args:
        spec: a reader, ``"corpus"`` (the documents of ``backend``), ``"web"``, or None: the corpus where ``backend``
            has one, else the web.
    """
    if spec is not None and not isinstance(spec, str):
        return spec, False
    closed = callable(getattr(backend, "passage", None))
    name = spec or ("corpus" if closed else "web")
    if name == "corpus" and closed:
        from ovd_gym.envs.web_search.reader import CorpusReader

        return CorpusReader(cast(ClosedCorpus, backend)), True
    if name == "corpus":
        raise ConfigError(f"reader 'corpus': the backend {backend.name!r} has no documents of its own to read")
    if name != "web":
        raise ConfigError(unknown("reader", name, ("corpus", "web")))
    from ovd_gym.envs.web_search.reader import WebReader

    return WebReader(), True


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
