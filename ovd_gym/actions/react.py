"""``Thought: ... Action: search[query]``: ReAct, and the two-line form that came after it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.reading import find_tool, main_parameter, properties, read_arguments, recordable, write_arguments
from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["ReAct"]

_ACTION = re.compile(r"^[ \t]*Action:[ \t]*(?P<name>[\w.\-]{1,200})[ \t]*", re.MULTILINE)
_INPUT = re.compile(r"\n[ \t]*Action Input:")
_TRAILING = re.compile(r"\n[ \t]*Observation:[ \t]*$")
_LABEL = re.compile(r"^([ \t]*(?:Thought|Action|Action Input|Observation))([ \t]*):", re.MULTILINE | re.IGNORECASE)


class ReAct(ActionFormat):
    """``Action: search[query]``, or ``Action: search`` with ``Action Input: query`` on the next line.

    Yao et al., arXiv 2210.03629. Names are read whatever their case, and ``Finish`` is the final tool. The action is
    the end of the turn: its argument runs to the last bracket, so that it may hold brackets and line breaks. An
    argument is the text of the parameter that must be given, or a JSON object of several.
    """

    name = "react"
    example = "`Action: tool[argument]` at the end"
    stop = ("\nObservation:",)

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        lines = [f"{t.name}[{_signature(t)}]: {t.description.splitlines()[0]}" for t in tools]
        return (
            "Interleave Thought, Action and Observation steps. Write one Thought and one Action, then stop; the "
            "Observation will be given to you. An Action is one of\n" + "\n".join(lines) + "\n"
            "For example:\nThought: I need to find out ...\nAction: " + (f"{tools[0].name}[...]" if tools else "")
        )

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> ToolCall:  # noqa: D102
        if (count := len(_ACTION.findall(text))) > 1:
            raise InvalidCall(f"found {count} actions, expected exactly one {self.example}")
        return super().parse(text, tools)

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        text = _TRAILING.sub("", text.rstrip()).rstrip()
        action = _ACTION.search(text)
        if action is None:
            return []
        rest = text[action.end() :]
        if rest.startswith("[") and rest.endswith("]"):
            argument = rest[1:-1]
        elif lead := _INPUT.match(rest):
            argument = rest[lead.end() :]
        else:
            return []
        return [Found(action.start(), _read(action["name"], argument, tools))]

    def render(self, call: ToolCall) -> str:  # noqa: D102
        text = f"Action: {call.name}[{write_arguments(call)}]"
        action = _ACTION.match(text)
        if action is None or action["name"] != call.name or len(_ACTION.findall(text)) > 1:
            raise ValueError(f"the react format cannot write {text!r}: an odd tool name, or an action in an argument")
        return text

    def observation(self, text: str) -> str:  # noqa: D102
        # The labels are this format's markers: no page may begin a line with one.
        return "Observation: " + _LABEL.sub(r"\1\2&#58;", text)


def _read(name: str, text: str, tools: Sequence[ToolSpec]) -> ToolCall | InvalidCall:
    tool = find_tool(name, tools) or find_tool(name.lower(), tools)
    if tool is None and name.lower() == "finish":
        tool = next((t for t in tools if t.final), None)
    if tool is None:
        return recordable(name.lower(), {"input": text.strip()})
    return read_arguments(text, tool)


def _signature(tool: ToolSpec) -> str:
    return main_parameter(tool) or "{" + ", ".join(f'"{name}": ...' for name in properties(tool)) + "}"
