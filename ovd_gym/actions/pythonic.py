"""Calls that look like Python: ``[search(query='...', top_k=3)]``, and Gemma's two notations."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.literals import PYTHON, Notation, read_keywords
from ovd_gym.actions.reading import TOOL_NAME, Unreadable, recordable, schemas
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["Gemma", "Pythonic"]

_NAME = r"[^\W\d][\w.]{0,200}"
_HEAD = re.compile(rf"\s*({_NAME})\s*\(")
_COMMA = re.compile(r"\s*,?")


class Pythonic(ActionFormat):
    """``[search(query='...', top_k=3)]``; only keyword arguments, only literals.

    Args:
        name: of the format.
        opens: regular expression of what stands before the first call.
        template: how a call is written, ``{call}`` in it.
        stop: see :class:`ActionFormat`; no argument may contain one.
    """

    def __init__(self, name: str, opens: str, template: str, *, stop: Sequence[str] = ()) -> None:
        self.name = name
        self.stop = tuple(stop)
        self._opens = re.compile(opens + rf"(?=\s*{_NAME}\s*\()")
        self._template = template
        self.example = template.replace("{call}", "NAME(PARAMETER='...')")

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        return (
            f"You may think first. Then call exactly one of these tools:\n{schemas(tools)}\n"
            f"Write the call in Python's notation as {self.example} and stop."
        )

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        found: list[Found] = []
        position = 0
        while opening := self._opens.search(text, position):
            position = opening.end()
            try:
                while head := _HEAD.match(text, position):
                    arguments, position = read_keywords(text, head.end(), ")")
                    found.append(Found(opening.start(), recordable(head[1], arguments)))
                    if comma := _COMMA.match(text, position):
                        position = comma.end()
            except Unreadable as error:
                position = max(error.position, opening.end())
                found.append(Found(opening.start(), error))
        return found

    def render(self, call: ToolCall) -> str:  # noqa: D102
        arguments = ", ".join(f"{key}={value!r}" for key, value in call.arguments.items())
        if not re.fullmatch(_NAME, call.name) or not all(map(_is_keyword, call.arguments)):
            raise ValueError(f"the {self.name} format cannot write these names: {call.name!r}, {list(call.arguments)}")
        if any(stop in arguments for stop in self.stop):
            raise ValueError(f"the {self.name} format cannot hold its own end in an argument")
        return self._template.replace("{call}", f"{call.name}({arguments})")


class Gemma(ActionFormat):
    """``call:search{query:"..."}`` between two markers, where a marker also stands for the quotes.

    Args:
        name: of the format.
        opens, closes: the markers around a call.
        quote: the marker around a text; no text may contain it.
    """

    def __init__(self, name: str, opens: str, closes: str, quote: str) -> None:
        self.name = name
        self.stop = (closes,)
        self._opens, self._closes, self._quote = opens, closes, quote
        self._head = re.compile(rf"{re.escape(opens)}\s*call:({TOOL_NAME})\s*\{{")
        self._notation = Notation(
            string=re.compile(rf"{re.escape(quote)}(.*?){re.escape(quote)}", re.DOTALL),
            unescape=str,
            keyword=re.compile(r"\s*([\w.\-]{1,200})\s*:"),
            bare_keys=True,
        )
        self.example = f"{opens}call:NAME{{PARAMETER:{quote}...{quote}}}{closes}"

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        return (
            f"You may think first. Then call exactly one of these tools:\n{schemas(tools)}\n"
            f"Write the call as {self.example} and stop."
        )

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        # A call that is cut off is none; and behind the last end a search would only waste time.
        text = text[: text.rfind(self._closes) + len(self._closes)] if self._closes in text else ""
        found: list[Found] = []
        position = 0
        while head := self._head.search(text, position):
            try:
                arguments, position = read_keywords(text, head.end(), "}", self._notation)
                found.append(Found(head.start(), recordable(head[1], arguments)))
            except Unreadable as error:
                position = max(error.position, head.end())
                found.append(Found(head.start(), error))
        return found

    def render(self, call: ToolCall) -> str:  # noqa: D102
        if not re.fullmatch(TOOL_NAME, call.name):
            raise ValueError(f"the {self.name} format cannot write the tool name {call.name!r}")
        return f"{self._opens}call:{call.name}{self._value(call.arguments)}{self._closes}"

    def _value(self, value: Any) -> str:
        if isinstance(value, str):
            if self._quote in value or self._closes in value:
                raise ValueError(f"the {self.name} format cannot hold its own markers in a text: {value!r}")
            return f"{self._quote}{value}{self._quote}"
        if isinstance(value, list):
            return "[" + ",".join(map(self._value, value)) + "]"
        if isinstance(value, dict):
            if not all(self._notation.keyword.fullmatch(f"{key}:") for key in value):
                raise ValueError(f"the {self.name} format cannot write the names {list(value)}")
            return "{" + ",".join(f"{key}:{self._value(item)}" for key, item in value.items()) + "}"
        return json.dumps(value)


def _is_keyword(name: str) -> bool:
    return PYTHON.keyword.fullmatch(f"{name}=") is not None and name == name.strip()
