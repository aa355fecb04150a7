r"""A whole solution in one turn, its answer in ``\boxed{}``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.reading import properties
from ovd_gym.errors import ConfigError, InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["Boxed", "last_boxed"]


class Boxed(ActionFormat):
    r"""A whole solution in one turn with its answer in ``\boxed{}``; every paragraph is a step."""

    name = "boxed"
    example = r"\boxed{...}"
    _gap = re.compile(r"\n[ \t]*\n\s*")

    def instructions(self, tools: Sequence[ToolSpec]) -> str:  # noqa: D102
        return r"Solve the problem step by step, one paragraph a step. Put the final answer within \boxed{}."

    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:  # noqa: D102
        answer = last_boxed(text)
        if answer is None:
            return [Found(0, InvalidCall(f"no final answer: expected {self.example}"))]
        final = next((t for t in tools if t.final), None)
        if final is None or len(properties(final)) != 1:
            raise ConfigError("the boxed format needs a final tool with one parameter")
        return [Found(0, ToolCall(name=final.name, arguments={next(iter(properties(final))): answer}))]

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
