"""``<think>...</think> <search>query</search>``: the tags of Search-R1."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.reading import find_tool, main_parameter, read_arguments, recordable, write_arguments
from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["SearchR1"]

_TAGS = ("search", "open", "find", "answer")
_UNTAGGED = {"search": "query", "open": "url", "find": "text", "answer": "text"}
"""The argument's name where nothing is known of the tools."""


class SearchR1(ActionFormat):
    """``<search>query</search>`` and ``<answer>...</answer>``, results within ``<information>``.

    As in Search-R1 (Jin et al., arXiv 2503.09516), with ``<open>`` and ``<find>`` beside its two tags. A tag holds the
    argument that must be given, or a JSON object of several. What stands in ``<think>...</think>`` is no call.
    """

    name = "search-r1"
    example = "<search>...</search> or <answer>...</answer>"
    stop = tuple(f"</{tag}>" for tag in _TAGS)
    _tag = re.compile(rf"<(/?)({'|'.join(_TAGS)})>")

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        lines = [
            f"<{t.name}> {main_parameter(t) or 'a JSON object'} </{t.name}>: {t.description.splitlines()[0]}"
            for t in tools
        ]
        return (
            "Answer the given question. You must reason inside <think> and </think> first, every time you get new "
            "information. Then write exactly one of\n" + "\n".join(lines) + "\n"
            "Results are returned between <information> and </information>. When you need no more, give the answer "
            "inside <answer> and </answer>, without explanation. For example, <answer> Beijing </answer>."
        )

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        found: list[Found] = []
        opened: re.Match[str] | None = None
        text = _without_thoughts(text)
        for tag in self._tag.finditer(text):
            if not tag[1]:
                opened = tag  # an earlier one that is still open is no call
            elif opened is not None and opened[2] == tag[2]:
                found.append(Found(opened.start(), _read(tag[2], text[opened.end() : tag.start()], tools)))
                opened = None
        return found

    def render(self, call: ToolCall) -> str:  # noqa: D102
        if call.name not in _TAGS:
            raise ValueError(f"the search-r1 format has no tag for {call.name!r}, only for {', '.join(_TAGS)}")
        text = write_arguments(call)
        if self._tag.search(text) or "<think>" in text or "</think>" in text:
            raise ValueError(f"the search-r1 format cannot hold a tag of its own in an argument: {text!r}")
        return f"<{call.name}>{text}</{call.name}>"

    def observation(self, text: str) -> str:  # noqa: D102
        return f"<information>{text}</information>"


def _without_thoughts(text: str) -> str:
    """``text`` with blanks for its thoughts: offsets stay as they are."""
    while (start := text.find("<think>")) >= 0 and (end := text.find("</think>", start)) >= 0:
        end += len("</think>")
        text = text[:start] + " " * (end - start) + text[end:]
    return text


def _read(tag: str, text: str, tools: Sequence[ToolSpec]) -> ToolCall | InvalidCall:
    tool = find_tool(tag, tools) or (next((t for t in tools if t.final), None) if tag == "answer" else None)
    if tool is None:
        return recordable(tag, {_UNTAGGED[tag]: text.strip()})
    return read_arguments(text, tool)
