"""The text side of the sandbox: source code in, what an interactive shell would show out."""

from __future__ import annotations

import ast
import reprlib
import warnings
from typing import TYPE_CHECKING

from ovd_gym.errors import ToolError

if TYPE_CHECKING:
    from pydantic_monty import MontyRuntimeError

__all__ = ["Printed", "describe", "show_last_value", "show_returned"]

MAX_ITEMS = 100
"""Items shown of a container that the code returned."""


class Printed:
    """What the code printed, up to ``limit`` characters."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[str] = []
        self._kept = 0
        self._cut = 0

    def add(self, stream: str, text: str) -> None:
        """Take in more output; standard output and error go to the same place, as on a terminal."""
        part = text[: self._limit - self._kept]
        self._kept += len(part)
        self._cut += len(text) - len(part)
        if part:
            self._parts.append(part)

    def before(self, ending: str) -> str:
        """The printed text, a note if it was cut, and ``ending`` on a line of its own."""
        text = "".join(self._parts)
        note = f"[cut: {self._cut} more characters were printed]" if self._cut else ""
        return "\n".join(filter(None, (text.removesuffix("\n"), note, ending)))


def show_last_value(code: str, limit: int) -> str:
    """``code`` with its last expression turned into text inside the sandbox.

    There its own ``__repr__`` applies, sets keep their order, and a value of any size is cut before it is sent. It is
    a conversion in an f-string, since the name ``repr`` may mean something else to the code.
    Raises :class:`~ovd_gym.errors.ToolError` for a syntax error.
    """
    body = _parse(code).body
    if not body or not isinstance(last := body[-1], ast.Expr):
        return code
    raw = code.encode()
    lines = [0]
    for line in raw.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    value = last.value
    assert value.end_lineno is not None
    assert value.end_col_offset is not None
    start = lines[value.lineno - 1] + value.col_offset
    end = lines[value.end_lineno - 1] + value.end_col_offset
    show = f"(lambda value: None if value is None else f'{{value!r}}'[:{limit}])(("
    return (raw[:start] + show.encode() + raw[start:end] + b"))" + raw[end:]).decode()


def show_returned(value: object, limit: int) -> str:
    """What the code ended with: the text of :func:`show_last_value`, or whatever a ``return`` at its top level gave.

    Such a value has left the sandbox whole; it is shown without following its depth or its size.
    """
    if isinstance(value, str):
        return value[:limit]
    if value is None:
        return ""
    shown = reprlib.Repr()
    shown.maxlist = shown.maxtuple = shown.maxdict = shown.maxset = shown.maxfrozenset = MAX_ITEMS
    shown.maxstring = shown.maxlong = shown.maxother = limit
    try:
        return shown.repr(value)[:limit]
    except ValueError:
        return f"<{type(value).__name__} with an integer too long to write>"


def _parse(code: str) -> ast.Module:
    try:
        if "\\" not in code:
            return ast.parse(code)
        with warnings.catch_warnings():  # an invalid escape is a warning; the filters are global, so only where needed
            warnings.simplefilter("ignore")
            return ast.parse(code)
    except SyntaxError as error:
        source = (error.text or "").strip()
        raise ToolError(f"SyntaxError: {error.msg} (line {error.lineno}: {source[:200]})") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ToolError(f"SyntaxError: the code cannot be parsed: {error or 'it is nested too deeply'}") from None


def describe(error: MontyRuntimeError, code: str) -> str:
    """``Type: message`` and the line of ``code`` it happened on."""
    text = error.display("type-msg")[:1000]
    frames = error.traceback()
    if not frames:
        return text
    own = [frame for frame in frames if frame.filename == frames[0].filename]
    line = own[-1].line
    sources = code.splitlines()
    return f"{text} (line {line}: {sources[line - 1].strip()[:200]})" if line <= len(sources) else text
