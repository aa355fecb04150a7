"""``tool: argument`` on one line."""

from __future__ import annotations

from collections.abc import Sequence

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.reading import (
    find_tool,
    main_parameter,
    properties,
    read_arguments,
    recordable,
    shorten,
    write_arguments,
)
from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["Line"]


class Line(ActionFormat):
    """``tool: argument`` on one line: a handful of tokens, made for few-shot prompts and small models.

    A tool with one parameter, or with one that must be given, takes the rest of the line as it is; others take a JSON
    object. The object also serves where the argument is no plain text (a number, blanks around it, an opening brace).
    """

    name = "line"
    example = "`tool: argument`"
    stop = ("\n",)

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        lines = [f"{t.name}: {_signature(t)}  ({t.description.splitlines()[0]})" for t in tools]
        return "Answer with one line, one of:\n" + "\n".join(lines)

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        line = text.strip()
        name, colon, rest = line.partition(":")
        if not colon or "\n" in line:
            return [Found(0, InvalidCall(f"expected one line {self.example}, got {shorten(line)}"))]
        tool = find_tool(name.strip(), tools)
        return [Found(0, recordable(name.strip(), {}) if tool is None else read_arguments(rest, tool))]

    def render(self, call: ToolCall) -> str:  # noqa: D102
        text = write_arguments(call)
        if len(call.arguments) == 1 and any(isinstance(v, str) and "\n" in v for v in call.arguments.values()):
            raise ValueError("the line format cannot hold a line break; use 'hermes' for multi-line arguments")
        return f"{call.name}: {text}\n"


def _signature(tool: ToolSpec) -> str:
    if (main := main_parameter(tool)) is not None:
        return f"<{main}>"
    return "{" + ", ".join(f'"{name}": ...' for name in properties(tool)) + "}"
