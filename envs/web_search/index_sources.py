"""Passages from files: JSON lines, Search-R1 corpora, folders of HTML. Read one by one, so that any number will do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup
from pydantic import ValidationError

from ovd_gym.envs.jsonl import Row, read_rows
from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.services import optional
from ovd_gym.errors import DataError
from ovd_gym.records import first_problem

__all__ = ["join_contents", "read_passages", "split_contents"]

_JSON_LINES = (".jsonl", ".jsonl.gz")
_HTML = (".html", ".htm")


def read_passages(*sources: str | Path) -> Iterator[Passage]:
    """The passages in ``sources``, in order.

    Args:
        sources: ``.jsonl`` or ``.jsonl.gz`` files with ``id``, ``title``, ``text`` and, if there is one, ``url``
            (further fields become metadata), or with ``id`` and ``contents`` as in Search-R1; ``.html`` files;
            folders of these, whose files are named by their path within it.

    Raises:
        DataError: when it comes to a row or file that is no passage, naming it.
    """
    for source in map(Path, sources):
        if not source.exists():
            raise DataError(f"{source}: no such file or folder")
        if source.is_dir():
            yield from _folder(source)
        elif source.name.lower().endswith(_JSON_LINES):
            yield from map(_passage, read_rows(source, "passages"))
        elif source.suffix.lower() in _HTML:
            yield _page(source, source.name)
        else:
            raise DataError(f"{source}: expected a folder or one of {', '.join(_JSON_LINES + _HTML)}")


def join_contents(title: str, text: str) -> str:
    r"""A passage as Search-R1 writes it: ``"Title"\ntext``, the title on one line."""
    return f'"{" ".join(title.split())}"\n{text}'


def split_contents(contents: str) -> tuple[str, str]:
    r"""Title and text of Search-R1 ``contents``.

    >>> split_contents('"Röntgen"\nHe saw bones.')
    ('Röntgen', 'He saw bones.')
    """
    title, _, text = contents.partition("\n")
    quoted = len(title) > 1 and title[0] == title[-1] == '"'
    return (title[1:-1] if quoted else title), text


def _passage(row: Row) -> Passage:
    fields = row.fields
    if "contents" in fields and "text" not in fields:
        title, fields["text"] = split_contents(str(fields.pop("contents")))
        fields.setdefault("title", title)
    known = {name: fields.pop(name) for name in ("id", "title", "text", "url") if name in fields}
    if isinstance(known.get("id"), int):
        known["id"] = str(known["id"])
    own = fields.pop("metadata", {})
    metadata = {**own, **fields} if isinstance(own, dict) else own
    try:
        return Passage(**known, metadata=metadata)
    except ValidationError as error:
        raise DataError(f"{row.where}: {first_problem(error)}") from error


def _folder(folder: Path) -> Iterator[Passage]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not any(path.name.lower().endswith(_JSON_LINES + _HTML) for path in files):
        raise DataError(f"{folder}: no {', '.join(_JSON_LINES + _HTML)} file in it")
    for path in files:
        if path.suffix.lower() in _HTML:
            yield _page(path, path.relative_to(folder).as_posix())
        elif path.name.lower().endswith(_JSON_LINES):
            yield from map(_passage, read_rows(path, "passages"))


def _page(path: Path, id: str) -> Passage:
    """The main content of a page; everything on it where no main content can be made out."""
    try:
        markup = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    soup = BeautifulSoup(markup, "lxml")
    heading = soup.title or soup.h1
    title = " ".join(heading.get_text(" ").split()) if heading else path.stem
    text = optional("trafilatura").extract(markup, include_comments=False, include_tables=True)
    if not text:
        for element in soup(["script", "style", "template", "noscript", "title"]):
            element.decompose()
        text = re.sub(r"\s*\n\s*", "\n", soup.get_text("\n")).strip()
    return Passage(id=id, title=title, text=text)
