"""What backends share that ask a service: outages with a cause, checked queries and answers, keys that stay hidden."""

from __future__ import annotations

import importlib
import ipaddress
import os
from collections.abc import Mapping
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ovd_gym.envs.web_search.base import SearchOutage
from ovd_gym.errors import ConfigError, ToolError
from ovd_gym.plugins import check_options
from ovd_gym.records import first_problem

__all__ = ["Answer", "BackendOutage", "Cause", "EnvKey", "check_address", "check_query", "optional", "read_answer"]
__all__ += ["settings_of"]

Cause = Literal["auth", "quota", "budget", "timeout", "connection", "http", "malformed"]
"""``auth``: the key is missing or refused. ``quota``: the service's limit, also a rate limit that outlasted the
retries. ``budget``: our own ``max_calls``. ``timeout``: a call's limit or the deadline. ``connection``: nothing
answered. ``http``: any other status. ``malformed``: an answer that is not what the service documents."""


class BackendOutage(SearchOutage):
    """A :class:`SearchOutage` that says whose and why. Holds plain text alone: it can be logged, stored and pickled."""

    def __init__(self, backend: str, cause: Cause, detail: str) -> None:
        super().__init__(backend, cause, detail)
        self.backend = backend
        self.cause = cause
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.backend}: {self.cause}: {self.detail}"


class Answer(BaseModel):
    """Base of the schemas of answers: fields that are not named are ignored, those that are must be as documented."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


A = TypeVar("A", bound=Answer)


def read_answer(backend: str, schema: type[A], content: bytes | Mapping[str, Any]) -> A:
    """``content`` (JSON, or read from it) as ``schema``. Raises :class:`BackendOutage` when it is something else."""
    try:
        if isinstance(content, bytes):
            return schema.model_validate_json(content)
        return schema.model_validate(content)
    except ValidationError as error:
        problem = first_problem(error)
    raise BackendOutage(backend, "malformed", f"the answer is not what is documented: {problem}")


class EnvKey:
    """A secret from an environment variable. Its repr hides it; a pickle holds the variable's name alone.

    Raises:
        ConfigError: the variable is not set; the message names it.
    """

    def __init__(self, variable: str) -> None:
        self.variable = variable
        self._value = os.environ.get(variable, "").strip()
        if not self._value:
            raise ConfigError(f"no key: set the environment variable {variable}")
        if not (self._value.isascii() and self._value.isprintable()):
            raise ConfigError(f"the environment variable {variable} holds characters that no header can carry")

    def reveal(self) -> str:
        """The secret itself, for a request's header."""
        return self._value

    def __repr__(self) -> str:
        return f"EnvKey({self.variable!r})"

    def __reduce__(self) -> tuple[type[EnvKey], tuple[str]]:
        return EnvKey, (self.variable,)


def check_query(query: str, top_k: int, max_chars: int) -> str:
    """``query`` with its white space tidied. Raises :class:`~ovd_gym.errors.ToolError` if it cannot be asked."""
    query = " ".join(query.encode("utf-8", "replace").decode("utf-8").split())
    if not query:
        raise ToolError("the query is empty: say what to search for")
    if len(query) > max_chars:
        raise ToolError(f"the query has {len(query)} characters, at most {max_chars} are allowed: ask for less at once")
    if top_k < 1:
        raise ToolError(f"top_k must be at least 1, got {top_k}")
    return query


def check_address(url: str, *, with_key: bool = False) -> str:
    """``url`` without a trailing slash. Raises ConfigError, which does not repeat it, unless it is safe to show.

    Args:
        url: ``http://host`` or ``https://host``, with a path if need be; no user, query or fragment, since addresses
            are logged. ``with_key`` demands https, except for this machine.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError("the address of a search service must be http://host or https://host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"the address of the search service at {parts.hostname} holds a user, a query or a fragment: addresses are "
            "logged, so leave these out; secrets come from environment variables"
        )
    if with_key and parts.scheme == "http" and not _is_this_machine(parts.hostname):
        raise ConfigError(f"a key is not sent to {parts.hostname} in the clear: use https")
    return url.rstrip("/")


def optional(module: str, install: str = '"ovd-gym[search]"') -> Any:
    """Import a library that not everybody needs. Raises ConfigError saying how to get it: ``pip install`` what."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ConfigError(f"this needs the package {package!r}: pip install {install}") from error


def settings_of(what: str, kind: Any, value: Any) -> Any:
    """``value``, as it stands in a configuration, as a ``kind``: a dataclass of settings, or any plain type.

    Args:
        what: the settings as the user knows them, such as ``"reader 'web', limits"``.

    Raises:
        ConfigError: a field that ``kind`` does not have, or a value that it does not take.
    """
    if isinstance(value, Mapping):
        check_options(what, kind, value)
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{what}: {first_problem(error)}") from None


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
