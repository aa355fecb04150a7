"""What the formats share: JSON out of the middle of a text, arguments as plain text, calls that can be recorded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = [
    "MAX_DEPTH",
    "TOOL_NAME",
    "Unreadable",
    "decode",
    "find_tool",
    "main_parameter",
    "properties",
    "read_arguments",
    "read_object",
    "recordable",
    "schemas",
    "shorten",
    "write_arguments",
    "write_json",
]

MAX_DEPTH = 64
"""Nested brackets in a call's arguments; JSON readers give up at about 200, the records around a call included."""
TOOL_NAME = r"[\w.\-]{1,200}"
"""A name that stands outside of JSON."""
_BLANKS = re.compile(r"\s*")
_FIRST = frozenset('{["-0123456789tfnNI')
"""What a JSON value, or one of the constants that are refused, begins with."""


class Unreadable(InvalidCall):
    """No value could be read; ``position`` is how far the reader came, and where a search may go on."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def decode(text: str, position: int = 0) -> tuple[Any, int]:
    """The JSON value that begins at ``position`` (blanks before it are skipped), and where it ends.

    Raises :class:`Unreadable` for what is no JSON, for NaN and infinity, and for nesting too deep to read.
    """
    blanks = _BLANKS.match(text, position)
    start = blanks.end() if blanks else position
    if text[start : start + 1] not in _FIRST:  # making json's own error takes time linear in the text before it
        raise Unreadable(f"the tool call is not valid JSON: expected a value, got {text[start : start + 20]!r}", start)
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        raise Unreadable(f"the tool call is not valid JSON: {error}", max(error.pos, start + 1)) from None
    except RecursionError:
        raise Unreadable("the tool call is not valid JSON: too deeply nested", len(text)) from None
    except ValueError as error:  # NaN, or an integer of thousands of digits
        raise Unreadable(f"the tool call is not valid JSON: {error}", start + 1) from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def read_object(value: Any, key: str = "arguments") -> ToolCall | InvalidCall:
    """The call that a decoded ``{"name": ..., key: {...}}`` makes, or what is wrong with it."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return InvalidCall(f'the tool call must be a JSON object with "name" (a string) and "{key}"')
    return recordable(value["name"], value.get(key, {}), key)


def recordable(name: str, arguments: Any, key: str = "arguments") -> ToolCall | InvalidCall:
    """The call, unless it holds what no record can hold: a student's text must not break a run."""
    if not isinstance(arguments, dict):
        return InvalidCall(f'"{key}" must be a JSON object, got {type(arguments).__name__}')
    if (problem := _unrecordable([name, arguments])) is not None:
        return InvalidCall(f"the tool call holds {problem}")
    return ToolCall(name=name, arguments=arguments)


def _unrecordable(value: Any, depth: int = 0) -> str | None:
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        return "half of a character (a lone surrogate)"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is too large"
    if isinstance(value, dict | list):
        if depth > MAX_DEPTH:
            return f"more than {MAX_DEPTH} nested brackets"
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return next((p for item in inner if (p := _unrecordable(item, depth + 1)) is not None), None)
    return None


def write_json(value: Any, forbidden: Sequence[str] = ()) -> str:
    """``value`` as JSON without any of ``forbidden``: they can only stand in strings, and are escaped there."""
    text = json.dumps(value, ensure_ascii=False)
    for marker in forbidden:
        text = text.replace(marker, f"\\u{ord(marker[0]):04x}{marker[1:]}")
    return text


# Arguments as plain text -----------------------------------------------------------------------------------


def properties(tool: ToolSpec) -> Mapping[str, Any]:
    """The parameters' schemas by name."""
    found = tool.parameters.get("properties", {})
    assert isinstance(found, dict)
    return found


def find_tool(name: str, tools: Sequence[ToolSpec]) -> ToolSpec | None:
    """The tool of that name."""
    return next((tool for tool in tools if tool.name == name), None)


def main_parameter(tool: ToolSpec) -> str | None:
    """The parameter that a plain text is meant for: the only one, or the only one that must be given."""
    names, required = list(properties(tool)), tool.parameters.get("required", [])
    assert isinstance(required, list)
    alone = names if len(names) == 1 else [name for name in names if name in required]
    return alone[0] if len(alone) == 1 else None


def read_arguments(text: str, tool: ToolSpec) -> ToolCall | InvalidCall:
    """The call of ``tool`` with what stands in ``text``: a JSON object, or plain text for its main parameter.

    With one parameter only an object of exactly that parameter is one; any other is text that looks like it.
    """
    parameters, main = list(properties(tool)), main_parameter(tool)
    problem = ""
    try:
        value, end = decode(text if text.strip() or main else "{}")
    except Unreadable as error:
        problem = str(error)
    else:
        if isinstance(value, dict) and not text[end:].strip() and (len(parameters) != 1 or list(value) == parameters):
            return recordable(tool.name, value)
        problem = f"got {type(value).__name__}{' and more text' if text[end:].strip() else ''}"
    if main is not None:
        return recordable(tool.name, {main: text.strip()})
    return InvalidCall(f"{tool.name} takes a JSON object: {problem}")


def write_arguments(call: ToolCall) -> str:
    """What :func:`read_arguments` reads: the text of a lone argument where that is plain text, else a JSON object."""
    values = list(call.arguments.values())
    value = values[0] if len(values) == 1 else None
    if isinstance(value, str) and value == value.strip() and not value.startswith("{"):
        return value
    return json.dumps(call.arguments, ensure_ascii=False)


# Words -----------------------------------------------------------------------------------------------------


def schemas(tools: Sequence[ToolSpec]) -> str:
    """The tools as JSON, one a line: what most models were shown in training."""
    return "\n".join(
        json.dumps({"name": t.name, "description": t.description, "parameters": t.parameters}, ensure_ascii=False)
        for t in tools
    )


def shorten(text: str, limit: int = 80) -> str:
    """The text quoted, and cut when it is long."""
    return repr(text if len(text) <= limit else text[:limit] + "...")
