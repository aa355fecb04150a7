"""Calls as tags: the name in one, every argument in one of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.literals import read_value
from ovd_gym.actions.reading import decode, find_tool, properties, recordable, schemas, write_json
from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["Tagged", "Tags"]


@dataclass(frozen=True)
class Tags:
    """What differs between the formats. The templates hold ``{name}``, ``{key}``, ``{value}`` and ``{is_text}``."""

    call: str
    """Regular expression of a call up to and without its end; groups ``name`` and ``body``."""
    end: str
    """What ends a call, as it stands in the text."""
    argument: str
    """Regular expression of an argument in the body; groups ``key``, ``value`` and, if it is told, ``is_text``."""
    opening_template: str
    argument_template: str
    closing_template: str
    wrapper: str | None = None
    """An argument of this name that is an object and stands alone holds all arguments."""


class Tagged(ActionFormat):
    """One tag for the name and one for each argument.

    Tags know no types: a value that reads as JSON (or as a Python literal in brackets) is that, unless the tool's
    schema or the tag says that it is a text. A text that would be misread is written, and read, as a JSON string.
    """

    def __init__(self, name: str, tags: Tags, *, stop: Sequence[str] = ()) -> None:
        self.name = name
        self.stop = tuple(stop)
        self._tags = tags
        self._call = re.compile(tags.call + re.escape(tags.end), re.DOTALL)
        self._argument = re.compile(tags.argument, re.DOTALL)
        self._typed = "is_text" in self._argument.groupindex
        self.example = self._write("NAME", {"PARAMETER": "..."})

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        return (
            f"You may think first. Then call exactly one of these tools:\n{schemas(tools)}\n"
            f"Write the call as\n{self.example}\nand stop."
        )

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        end = text.rfind(self._tags.end)  # behind it a search would only waste time
        text = text[: end + len(self._tags.end)] if end >= 0 else ""
        return [Found(call.start(), self._read(call, tools)) for call in self._call.finditer(text)]

    def render(self, call: ToolCall) -> str:  # noqa: D102
        text = self._write(call.name, call.arguments)
        if self.extract(text) != [call]:
            raise ValueError(f"the {self.name} format cannot write {call}: a name that is no word, or a tag in a text")
        return text

    def _read(self, call: re.Match[str], tools: Sequence[ToolSpec]) -> ToolCall | InvalidCall:
        tool = find_tool(call["name"], tools)
        types = {key: schema.get("type") for key, schema in properties(tool).items()} if tool else {}
        arguments: dict[str, Any] = {}
        for argument in self._argument.finditer(call["body"]):
            key, is_text = argument["key"], argument["is_text"] == "true" if self._typed else None
            arguments[key] = self._value(argument["value"], is_text, types.get(key))
        inner = arguments.get(self._tags.wrapper) if self._tags.wrapper else None
        if isinstance(inner, dict) and len(arguments) == 1 and self._tags.wrapper not in types:
            arguments = inner
        return recordable(call["name"], arguments)

    def _value(self, text: str, is_text: bool | None, declared: str | None) -> Any:
        if is_text:
            return text
        value = _plain(text)
        if isinstance(value, str):
            return value if self._needs_quotes(value) else text
        return text if declared == "string" and is_text is None else value

    def _write(self, name: str, arguments: dict[str, Any]) -> str:
        tags = self._tags
        parts = [tags.opening_template.replace("{name}", name)]
        for key, value in arguments.items():
            raw = isinstance(value, str) and (self._typed or not self._needs_quotes(value))
            text = value if raw else write_json(value, ["<"])
            filled = tags.argument_template.replace("{is_text}", str(raw).lower()).replace("{key}", key)
            parts.append(filled.replace("{value}", text))
        return "".join([*parts, tags.closing_template])

    def _needs_quotes(self, text: str) -> bool:
        """Whether ``text``, written as it is, would be read as something else."""
        return _plain(text) != text or "</" in text or "<parameter=" in text


def _plain(text: str) -> Any:
    """The value that ``text`` is in JSON, or within brackets in Python; else the text itself."""
    for read in (decode, read_value) if text.lstrip()[:1] in ("{", "[") else (decode,):
        try:
            value, end = read(text)
        except InvalidCall:
            continue
        if not text[end:].strip():
            return value
    return text
