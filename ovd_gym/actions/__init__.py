"""How a tool call stands in the student's text: formats that read, write and explain it.

A format is pure text work and knows no tokens. It reads only the text it is given, and it is only ever given the
student's own; a page or a tool result never passes through it.

=============  =======================================================================================================
``hermes``     ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``
``line``       ``tool: argument``
``boxed``      a whole solution with its answer in ``\\boxed{}``
``json``       a bare or fenced ``{"name": ..., "arguments": {...}}``
``react``      ``Thought: ... Action: tool[argument]``
``search-r1``  ``<think>...</think> <search>query</search>``
others         :mod:`~ovd_gym.actions.models`: what particular model families write
=============  =======================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

from ovd_gym.actions.base import ActionFormat, Found
from ovd_gym.actions.boxed import Boxed, last_boxed
from ovd_gym.actions.hermes import Hermes
from ovd_gym.actions.json_calls import Json
from ovd_gym.actions.line import Line
from ovd_gym.actions.models import ALIASES, MODEL_FORMATS
from ovd_gym.actions.react import ReAct
from ovd_gym.actions.search_r1 import SearchR1
from ovd_gym.errors import ConfigError, unknown

__all__ = [
    "ALIASES",
    "FORMATS",
    "ActionFormat",
    "Boxed",
    "Found",
    "Hermes",
    "Json",
    "Line",
    "ReAct",
    "SearchR1",
    "get_format",
    "last_boxed",
]

FORMATS: Mapping[str, ActionFormat] = {
    f.name: f for f in (Hermes(), Line(), Boxed(), Json(), ReAct(), SearchR1(), *MODEL_FORMATS)
}


def get_format(name: str | ActionFormat) -> ActionFormat:
    """The format of that name or alias (or the object itself). Raises :class:`ConfigError` listing the known ones."""
    if isinstance(name, ActionFormat):
        return name
    name = ALIASES.get(name, name)
    if name not in FORMATS:
        raise ConfigError(unknown("action format", name, {*FORMATS, *ALIASES}))
    return FORMATS[name]
