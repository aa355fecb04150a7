"""Rows of a Hugging Face data set. Needs the ``datasets`` package, which is imported at the first call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ovd_gym.envs.jsonl import Row, row_of
from ovd_gym.errors import ConfigError, DataError

__all__ = ["hub_rows"]


def hub_rows(name: str, split: str, config: str | None = None, **options: Any) -> Iterator[Row]:
    """The rows of a part of a data set.

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
    for k, row in enumerate(rows):
        yield row_of(dict(row), f"{name}:{split}:{k}", f"{name}-{split}-{k}")
