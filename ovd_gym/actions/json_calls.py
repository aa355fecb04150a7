"""Calls as JSON between markers: most models' formats differ in the markers alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.reading import (
    TOOL_NAME,
    Unreadable,
    decode,
    read_object,
    recordable,
    schemas,
    shorten,
    write_json,
)
from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["Json", "JsonBetweenMarkers", "JsonLines", "NamedObjects"]


class JsonBetweenMarkers(ActionFormat):
    """A JSON object, a list of them, or a name with the JSON object of its arguments, behind an opening marker.

    Args:
        name: of the format.
        opens: regular expression of what stands before the JSON; its group ``name``, if it has one and that matched
            something, is the tool's name, and the JSON then its arguments.
        template: how a call is written: ``{call}`` for the object, or ``{name}`` and ``{arguments}``.
        key: of the arguments in the object.
        stop: see :class:`ActionFormat`; escaped in arguments.
    """

    def __init__(self, name: str, opens: str, template: str, *, key: str = "arguments", stop: Sequence[str] = ()):
        self.name = name
        self.stop = tuple(stop)
        self._opens = re.compile(opens)
        self._template = template
        self._key = key
        call = f'{{"name": "...", "{key}": {{...}}}}'
        self.example = template.replace("{call}", call).replace("{name}", "NAME").replace("{arguments}", "{...}")

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        return (
            f"You may think first. Then call exactly one of these tools:\n{schemas(tools)}\n"
            f"Write the call as {self.example} and stop."
        )

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        found: list[Found] = []
        position = 0
        while opening := self._opens.search(text, position):
            try:
                value, position = decode(text, opening.end())
            except Unreadable as error:
                position = error.position
                found.append(Found(opening.start(), error))
            else:
                found += self._read(opening, value)
        return found

    def render(self, call: ToolCall) -> str:  # noqa: D102
        if "{call}" in self._template:
            body = write_json({"name": call.name, self._key: call.arguments}, self.stop)
            return self._template.replace("{call}", body)
        if not re.fullmatch(TOOL_NAME, call.name):
            raise ValueError(f"the {self.name} format cannot write the tool name {call.name!r}")
        body = write_json(call.arguments, self.stop)
        return self._template.replace("{name}", call.name).replace("{arguments}", body)

    def _read(self, opening: re.Match[str], value: object) -> Iterator[Found]:
        if name := opening.groupdict().get("name"):
            yield Found(opening.start(), recordable(name, value))
        else:
            for item in value if isinstance(value, list) else [value]:
                yield Found(opening.start(), read_object(item, self._key))


class JsonLines(JsonBetweenMarkers):
    """One object a line between the markers; each line stands for itself, and objects of several lines are none."""

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        opening = self._opens.search(text)
        if opening is None:
            return []
        body = text[opening.end() :].partition(self.stop[0])[0]
        return [self._line(opening.start(), line) for line in body.split("\n") if line.strip()]

    def _line(self, start: int, line: str) -> Found:
        try:
            value, _ = decode(line)
        except Unreadable as error:
            return Found(start, error)
        if isinstance(value, dict) and self._key not in value:
            return Found(start, read_object({}, self._key))
        return Found(start, read_object(value, self._key))


class NamedObjects(JsonBetweenMarkers):
    """``[{"name": {...arguments}}, ...]`` behind the marker. A call counts once its arguments are closed."""

    _pair = re.compile(r'\s*,?\s*\{\s*(?=")')
    _colon = re.compile(r"\s*:")
    _end = re.compile(r"\s*\}")

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        found: list[Found] = []
        position = 0
        while opening := self._opens.search(text, position):
            position = opening.end()
            try:
                while pair := self._pair.match(text, position):
                    call, position = self._call(text, pair.end())
                    found.append(Found(opening.start(), call))
            except Unreadable as error:
                position = error.position
                found.append(Found(opening.start(), error))
        return found

    def render(self, call: ToolCall) -> str:  # noqa: D102
        return self._template.replace("{call}", write_json({call.name: call.arguments}, self.stop))

    def _call(self, text: str, position: int) -> tuple[ToolCall | InvalidCall, int]:
        name, position = decode(text, position)
        if (colon := self._colon.match(text, position)) is None:
            raise Unreadable(f"the tool call is not valid JSON: no ':' after {shorten(name)}", position)
        arguments, position = decode(text, colon.end())
        end = self._end.match(text, position)
        return recordable(name, arguments), end.end() if end else position


class Json(JsonBetweenMarkers):
    """Objects with ``name`` and ``arguments`` (or ``parameters``) anywhere in the text: bare, in a list or fenced.

    As Llama 3 and xLAM write them. Other objects are left alone: they are no calls, and no errors either.
    """

    _object = re.compile(r'(?:```(?:json)?\s*)?(?:\[\s*)?\{\s*"')

    def __init__(self) -> None:
        super().__init__("json", "", "{call}")

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        found: list[Found] = []
        position = 0
        while opening := self._object.search(text, position):
            try:
                value, position = decode(text, text.index("{", opening.start()))
            except Unreadable as error:
                position = error.position
                continue
            key = next((key for key in ("arguments", "parameters") if key in value), None)
            if "name" in value and key is not None:
                found.append(Found(opening.start(), read_object(value, key)))
        return found
