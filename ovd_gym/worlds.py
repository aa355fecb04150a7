"""An environment from its Gymnasium id and options. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from inspect import Parameter, signature
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError, OvdGymError, unknown

__all__ = ["family", "make_env", "tool_env"]


def make_env(name: str, options: Mapping[str, Any]) -> gym.Env[str, str]:
    """The environment ``name`` (``module:id`` imports the module that registers it).

    Raises :class:`ConfigError` for an unknown id, a class that is not a ToolEnv, or options it does not take.
    """
    try:
        env = gym.make(name, disable_env_checker=True, **options)
    except OvdGymError:
        raise
    except gym.error.Error as error:
        known = [spec for spec in gym.registry if spec.startswith("ovd_gym/")]
        raise ConfigError(f"{unknown('environment', name, known)}, or 'module:ID' ({_line(error)})") from None
    except Exception as error:  # a plug-in may raise anything while it is made; it becomes one line
        if isinstance(error, TypeError) and (refused := _unknown_option(name, options)):
            raise ConfigError(refused) from None
        raise ConfigError(f"environment {name!r} cannot be made: {type(error).__name__}: {_line(error)}") from error
    tool_env(env)
    return env


def family(name: str, options: Mapping[str, Any]) -> tuple[gym.Env[str, str], Callable[[], gym.Env[str, str]]]:
    """One environment ``name``, and what makes more of them that share what it has loaded, such as its tasks.

    Raises what :func:`make_env` raises.
    """
    first = make_env(name, options)
    shared = {key: value for key, value in options.items() if key not in ("tasks", "task_options")}
    return first, partial(make_env, name, shared | tool_env(first).shared_options())


def tool_env(env: gym.Env[Any, Any]) -> ToolEnv:
    """The world inside any wrappers. Raises :class:`ConfigError` if it is none of ours."""
    if not isinstance(env.unwrapped, ToolEnv):
        raise ConfigError(f"{type(env.unwrapped).__name__} is not an ovd_gym.envs.base.ToolEnv")
    return env.unwrapped


def _unknown_option(name: str, options: Mapping[str, Any]) -> str | None:
    """A word on the first of ``options`` that neither the environment's class nor one above it takes."""
    made = gym.spec(name.rpartition(":")[2]).entry_point
    maker = load_env_creator(made) if isinstance(made, str) else made
    classes = [cls for cls in getattr(maker, "__mro__", ()) if "__init__" in vars(cls) and cls is not object]
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    takes = [key for cls in classes for key, p in signature(cls).parameters.items() if p.kind in named]
    return next((unknown(f"option of {name}:", key, takes) for key in options if takes and key not in takes), None)


def _line(error: Exception) -> str:
    """The message in one line, without the arguments that Gymnasium appends."""
    return " ".join(str(error).partition(" was raised from")[0].split())
