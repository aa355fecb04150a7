"""Data sets of the Hugging Face hub. Needs the ``datasets`` package, which is imported at the first call."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovd_gym.envs.jsonl import Row, row_of
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Record

__all__ = ["Benchmark", "benchmark_rows", "commit_of", "hub_rows"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOG = logging.getLogger(__name__)


class Benchmark(Record):
    """Where a benchmark lies on the hub."""

    repository: str
    config: str | None = None
    split: str
    """The part that results are reported on; some have no public test part."""
    revision: str | None = None
    """Commit of the repository. None takes its newest state: no commit has been checked for these lists. The one that
    was loaded is logged and stands in each task's metadata, ``loaded_from``, hence in trajectories and evaluations;
    give it as ``revision`` to load the same again."""


def benchmark_rows(
    name: str,
    home: Benchmark,
    *,
    split: str | None = None,
    revision: str | None = None,
    repository: str | None = None,
    **options: Any,
) -> Iterator[Row]:
    """The rows of the benchmark called ``name``; a row without an id of its own is ``name-0``, ``name-1``, ...

    Args:
        name: what it is called here.
        home: where it lies.
        split: another part than the usual one, such as "train".
        revision: commit of the repository; None takes the one in ``home``, if any.
        repository: another home of the same schema: a hub name, or a local folder.
        options: further arguments of :func:`datasets.load_dataset`.
    """
    options["revision"] = revision or home.revision
    rows = hub_rows(repository or home.repository, split or home.split, home.config, **options)
    yield from (row._replace(default_id=f"{name}-{n}") for n, row in enumerate(rows))


def hub_rows(name: str, split: str, config: str | None = None, **options: Any) -> Iterator[Row]:
    """The rows of a part of a data set.

    Each gets a field ``loaded_from`` with name, config, split and revision: the commit that was loaded, or what was
    asked for where that cannot be told. A data set of the hub that was not asked for by its commit is logged as a
    warning that names the commit.

    Args:
        name: name on the hub, or anything else :func:`datasets.load_dataset` takes.
        split: part of the data set.
        config: the data set's configuration, such as "main" for GSM8K.
        options: further arguments of :func:`datasets.load_dataset`, such as ``revision`` or ``data_files``.

    Raises:
        ConfigError: the package is missing; DataError: the data set could not be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError('data sets of the hub need the datasets package: pip install "ovd-gym[train]"') from error
    try:
        rows = datasets.load_dataset(name, config, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"cannot load data set {name!r} (config {config!r}, split {split!r}): {error}") from error
    commit, asked = commit_of(rows), options.get("revision")
    if not Path(name).exists() and not _COMMIT.fullmatch(asked or ""):
        _LOG.warning(
            "data set %s (revision %s): loaded commit %s; name a commit as revision to load the same again",
            name, asked or "newest", commit or "unknown",
        )  # fmt: skip
    source = {"name": name, "config": config, "split": split, "revision": commit or asked}
    for k, row in enumerate(rows):
        yield row_of({**row, "loaded_from": source}, f"{name}:{split}:{k}", f"{name}-{split}-{k}")


def commit_of(rows: Any) -> str | None:
    """The commit of the hub that the data set ``rows`` was loaded from; None for another source, or a streamed one.

    ``datasets`` keeps what it has loaded in a folder that is named by the commit.
    """
    files = getattr(rows, "cache_files", None) or [{"filename": ""}]
    folder = Path(files[0]["filename"]).parent.name
    return folder if _COMMIT.fullmatch(folder) else None
