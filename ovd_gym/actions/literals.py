"""A reader of literals: Python's, and the notations of models that are almost Python's.

``ast.literal_eval`` is not used: its own documentation warns that a text can crash the interpreter with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ovd_gym.actions.reading import MAX_DEPTH, Unreadable

__all__ = ["PYTHON", "Notation", "read_keywords", "read_value"]

_BLANKS = re.compile(r"\s*")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)(?![\w.])")
_WORD = re.compile(r"[A-Za-z]\w*")
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\n": "", "b": "\b", "f": "\f", "0": "\0"}


def _unescape(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        code = match[1]
        if len(code) > 1:
            number = int(code[1:], 16)
            return chr(number) if number <= 0x10FFFF else match[0]
        return _ESCAPES.get(code, code if code in "\\'\"" else match[0])

    return _ESCAPE.sub(character, text)


@dataclass(frozen=True)
class Notation:
    """What differs between the notations."""

    string: re.Pattern[str]
    """A string with its quotes; the one group that matched is its content."""
    unescape: Callable[[str], str]
    keyword: re.Pattern[str]
    """A key (group 1) and the sign after it, in a call's arguments."""
    bare_keys: bool = False
    """Whether keys inside of objects are written like keywords instead of as strings."""

    def text(self, match: re.Match[str]) -> str:
        """The content of a string."""
        return self.unescape(next(group for group in match.groups() if group is not None))


PYTHON = Notation(
    string=re.compile(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""", re.DOTALL),
    unescape=_unescape,
    keyword=re.compile(r"\s*([^\W\d]\w{0,200})\s*="),
)


def read_keywords(text: str, position: int, end: str, notation: Notation = PYTHON) -> tuple[dict[str, Any], int]:
    """The keyword arguments from ``position`` up to the closing ``end``, and where that was.

    Raises :class:`Unreadable`.
    """
    arguments: dict[str, Any] = {}
    while (closed := _expect(text, position, end)) is None:
        if (key := notation.keyword.match(text, position)) is None:
            raise Unreadable("the tool call's arguments must be keyword arguments", position)
        arguments[key[1]], position = read_value(text, key.end(), notation)
        position = _separated(text, position, end)
    return arguments, closed


def read_value(text: str, position: int = 0, notation: Notation = PYTHON, depth: int = 0) -> tuple[Any, int]:
    """The value that begins at ``position`` (blanks before it are skipped), and where it ends.

    Raises :class:`Unreadable` for anything but a string, number, truth value, null, list or object.
    """
    if depth > MAX_DEPTH:
        raise Unreadable(f"the tool call holds more than {MAX_DEPTH} nested brackets", position)
    position = _skip(text, position)
    if match := notation.string.match(text, position):
        return notation.text(match), match.end()
    if text.startswith("[", position):
        return _list(text, position + 1, notation, depth + 1)
    if text.startswith("{", position):
        return _object(text, position + 1, notation, depth + 1)
    if match := _NUMBER.match(text, position):
        return _number(match[0], position), match.end()
    if (match := _WORD.match(text, position)) and match[0] in _WORDS:
        return _WORDS[match[0]], match.end()
    raise Unreadable(f"the tool call's arguments: no value at {text[position : position + 20]!r}", position + 1)


def _list(text: str, position: int, notation: Notation, depth: int) -> tuple[list[Any], int]:
    items: list[Any] = []
    while (closed := _expect(text, position, "]")) is None:
        item, position = read_value(text, position, notation, depth)
        items.append(item)
        position = _separated(text, position, "]")
    return items, closed


def _object(text: str, position: int, notation: Notation, depth: int) -> tuple[dict[str, Any], int]:
    items: dict[str, Any] = {}
    while (closed := _expect(text, position, "}")) is None:
        key, position = _key(text, position, notation)
        items[key], position = read_value(text, position, notation, depth)
        position = _separated(text, position, "}")
    return items, closed


def _key(text: str, position: int, notation: Notation) -> tuple[str, int]:
    if notation.bare_keys and (bare := notation.keyword.match(text, position)):
        return bare[1], bare.end()
    key = notation.string.match(text, _skip(text, position))
    if key is None or (colon := _expect(text, key.end(), ":")) is None:
        raise Unreadable("the tool call's arguments: an object's key must be a string", position + 1)
    return notation.text(key), colon


def _number(text: str, position: int) -> int | float:
    try:
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError as error:  # an integer of thousands of digits
        raise Unreadable(f"the tool call's arguments: {error}", position + len(text)) from None


def _skip(text: str, position: int) -> int:
    blanks = _BLANKS.match(text, position)
    return blanks.end() if blanks else position


def _expect(text: str, position: int, sign: str) -> int | None:
    """The offset behind ``sign``, if it is what comes next."""
    position = _skip(text, position)
    return position + len(sign) if text.startswith(sign, position) else None


def _separated(text: str, position: int, end: str) -> int:
    """The offset behind a comma; there must be one unless ``end`` follows."""
    if (behind := _expect(text, position, ",")) is not None:
        return behind
    if _expect(text, position, end) is None:
        raise Unreadable(f"the tool call's arguments: expected ',' or {end!r} after a value", position + 1)
    return position
