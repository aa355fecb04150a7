"""The client libraries of Elasticsearch and OpenSearch: connecting, and what their exceptions mean."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ovd_gym.envs.web_search.services import Cause, EnvKey, check_address, optional
from ovd_gym.errors import ConfigError

__all__ = ["connect", "failures", "meaning", "package_of"]

KEY_VARIABLE = "ELASTICSEARCH_API_KEY"


def connect(url: str, timeout_s: float, retries: int) -> Any:
    """A client of Elasticsearch at ``url``, with the key from ``ELASTICSEARCH_API_KEY`` if that is set."""
    key = EnvKey(KEY_VARIABLE) if os.environ.get(KEY_VARIABLE) else None
    return optional("elasticsearch").Elasticsearch(
        check_address(url, with_key=key is not None),
        api_key=key.reveal() if key else None,
        request_timeout=timeout_s,
        max_retries=retries,
        retry_on_timeout=False,
    )


def package_of(client: Any) -> str:
    """The library that ``client`` is of. Raises ConfigError when it is of neither."""
    for kind in type(client).__mro__:
        if (package := kind.__module__.partition(".")[0]) in ("elasticsearch", "opensearchpy"):
            return package
    raise ConfigError(f"expected an address, or a client of elasticsearch or opensearchpy, got {type(client).__name__}")


def failures(errors: Any) -> tuple[type[Exception], ...]:
    """The roots of a client library's exceptions."""
    names = ("ApiError", "TransportError", "OpenSearchException")
    return tuple(getattr(errors, name) for name in names if hasattr(errors, name))


_BY_NAME: Mapping[str, tuple[Cause, str]] = {
    "ConnectionTimeout": ("timeout", "no answer in time"),
    "SerializationError": ("malformed", "the answer is not JSON"),
    "UnsupportedProductError": (
        "malformed",
        "the server is not Elasticsearch; for OpenSearch, give a client of opensearch-py",
    ),
}
_BY_STATUS: Mapping[object, tuple[Cause, str]] = {
    401: ("auth", "status 401: the key is missing or refused"),
    403: ("auth", "status 403: the key does not allow this"),
    404: ("http", "status 404: no such index; make it with create_index"),
    429: ("quota", "status 429: too many requests"),
}


def meaning(error: Exception) -> tuple[Cause, str]:
    """Names of classes are what the two client libraries have in common."""
    name, status = type(error).__name__, getattr(error, "status_code", None)
    if known := _BY_NAME.get(name) or _BY_STATUS.get(status):
        return known
    return (
        ("http", f"status {status}") if isinstance(status, int) else ("connection", f"the connection failed ({name})")
    )
