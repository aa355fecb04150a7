"""Serper, Google's results: https://serper.dev."""

from __future__ import annotations

from ovd_gym.envs.web_search.base import Hit
from ovd_gym.envs.web_search.engines.base import HttpEngine
from ovd_gym.envs.web_search.engines.http import Reply, Request
from ovd_gym.envs.web_search.engines.limits import Failure
from ovd_gym.envs.web_search.services import Answer

__all__ = ["SerperSearch"]


class _Result(Answer):
    title: str
    link: str
    snippet: str = ""


class _Asked(Answer):
    q: str


class SerperAnswer(Answer):
    """The echo of the request is always there; ``organic`` may be left out when no page matched."""

    searchParameters: _Asked
    organic: tuple[_Result, ...] = ()


class SerperSearch(HttpEngine):
    """Google's organic results. Needs ``SERPER_API_KEY``; ``params`` such as ``{"gl": "de", "hl": "de"}``."""

    name = "serper"
    default_url = "https://google.serper.dev"
    key_variable = "SERPER_API_KEY"
    key_header = "X-API-KEY"
    answer = SerperAnswer
    max_query_chars = 2000

    def request(self, query: str, top_k: int) -> Request:
        """POST with the key as ``X-API-KEY``."""
        return Request(f"{self.base_url}/search", {}, {**self.params, "q": query, "num": top_k})

    def hits(self, answer: SerperAnswer) -> list[Hit]:
        """Organic results alone: an answer box names no page to open."""
        return [self.hit(result.title, result.link, result.snippet) for result in answer.organic]

    def refusal(self, reply: Reply) -> Failure | None:
        """An empty account is a 400 here."""
        if reply.status == 400 and b"credits" in reply.content:
            return Failure("quota", "status 400: no credits left")
        return None
