"""Live search engines as search backends: Brave, Serper, Tavily, SearXNG, and ddgs for several at once."""

from ovd_gym.envs.web_search.engines.base import HttpEngine
from ovd_gym.envs.web_search.engines.brave import BraveSearch
from ovd_gym.envs.web_search.engines.ddgs import DdgsSearch
from ovd_gym.envs.web_search.engines.searxng import SearxngSearch
from ovd_gym.envs.web_search.engines.serper import SerperSearch
from ovd_gym.envs.web_search.engines.tavily import TavilySearch

__all__ = ["BraveSearch", "DdgsSearch", "HttpEngine", "SearxngSearch", "SerperSearch", "TavilySearch"]
