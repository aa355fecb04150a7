"""How a tool call stands in the student's text: formats that read, write and explain it.

A format is pure text work and knows no tokens. ``parse`` reads only the text it is given, and it is only ever
given the student's own; a page or a tool result never passes through it.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from ovd_gym.errors import ConfigError, InvalidCall, unknown
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["FORMATS", "ActionFormat", "Boxed", "Hermes", "Line", "get_format", "last_boxed"]

_MAX_DEPTH = 64
"""Nested brackets in a call's arguments; JSON readers give up at about 200, the records around a call included."""


class ActionFormat(ABC):
    """Reads a tool call out of a student's turn. For every call it can write, ``parse(render(call)) == call``."""

    name: str
    stop: tuple[str, ...] = ()
    """A turn ends once the sampled text contains one of these (or the model ends it)."""

    @abstractmethod
    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The system prompt's part that explains ``tools`` and how to call them."""

    @abstractmethod
    def parse(self, text: str, tools: Sequence[ToolSpec]) -> ToolCall:
        """The one call in ``text``. Raises :class:`InvalidCall` saying what was found and what was expected."""

    @abstractmethod
    def render(self, call: ToolCall) -> str:
        """The text that makes ``call``, as the student would write it."""

    def step_ends(self, text: str) -> list[int]:
        """End offsets (characters) of the steps in one turn; ascending, the last is ``len(text)``."""
        return [len(text)]


class Hermes(ActionFormat):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, as Qwen and Hermes models write it."""

    name = "hermes"
    stop = ("</tool_call>",)
    _block = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        schemas = "\n".join(
            json.dumps({"name": t.name, "description": t.description, "parameters": t.parameters}, ensure_ascii=False)
            for t in tools
        )
        return (
            f"You may think first. Then call exactly one of these tools:\n{schemas}\n"
            'Write the call as <tool_call>{"name": "...", "arguments": {...}}</tool_call> and stop.'
        )

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> ToolCall:  # noqa: D102
        # Nothing after the last end can be a call; without the cut, a thousand unclosed tags take seconds to search.
        blocks = self._block.findall(text[: text.rfind("</tool_call>") + len("</tool_call>")])
        if len(blocks) != 1:
            raise InvalidCall(
                f"found {len(blocks)} tool calls, expected exactly one "
                '<tool_call>{"name": "...", "arguments": {...}}</tool_call>'
            )
        try:
            call = json.loads(blocks[0], parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidCall(f"the tool call is not valid JSON: {error}") from None
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise InvalidCall('the tool call must be a JSON object with "name" (a string) and "arguments"')
        arguments = call.get("arguments", {})
        if not isinstance(arguments, dict):
            raise InvalidCall(f'"arguments" must be a JSON object, got {type(arguments).__name__}')
        return _recordable(call["name"], arguments)

    def render(self, call: ToolCall) -> str:  # noqa: D102
        body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        return f"<tool_call>{body.replace('</', '<' + chr(92) + '/')}</tool_call>"


class Line(ActionFormat):
    """``tool: argument`` on one line: a handful of tokens, made for few-shot prompts and small models.

    A tool with one parameter takes the rest of the line as it is; one with several takes a JSON object. The object
    also serves where a tool's one argument is no plain text (a number, blanks around it, an opening brace).
    """

    name = "line"
    stop = ("\n",)

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        lines = [f"{t.name}: {_signature(t)}  ({t.description.splitlines()[0]})" for t in tools]
        return "Answer with one line, one of:\n" + "\n".join(lines)

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> ToolCall:  # noqa: D102
        line = text.strip()
        name, colon, rest = line.partition(":")
        if not colon or "\n" in line:
            raise InvalidCall("expected one line `tool: argument`, got " + _shorten(line))
        tool = next((t for t in tools if t.name == name.strip()), None)
        if tool is None:
            return ToolCall(name=name.strip())
        parameters = list(_properties(tool))
        try:
            arguments = json.loads(rest or "{}", parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            arguments, problem = None, str(error)
        else:
            problem = f"got {type(arguments).__name__}"
        if len(parameters) == 1 and not (isinstance(arguments, dict) and list(arguments) == parameters):
            return _recordable(tool.name, {parameters[0]: rest.strip()})
        if not isinstance(arguments, dict):
            raise InvalidCall(f"{tool.name} takes a JSON object: {problem}")
        return _recordable(tool.name, arguments)

    def render(self, call: ToolCall) -> str:  # noqa: D102
        values = list(call.arguments.values())
        value = values[0] if len(values) == 1 else None
        if isinstance(value, str) and "\n" in value:
            raise ValueError("the line format cannot hold a line break; use 'hermes' for multi-line arguments")
        if isinstance(value, str) and value == value.strip() and not value.startswith("{"):
            return f"{call.name}: {value}\n"
        return f"{call.name}: {json.dumps(call.arguments, ensure_ascii=False)}\n"


class Boxed(ActionFormat):
    r"""A whole solution in one turn with its answer in ``\boxed{}``; every paragraph is a step."""

    name = "boxed"
    _gap = re.compile(r"\n[ \t]*\n\s*")

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        return r"Solve the problem step by step, one paragraph a step. Put the final answer within \boxed{}."

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> ToolCall:  # noqa: D102
        answer = last_boxed(text)
        if answer is None:
            raise InvalidCall(r"no final answer: expected \boxed{...}")
        final = next((t for t in tools if t.final), None)
        if final is None or len(_properties(final)) != 1:
            raise ConfigError("the boxed format needs a final tool with one parameter")
        return ToolCall(name=final.name, arguments={next(iter(_properties(final))): answer})

    def render(self, call: ToolCall) -> str:  # noqa: D102
        (answer,) = call.arguments.values()
        text = rf"\boxed{{{answer}}}"
        if last_boxed(text) != answer:
            raise ValueError(
                f"the boxed format holds a text with balanced braces and no blanks around it, not {answer!r}"
            )
        return text

    def step_ends(self, text: str) -> list[int]:  # noqa: D102
        ends = [m.end() for m in self._gap.finditer(text) if text[: m.start()].strip() and m.end() < len(text)]
        return [*ends, len(text)]


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete ``\boxed{...}`` (braces balanced), or None.

    >>> last_boxed(r"so \boxed{1}, no: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    open_braces: list[int] = []  # where the content of a box starts; -1 for other braces
    start, content = -1, None
    for brace in re.finditer(r"\\boxed\{|[{}]", text):
        if brace[0] != "}":
            open_braces.append(-1 if brace[0] == "{" else brace.end())
        elif open_braces and (opened := open_braces.pop()) > start:
            start, content = opened, text[opened : brace.start()].strip()
    return content


FORMATS: Mapping[str, ActionFormat] = {f.name: f for f in (Hermes(), Line(), Boxed())}


def get_format(name: str | ActionFormat) -> ActionFormat:
    """The format of that name (or the object itself). Raises :class:`ConfigError` listing the known ones."""
    if isinstance(name, ActionFormat):
        return name
    if name not in FORMATS:
        raise ConfigError(unknown("action format", name, FORMATS))
    return FORMATS[name]


def _properties(tool: ToolSpec) -> Mapping[str, Any]:
    properties = tool.parameters.get("properties", {})
    assert isinstance(properties, dict)
    return properties


def _recordable(name: str, arguments: dict[str, Any]) -> ToolCall:
    """The call, unless JSON brought something in that no record can hold: a student's text must not break a run."""
    if (problem := _unrecordable([name, arguments])) is not None:
        raise InvalidCall(f"the tool call holds {problem}")
    return ToolCall(name=name, arguments=arguments)


def _unrecordable(value: Any, depth: int = 0) -> str | None:
    if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
        return "half of a character (a lone surrogate)"
    if isinstance(value, float) and not math.isfinite(value):
        return "a number that is too large"
    if isinstance(value, dict | list):
        if depth > _MAX_DEPTH:
            return f"more than {_MAX_DEPTH} nested brackets"
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return next((p for item in inner if (p := _unrecordable(item, depth + 1)) is not None), None)
    return None


def _signature(tool: ToolSpec) -> str:
    names = list(_properties(tool))
    return f"<{names[0]}>" if len(names) == 1 else "{" + ", ".join(f'"{n}": ...' for n in names) + "}"


def _shorten(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
