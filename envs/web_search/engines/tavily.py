"""Tavily: https://docs.tavily.com/documentation/api-reference/endpoint/search."""

from __future__ import annotations

from ovd_gym.envs.web_search.base import Hit
from ovd_gym.envs.web_search.engines.base import HttpEngine
from ovd_gym.envs.web_search.engines.http import Reply, Request
from ovd_gym.envs.web_search.engines.limits import Failure
from ovd_gym.envs.web_search.services import Answer

__all__ = ["TavilySearch"]


class _Result(Answer):
    title: str
    url: str
    content: str
    score: float


class TavilyAnswer(Answer):
    """Its ``answer``, written by a model, is neither asked for nor read."""

    results: tuple[_Result, ...]


class TavilySearch(HttpEngine):
    """Search made for agents. Needs ``TAVILY_API_KEY``; ``params`` such as ``{"search_depth": "advanced"}``."""

    name = "tavily"
    default_url = "https://api.tavily.com"
    key_variable = "TAVILY_API_KEY"
    key_header = "Authorization"
    key_prefix = "Bearer "
    answer = TavilyAnswer

    def request(self, query: str, top_k: int) -> Request:
        """POST with the key as a bearer token."""
        return Request(f"{self.base_url}/search", {}, {**self.params, "query": query, "max_results": top_k})

    def hits(self, answer: TavilyAnswer) -> list[Hit]:
        """All results, with Tavily's relevance in [0, 1] as score."""
        return [self.hit(r.title, r.url, r.content, r.score) for r in answer.results]

    def refusal(self, reply: Reply) -> Failure | None:
        """432 and 433 are the limits of the plan and of paying as you go."""
        if reply.status in (432, 433):
            return Failure("quota", f"status {reply.status}: the plan's limit is reached")
        return None
