"""What an action format is: it finds, writes and explains tool calls in the student's text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["ActionFormat", "Found"]


class Found(NamedTuple):
    """One place in a text where a call stands, or should stand."""

    start: int
    """Offset in characters, the marker in front of the call included."""
    call: ToolCall | InvalidCall
    """The call, or what is wrong with it."""


class ActionFormat(ABC):
    """Reads a tool call out of a student's turn. For every call it can write, ``parse(render(call)) == call``.

    A format of one's own defines ``name``, ``example``, :meth:`instructions`, :meth:`find` and :meth:`render`.
    """

    name: str
    example: str = ""
    """A call as the student should write it; stands in error messages."""
    stop: tuple[str, ...] = ()
    """A turn ends once the sampled text contains one of these (or the model ends it)."""

    @abstractmethod
    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The system prompt's part that explains ``tools`` and how to call them."""

    @abstractmethod
    def find(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[Found]:
        """Every call in ``text``, in order, those that are malformed with what is wrong with them.

        ``tools`` tell the types of arguments where a format does not; takes time linear in the length of ``text``.
        """

    @abstractmethod
    def render(self, call: ToolCall) -> str:
        """The text that makes ``call``, as the student would write it. ValueError for a call it cannot write."""

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> ToolCall:
        """The one call in ``text``. Raises :class:`InvalidCall` saying what was found and what was expected."""
        found = self.find(text, tools)
        if len(found) != 1:
            raise InvalidCall(f"found {len(found)} tool calls, expected exactly one {self.example}".rstrip())
        if isinstance(call := found[0].call, InvalidCall):
            raise call
        return call

    def extract(self, text: str, tools: Sequence[ToolSpec] = ()) -> list[ToolCall]:
        """All well-formed calls in ``text``, for models that write several a turn."""
        return [found.call for found in self.find(text, tools) if isinstance(found.call, ToolCall)]

    def content(self, text: str, tools: Sequence[ToolSpec] = ()) -> str:
        """What the student says before its first call; all of ``text`` where there is none."""
        found = self.find(text, tools)
        return text[: found[0].start] if found else text

    def observation(self, text: str) -> str:
        """A tool's result as the student reads it.

        ``text`` has been through :func:`~ovd_gym.sanitize.escape_markers`, so that it cannot close what is put
        around it here. Error messages are the environment's own words and come without this.
        """
        return text

    def step_ends(self, text: str) -> list[int]:
        """End offsets (characters) of the steps in one turn; ascending, the last is ``len(text)``."""
        return [len(text)]
