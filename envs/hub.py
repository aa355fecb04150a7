"""Data sets of the Hugging Face hub. Needs the ``datasets`` package, which is imported at the first call."""

from __future__ import annotations

import logging
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from ovd_gym.envs.jsonl import Row, row_of
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Record

__all__ = ["Benchmark", "benchmark_rows", "commit_of", "hub_rows"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_ON_HUB = re.compile(r"[\w.-]+/[\w.-]+")
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_PATIENCE_S = 5.0
"""For one attempt to reach the hub."""
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

    Where the hub cannot be reached, or is not to be (``HF_HUB_OFFLINE=1``), only what was kept from an earlier time is
    taken; that is found out in seconds, not by the many attempts of a download.

    Raises:
        ConfigError: the package is missing; DataError: the data set could not be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError('data sets of the hub need the datasets package: pip install "ovd-gym[train]"') from error
    remote = _ON_HUB.fullmatch(name) is not None and not Path(name).exists()
    try:
        with _what_was_kept() if remote and not _hub_answers() else nullcontext():
            rows = datasets.load_dataset(name, config, split=split, **options)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        why = _unreached() if isinstance(error, ConnectionError) else error
        raise DataError(f"cannot load data set {name!r} (config {config!r}, split {split!r}): {why}") from error
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


# Reaching the hub ---------------------------------------------------------------------------------------------


def _hub_answers() -> bool:
    """Whether something listens where the hub is, or the proxy before it; False as well where it is not to be asked.

    Tried twice, a second apart: one lost packet is no reason to give up.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    for pause_s in (1, 0):
        try:
            socket.create_connection(_way_to(constants.ENDPOINT), timeout=_PATIENCE_S).close()
        except OSError:
            time.sleep(pause_s)
        else:
            return True
    return False


def _way_to(url: str) -> tuple[str, int]:
    """Host and port that are connected to for ``url``: its own, or those of the proxy that the environment names."""
    target = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(target.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(str(target.hostname)):
        target = urlsplit(proxy if "//" in proxy else f"http://{proxy}")
    return str(target.hostname), target.port or _PORTS.get(target.scheme, 80)


@contextmanager
def _what_was_kept() -> Iterator[None]:
    """Inside, ``datasets`` reads what it has kept on disk, and asks nobody."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _unreached() -> str:
    """What was in the way, and what can be done about it."""
    from huggingface_hub import constants

    way = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"the hub at {constants.ENDPOINT} cannot be reached"
    return (
        f"{way}, and nothing was kept from an earlier time. Load it once where there is a network, let HF_ENDPOINT "
        "name a mirror, or name a copy: a folder (option repository of a benchmark, or hub:FOLDER), or a .jsonl file"
    )
