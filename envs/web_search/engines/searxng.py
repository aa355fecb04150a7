"""SearXNG, a metasearch engine to host oneself: https://docs.searxng.org/dev/search_api.html."""

from __future__ import annotations

from ovd_gym.envs.web_search.base import Hit
from ovd_gym.envs.web_search.engines.base import HttpEngine
from ovd_gym.envs.web_search.engines.http import Reply, Request
from ovd_gym.envs.web_search.engines.limits import Failure
from ovd_gym.envs.web_search.services import Answer, BackendOutage

__all__ = ["SearxngSearch"]


class _Result(Answer):
    title: str
    url: str
    content: str | None = ""
    score: float | None = None


class SearxngAnswer(Answer):
    """Results of all engines it asked, best first, and the engines that did not answer, with the reason."""

    results: tuple[_Result, ...]
    unresponsive_engines: tuple[tuple[str, ...], ...] = ()


class SearxngSearch(HttpEngine):
    """A SearXNG instance: ``SearxngSearch("https://search.example.org")``. It must allow JSON (``search.formats``)."""

    name = "searxng"
    answer = SearxngAnswer
    max_query_chars = 1000

    def request(self, query: str, top_k: int) -> Request:
        """GET; the number of results is the instance's choice."""
        params = {name: str(value) for name, value in self.params.items()}
        return Request(f"{self.base_url}/search", params | {"q": query, "format": "json"})

    def hits(self, answer: SearxngAnswer) -> list[Hit]:
        """All results; none although engines failed is an outage: they may have been the ones that know."""
        if not answer.results and answer.unresponsive_engines:
            count = len(answer.unresponsive_engines)
            raise BackendOutage(self.name, "http", f"no results, but {count} of its engines did not answer")
        return [self.hit(r.title, r.url, r.content or "", r.score) for r in answer.results]

    def refusal(self, reply: Reply) -> Failure | None:
        """403 is what an instance says that does not offer JSON."""
        if reply.status == 403:
            return Failure("auth", "status 403: the instance refuses; 'json' must be among its search.formats")
        return None
