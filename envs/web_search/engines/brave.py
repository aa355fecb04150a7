"""Brave Search: https://api-dashboard.search.brave.com/api-reference/web/search/get."""

from __future__ import annotations

from typing import Literal

from ovd_gym.envs.web_search.base import Hit
from ovd_gym.envs.web_search.engines.base import HttpEngine
from ovd_gym.envs.web_search.engines.http import Reply, Request
from ovd_gym.envs.web_search.engines.limits import Failure
from ovd_gym.envs.web_search.services import Answer
from ovd_gym.errors import ToolError

__all__ = ["BraveSearch"]


class _Result(Answer):
    title: str
    url: str
    description: str = ""
    extra_snippets: tuple[str, ...] = ()


class _Web(Answer):
    results: tuple[_Result, ...]


class BraveAnswer(Answer):
    """``web`` is left out when no page matched."""

    type: Literal["search"]
    web: _Web | None = None


class BraveSearch(HttpEngine):
    """Brave's own index of the web. Needs ``BRAVE_API_KEY``; ``params`` such as ``{"country": "DE"}``."""

    name = "brave"
    default_url = "https://api.search.brave.com/res/v1"
    key_variable = "BRAVE_API_KEY"
    key_header = "X-Subscription-Token"
    answer = BraveAnswer
    max_words = 50

    def check(self, query: str, top_k: int) -> str:
        """As for every engine, and at most 50 words."""
        query = super().check(query, top_k)
        if (words := len(query.split())) > self.max_words:
            raise ToolError(f"the query has {words} words, at most {self.max_words} are allowed: ask for less at once")
        return query

    def request(self, query: str, top_k: int) -> Request:
        """GET with the key as ``X-Subscription-Token``."""
        params = {name: str(value) for name, value in self.params.items()}
        return Request(f"{self.base_url}/web/search", params | {"q": query, "count": str(top_k)})

    def hits(self, answer: BraveAnswer) -> list[Hit]:
        """Web results alone."""
        results = answer.web.results if answer.web else ()
        return [self.hit(r.title, r.url, " ".join((r.description, *r.extra_snippets))) for r in results]

    def refusal(self, reply: Reply) -> Failure | None:
        """A wrong key is a 422 here, as is a wrong parameter."""
        if reply.status == 422 and (b"SUBSCRIPTION_TOKEN" in reply.content or b"subscription-token" in reply.content):
            return Failure("auth", "status 422: the key was refused")
        return None
