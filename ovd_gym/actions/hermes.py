"""``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.reading import decode, read_object, schemas
from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["Hermes"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"


class Hermes(ActionFormat):
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, as Qwen and Hermes models write it.

    The last tag may be missing where the text ends with the call: some templates end the turn in its place.
    """

    name = "hermes"
    example = '<tool_call>{"name": "...", "arguments": {...}}</tool_call>'
    stop = (_CLOSE,)
    _block = re.compile(rf"{_OPEN}(.*?){_CLOSE}", re.DOTALL)

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        return (
            f"You may think first. Then call exactly one of these tools:\n{schemas(tools)}\n"
            f"Write the call as {self.example} and stop."
        )

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        # Nothing after the last end can be a block; without the cut, a thousand unclosed tags take seconds to search.
        end = text.rfind(_CLOSE) + len(_CLOSE) if _CLOSE in text else 0
        found = [Found(block.start(), _read(block[1])) for block in self._block.finditer(text[:end])]
        if (start := text.find(_OPEN, end)) >= 0:
            call = _read(text[start + len(_OPEN) :])
            found += [Found(start, call)] if isinstance(call, ToolCall) else []
        return found

    def render(self, call: ToolCall) -> str:  # noqa: D102
        body = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
        return f"{_OPEN}{body.replace('</', '<' + chr(92) + '/')}{_CLOSE}"


def _read(body: str) -> ToolCall | InvalidCall:
    try:
        value, end = decode(body)
    except InvalidCall as error:
        return error
    if body[end:].strip():
        return InvalidCall("the tool call is not valid JSON: more text follows the object")
    return read_object(value)
