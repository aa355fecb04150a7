"""Options of plug-ins that a configuration names: checked before anything is made."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ovd_gym.errors import ConfigError, unknown

__all__ = ["check_options"]


def check_options(what: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise ConfigError if ``factory`` cannot be called with ``options`` as keyword arguments.

    Args:
        what: the plug-in as the user knows it, such as ``"teacher 'digits'"``.
    """
    signature = inspect.signature(factory)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in () if takes_all else options:
        if name not in signature.parameters:
            raise ConfigError(unknown(f"option of {what}:", name, signature.parameters))
    try:
        signature.bind(**options)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}; its options: {', '.join(signature.parameters)}") from None
