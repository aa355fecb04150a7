"""Tools from typed methods: the schema comes from the signature, the description from the docstring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar, get_type_hints, overload

import docstring_parser
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from ovd_gym.errors import ConfigError, InvalidCall, unknown
from ovd_gym.records import ToolCall, ToolSpec

__all__ = ["Toolbox", "tool"]

F = TypeVar("F", bound=Callable[..., Any])
_MARK = "_ovd_gym_tool_final"
_STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)  # {"text": 42} is as good an answer as {"text": "42"}


@overload
def tool(method: F) -> F: ...
@overload
def tool(*, final: bool = False) -> Callable[[F], F]: ...
def tool(method: F | None = None, *, final: bool = False) -> F | Callable[[F], F]:
    """Mark a method as a tool. ``final=True``: calling it ends the episode, its result is the answer.

    >>> class World:
    ...     @tool
    ...     def add(self, a: int, b: int) -> int:
    ...         '''Add two integers.'''
    ...         return a + b
    """

    def mark(function: F) -> F:
        setattr(function, _MARK, final)
        return function

    return mark(method) if method is not None else mark


@lru_cache(maxsize=256)
def _read(name: str, method: Callable[..., Any], final: bool) -> tuple[ToolSpec, type[BaseModel]]:
    """What a method says of itself, and the model of its arguments; the instances of a world share both."""
    doc = docstring_parser.parse(inspect.getdoc(method) or "")
    if not doc.short_description:
        raise ConfigError(f"tool {name!r} has no docstring; its first line is what the student is told")
    texts = {p.arg_name: p.description for p in doc.params}
    try:
        hints = get_type_hints(method)
    except NameError as error:
        raise ConfigError(f"tool {name!r}: {error} in its annotations; import the type at module level") from error
    fields: dict[str, Any] = {}
    _, *parameters = inspect.signature(method).parameters.values()  # the first is the instance
    for parameter in parameters:
        if parameter.name not in hints or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
            parameter.POSITIONAL_ONLY,
        ):
            raise ConfigError(f"tool {name!r}: parameter {parameter} needs a name and a type annotation")
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[parameter.name] = (
            hints[parameter.name],
            Field(default, description=texts.get(parameter.name)),
        )
    arguments: type[BaseModel] = create_model(name, __config__=_STRICT, **fields)
    text = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    return ToolSpec(name=name, description=text, parameters=_schema(arguments), final=final), arguments


class _Tool:
    """One tool: its spec, and a call with checked arguments."""

    def __init__(self, name: str, method: Callable[..., Any], bound: Callable[..., Any], final: bool) -> None:
        self.spec, self._arguments = _read(name, method, final)
        self._bound = bound

    def __call__(self, arguments: Mapping[str, Any]) -> Any:
        try:
            checked = self._arguments.model_validate(dict(arguments))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, p['loc'])) or 'arguments'}: {p['msg']}"
                for p in error.errors(include_url=False)[:3]
            )
            raise InvalidCall(f"{self.spec.name}: {problems}. Parameters: {self._signature()}") from None
        return self._bound(**{name: getattr(checked, name) for name in type(checked).model_fields})

    def _signature(self) -> str:
        fields = self._arguments.model_fields.items()
        return ", ".join(f"{n}{'' if f.is_required() else '?'}" for n, f in fields) or "none"


class Toolbox:
    """The tools of one environment instance, by name, in the order of their definition."""

    def __init__(self, owner: object, names: tuple[str, ...] | None = None) -> None:
        found: dict[str, _Tool] = {}
        for cls in reversed(type(owner).__mro__):
            for name, member in vars(cls).items():
                if hasattr(member, _MARK):
                    found[name] = _Tool(name, getattr(type(owner), name), getattr(owner, name), getattr(member, _MARK))
        if names is not None:
            for name in names:
                if name not in found:
                    raise ConfigError(unknown("tool", name, found))
            found = {name: t for name, t in found.items() if name in names or t.spec.final}
        if not any(t.spec.final for t in found.values()):
            raise ConfigError(f"{type(owner).__name__} has no final tool: nothing could end an episode")
        # Final tools last: the base class defines `answer`, which would otherwise come first.
        self._tools = dict(sorted(found.items(), key=lambda item: item[1].spec.final))

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the student is told of the tools."""
        return tuple(t.spec for t in self._tools.values())

    def is_final(self, call: ToolCall) -> bool:
        """Whether ``call`` ends the episode."""
        return call.name in self._tools and self._tools[call.name].spec.final

    def run(self, call: ToolCall) -> str:
        """The result of ``call`` as text. Raises :class:`InvalidCall` for an unknown tool or bad arguments."""
        if call.name not in self._tools:
            raise InvalidCall(unknown("tool", call.name[:80], self._tools))
        return str(self._tools[call.name](call.arguments))


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema()
    schema.pop("title", None)
    schema.pop("description", None)
    for prop in schema.get("properties", {}).values():
        prop.pop("title", None)
    return {"properties": {}, **schema}
