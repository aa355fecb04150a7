"""Options of plug-ins that a configuration names: checked before anything is made."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ovd_gym.errors import ConfigError, unknown

__all__ = ["check_options", "find_function"]


def check_options(what: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise ConfigError if ``factory`` cannot be called with ``options`` as keyword arguments.

    Args:
        what: the plug-in as the user knows it, such as ``"teacher 'digits'"``.
    """
    try:
        signature = inspect.signature(factory)
    except ValueError:  # a partial whose function does not take what was bound: the questions
        raise ConfigError(f"{what}: it must take the questions as its first argument, and return a policy") from None
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in () if takes_all else options:
        if name not in signature.parameters:
            raise ConfigError(unknown(f"option of {what}:", name, signature.parameters))
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}; its options: {', '.join(signature.parameters)}") from None


def find_function(key: str, name: str, known: Iterable[str] = ()) -> Callable[..., Any]:
    """The function that ``name`` (``package.module:function``) means; ``key`` is where the user wrote it.

    Raises ConfigError if there is none; ``known`` are the short names that would have been allowed.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{unknown(key, name, known)}, or 'package.module:function'")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing a plug-in runs its code; what it raises becomes one line
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"{key}: cannot import {name!r}: {problem}") from error
    if not inspect.isfunction(found):
        raise ConfigError(f"{key}: {name!r} is a {type(found).__name__}, expected a function")
    return found
