"""One self-contained HTML file: a frame, its style and scripts, and data that is unpacked when it is looked at.

No text is trusted. Data stands in the file as compressed base64, which cannot hold a tag; the scripts put it on the
page as text only; and the page's own policy allows no request, no script or style but its own (by their hashes), and
no way from a string to markup (Trusted Types).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ovd_gym.errors import DataError
from ovd_gym.report.pages import template

__all__ = ["pack", "render_page", "write_page"]

SCRIPTS = (
    *("store.js", "elements.js", "charts.js", "overview.js"),
    *("episode.js", "reader.js", "search.js", "episodes.js", "main.js"),
)
"""In the order in which they stand in the page; the last starts it."""


def pack(value: Any) -> str:
    """JSON, deflated, in base64. Raises ValueError for a number that JSON cannot hold."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode("ascii"))).decode("ascii")


def render_page(title: str, first: Mapping[str, str], later: Mapping[str, str]) -> str:
    """The page, with its blocks of data by name, as :func:`pack` made them.

    ``first`` stands before the scripts, so that it can be drawn while ``later`` is still being read.
    """
    style, script = (Markup("\n" + text) for text in (_asset("style.css"), _scripts()))
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style)}",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )
    return template("report.html.j2").render(
        title=title, policy=policy, style=style, script=script, first=first, later=later
    )


def write_page(path: Path, title: str, first: Mapping[str, str], later: Mapping[str, str]) -> None:
    """Write the page to ``path``, whole or not at all. Raises :class:`DataError` if that is not possible."""
    staged = path.with_name(f".{path.name}.new")
    try:
        staged.unlink(missing_ok=True)
        # "x": a run folder from elsewhere may hold a link of that name to some other file.
        # Half of a surrogate pair can stand in a file's name, but not in UTF-8.
        with staged.open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(render_page(title, first, later))
        os.replace(staged, path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {error.strerror}") from None


@cache
def _asset(name: str) -> str:
    return (files("ovd_gym.report") / "assets" / name).read_text(encoding="utf-8")


def _scripts() -> str:
    return '"use strict";\n' + "\n".join(map(_asset, SCRIPTS))


def _hash(text: str) -> str:
    """``text`` as a source in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"
