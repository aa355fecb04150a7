"""Where a server is, and how to be let in."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import HttpUrl, SecretStr, model_validator

from ovd_gym.errors import ConfigError
from ovd_gym.records import Record

__all__ = ["Endpoint"]

_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


class Endpoint(Record):
    """An address and a key.

    Raises:
        ConfigError: an address or a variable that is not safe.
    """

    base_url: HttpUrl
    """Of the API, such as ``http://localhost:8000/v1``. A key goes over https only, or to this machine."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key; None sends no key."""

    @property
    def host(self) -> str:
        """The server without the path."""
        return urlsplit(str(self.base_url)).netloc

    def key(self) -> SecretStr | None:
        """The key, from the environment. Raises ConfigError if it is not set, unfit for a header, or in an option."""
        if self.api_key_env is None:
            return None
        value = os.environ.get(self.api_key_env, "").strip()
        if not value:
            raise ConfigError(f"no key: set the environment variable {self.api_key_env}")
        if not (value.isascii() and value.isprintable()):
            raise ConfigError(f"the environment variable {self.api_key_env} holds characters that no header can carry")
        if value in self.model_dump_json():
            raise ConfigError(f"the key in {self.api_key_env} stands in the options as well: leave it out there")
        return SecretStr(value)

    @model_validator(mode="after")
    def _safe(self) -> Self:
        url = self.base_url
        host = url.host or ""
        if url.username or url.password or url.query or url.fragment:
            raise ConfigError(
                f"base_url of {host} holds a user, a query or a fragment: addresses are logged, so leave these out; "
                "the key comes from an environment variable (api_key_env)"
            )
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            raise ConfigError(
                "api_key_env takes the name of an environment variable in capitals, such as OPENAI_API_KEY, and never "
                "the key itself: keys in a configuration end up in logs"
            )
        if self.api_key_env is not None and url.scheme == "http" and not _is_this_machine(host):
            raise ConfigError(f"a key is not sent to {host} in the clear: use https")
        return self


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
