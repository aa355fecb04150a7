"""An index on disk: a folder that is never changed, only replaced as a whole.

::

    INDEX/manifest.json    what it is: format, corpus hash, count, analyser, and the files with their sizes
    INDEX/segments/        tantivy's files, memory-mapped by whoever searches

To build or to add means to make a new folder beside it (segments that stay are hard links) that takes its place in
the end. A build that is stopped leaves the old index as it was, and whoever has it open goes on reading it.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.index_query import ANALYSER
from ovd_gym.errors import DataError
from ovd_gym.records import Record, first_problem

__all__ = ["Manifest", "check_target", "read_manifest", "segments_of", "staged", "verify", "write_manifest"]

VERSION = 1
_FILE = "manifest.json"


FileName = Annotated[str, Field(pattern=r"^\.?\w[\w.-]*$")]
"""No way out of a folder: an index may come from elsewhere."""


class StoredFile(Record):
    """A file as it was written."""

    bytes: int
    crc32: int


class Manifest(Record):
    """What an index holds."""

    format: Literal["ovd-gym-index"] = "ovd-gym-index"
    version: int = VERSION
    documents: int
    corpus_hash: str
    """Of the set of passages: the same whatever their order, and whether built at once or added bit by bit."""
    fields: tuple[str, ...] = tuple(Passage.model_fields)
    analyser: str = ANALYSER
    tantivy: str
    files: dict[FileName, StoredFile]
    """By their names in ``segments``."""


def segments_of(path: Path) -> Path:
    """The folder of tantivy's own files."""
    return path / "segments"


def write_manifest(path: Path, documents: int, corpus_hash: str) -> None:
    """Describe the complete index in ``path``."""
    found = [file for file in sorted(segments_of(path).iterdir()) if not file.name.endswith(".lock")]
    files = {file.name: StoredFile(bytes=file.stat().st_size, crc32=_crc32(file)) for file in found}
    manifest = Manifest(documents=documents, corpus_hash=corpus_hash, tantivy=version("tantivy"), files=files)
    with (path / _FILE).open("w", encoding="utf-8") as file:
        file.write(manifest.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(path: Path) -> Manifest:
    """What is in ``path``. Raises DataError unless it is a whole index that this version understands."""
    if not path.exists():
        raise DataError(f"{path}: no such index; make one with `ovd-gym index build`")
    try:
        text = (path / _FILE).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: not an index: it has no readable {_FILE}") from error
    try:
        header = _Header.model_validate_json(text)
        if header.version > VERSION:
            raise DataError(
                f"{path}: index version {header.version} is of a newer ovd-gym, this one knows up to {VERSION}: upgrade"
            )
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"{path / _FILE}: not an index of ovd-gym: {first_problem(error)}") from error
    for name, file in manifest.files.items():
        found = segments_of(path) / name
        if not found.is_file() or found.stat().st_size != file.bytes:
            problem = f"has {found.stat().st_size} bytes, not {file.bytes}" if found.is_file() else "is missing"
            raise DataError(f"{path}: the index is damaged: segments/{name} {problem}; build it anew")
    return manifest


def verify(path: Path) -> Manifest:
    """Read the whole index and compare checksums. Raises DataError naming the first file that has changed."""
    manifest = read_manifest(path)
    for name, file in manifest.files.items():
        if _crc32(segments_of(path) / name) != file.crc32:
            raise DataError(f"{path}: the index is damaged: segments/{name} has changed; build it anew")
    return manifest


def check_target(path: Path, overwrite: bool) -> None:
    """Raise DataError unless an index may be made at ``path``. Nothing but an index is ever overwritten."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not (path / _FILE).is_file():
        raise DataError(f"{path}: something else than an index is there; choose another name")
    if not overwrite:
        raise DataError(f"{path}: the index exists already; add to it, or build with overwrite")


@contextmanager
def staged(path: Path, keep: bool = False) -> Iterator[Path]:
    """A folder that becomes ``path`` when the block ends well, and vanishes when it does not.

    Args:
        path: where the index is to be.
        keep: start with the files of the index that is there.

    Raises:
        DataError: another build of the same index is under way, or was killed.
    """
    work = path.with_name(f".{path.name}.building")
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
    except FileExistsError as error:
        raise DataError(f"{work}: another build is under way; if it was killed, remove this folder") from error
    except OSError as error:
        raise DataError(f"{path}: no index can be made there: {error.strerror}") from error
    try:
        if keep:
            shutil.copytree(segments_of(path), segments_of(work), copy_function=_link, ignore=_LOCKS)
        else:
            segments_of(work).mkdir()
        yield work
        _replace(path, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class _Header(Record):
    """The part of a manifest that every version has."""

    model_config = Record.model_config | {"extra": "ignore"}

    format: Literal["ovd-gym-index"]
    version: int


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


_LOCKS = shutil.ignore_patterns("*.lock")


def _link(source: str, target: str) -> None:
    """A hard link where the file system has them: tantivy writes each file once and never changes it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _replace(path: Path, work: Path) -> None:
    old = path.with_name(f".{path.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if path.exists():
        path.rename(old)
    try:
        work.rename(path)
    finally:
        if old.exists() and not path.exists():  # it did not work out, or Ctrl-C came between
            old.rename(path)
    shutil.rmtree(old, ignore_errors=True)
