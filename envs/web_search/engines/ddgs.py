"""ddgs, which asks several public engines without a key: https://github.com/deedy5/ddgs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pydantic import JsonValue

from ovd_gym.envs.web_search.base import Hit
from ovd_gym.envs.web_search.engines.limits import SYSTEM, Clock, Failure, Limits, Patience
from ovd_gym.envs.web_search.engines.text import plain_text
from ovd_gym.envs.web_search.services import Answer, BackendOutage, check_query, optional, read_answer
from ovd_gym.errors import ConfigError, unknown
from ovd_gym.records import Text

__all__ = ["DdgsSearch"]

CONTROL_QUERY = "wikipedia"
"""Every engine finds something for it, unless it is blocked."""
NOTHING_FOUND = "No results found."


class _Result(Answer):
    title: str
    href: Text
    body: str = ""


class DdgsAnswer(Answer):
    """What ``DDGS().text`` returns, under a name."""

    results: tuple[_Result, ...]


class DdgsSearch:
    """Public engines by way of the ``ddgs`` library: no key, no promise; for trying things out.

    The library cannot tell "nothing matches" from "blocked by all engines". So when it finds nothing, a second search
    for a word that everyone finds decides: if that fails too, it is an outage.

    Args:
        engines: names separated by commas, such as "duckduckgo,mojeek", or "auto".
        region: such as "us-en".
        timeout_s, deadline_s, retries, calls_per_s, max_calls: see
            :class:`~ovd_gym.envs.web_search.engines.limits.Limits`.
        clock: time, for tests.

    Raises:
        ConfigError: ``ddgs`` is not installed, or an engine it does not know.
    """

    name = "ddgs"

    def __init__(
        self,
        *,
        engines: str = "auto",
        region: str = "us-en",
        timeout_s: float = 10.0,
        deadline_s: float = 30.0,
        retries: int = 2,
        calls_per_s: float | None = 0.5,
        max_calls: int | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self._library, self._errors = optional("ddgs"), optional("ddgs.exceptions")
        known = {"auto", *optional("ddgs.engines").ENGINES["text"]}
        for engine in engines.split(","):
            if engine.strip() not in known:
                raise ConfigError(unknown("engine of ddgs", engine.strip(), known))
        self._engines, self._region = engines, region
        self._limits = Limits(timeout_s, deadline_s, retries, calls_per_s, max_calls)
        self._patience = Patience(self.name, self._limits, clock)

    def search(self, query: str, top_k: int) -> list[Hit]:
        """At most ``top_k`` hits, best first, in plain text.

        Raises:
            ToolError: an empty or overlong query.
            BackendOutage: no answer, or none from any engine.
        """
        query = check_query(query, top_k, max_chars=400)
        results = self._ask(query, top_k)
        if not results and not self._ask(CONTROL_QUERY, 1):
            raise BackendOutage(self.name, "http", "no engine answers: blocked, or down")
        return [
            Hit(id=r.href, title=plain_text(r.title), url=r.href, snippet=plain_text(r.body), source=self.name)
            for r in results[:top_k]
        ]

    def describe(self) -> Mapping[str, JsonValue]:
        """Kind, engines and region."""
        return {"kind": self.name, "engines": self._engines, "region": self._region}

    def close(self) -> None:
        """Nothing is kept open between searches."""

    def _ask(self, query: str, top_k: int) -> tuple[_Result, ...]:
        found = self._patience.call(lambda deadline: self._attempt(query, top_k))
        return read_answer(self.name, DdgsAnswer, {"results": found}).results

    def _attempt(self, query: str, top_k: int) -> list[dict[str, Any]] | Failure:
        client = self._library.DDGS(timeout=max(1, round(self._limits.timeout_s)))
        try:
            found: list[dict[str, Any]] = client.text(
                query, region=self._region, backend=self._engines, max_results=top_k
            )
        except self._errors.TimeoutException:
            return Failure("timeout", f"no answer within {self._limits.timeout_s:g} s", again=True)
        except self._errors.RatelimitException:
            return Failure("quota", "too many requests", again=True)
        except self._errors.DDGSException as error:
            if str(error) == NOTHING_FOUND:
                return []
            return Failure("connection", "no engine could be reached", again=True)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, ({"engines": self._engines, "region": self._region, **asdict(self._limits)},)


def _rebuild(options: dict[str, Any]) -> DdgsSearch:
    return DdgsSearch(**options)
