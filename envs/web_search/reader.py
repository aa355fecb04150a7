"""The two readers: pages of the web, and passages of a closed corpus."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ovd_gym.envs.web_search.addresses import AddressPolicy, parse_address
from ovd_gym.envs.web_search.base import CORPUS_SCHEME, ClosedCorpus, Page, PageReader
from ovd_gym.envs.web_search.extract import ExtractLimits, extract, require_libraries
from ovd_gym.envs.web_search.fetch import Fetcher
from ovd_gym.envs.web_search.manners import Manners
from ovd_gym.envs.web_search.page_cache import CacheSettings
from ovd_gym.envs.web_search.services import settings_of
from ovd_gym.envs.web_search.transport import FetchLimits
from ovd_gym.errors import ToolError
from ovd_gym.plugins import check_options

__all__ = ["CorpusReader", "WebReader", "web_reader"]


class WebReader(PageReader):
    """Reads web pages, PDFs and plain text from public addresses. Thread-safe.

    A server of one's own is reached by naming it, and needs no manners::

        WebReader(AddressPolicy(frozenset({("127.0.0.1", 8000)}), only_allowed=True),
                  manners=Manners(interval_s=0, robots=False))

    Args:
        policy: which addresses may be read; by default the public internet and nothing else.
        limits: of time, size and redirects.
        manners: rate, robots.txt and user agent.
        extraction: limits on taking a document apart.
        cache: where to keep pages; None keeps nothing.
        ca_file: certificate authorities (PEM) to trust instead of the public ones.

    Raises:
        ConfigError: a setting that cannot work, or a library of the extra ``search`` is missing.
    """

    def __init__(
        self,
        policy: AddressPolicy | None = None,
        *,
        limits: FetchLimits | None = None,
        manners: Manners | None = None,
        extraction: ExtractLimits | None = None,
        cache: CacheSettings | None = None,
        ca_file: str | None = None,
    ) -> None:
        require_libraries()
        self.extraction = extraction or ExtractLimits()
        self._fetcher = Fetcher(
            policy or AddressPolicy(), limits or FetchLimits(), manners or Manners(), cache=cache, ca_file=ca_file
        )

    def opens(self, url: str) -> bool:
        """Whether ``url`` is a web address that the policy does not refuse outright."""
        try:
            self._fetcher.policy.check(parse_address(url))
        except ToolError:
            return False
        return True

    def read(self, url: str) -> Page:
        """The page at ``url``; see :class:`~ovd_gym.envs.web_search.base.PageReader`."""
        return extract(self._fetcher.fetch(url), self.extraction)

    def close(self) -> None:
        """Give the cache's file back; connections never outlive a reading."""
        self._fetcher.close()


class CorpusReader(PageReader):
    """Reads ``doc:<id>`` from a closed corpus, and other addresses through ``web``, or not at all when that is None."""

    def __init__(self, corpus: ClosedCorpus, web: PageReader | None = None) -> None:
        self._corpus = corpus
        self._web = web

    def opens(self, url: str) -> bool:
        """Whether ``url`` names a document, or is an address that ``web`` would try."""
        return url.strip().startswith(CORPUS_SCHEME) or (self._web is not None and self._web.opens(url))

    def read(self, url: str) -> Page:
        """The passage or page at ``url``; see :class:`~ovd_gym.envs.web_search.base.PageReader`."""
        address = url.strip()
        if address.startswith(CORPUS_SCHEME):
            passage = self._corpus.passage(address.removeprefix(CORPUS_SCHEME))
            return Page(url=address, title=passage.title, text=passage.text, content_type="text/plain")
        if self._web is None:
            raise ToolError(f"{address[:200]!r} cannot be opened here: only documents {CORPUS_SCHEME}<id> can be read")
        return self._web.read(url)

    def close(self) -> None:
        """Close the web reader, if there is one; the corpus belongs to the caller."""
        if self._web is not None:
            self._web.close()


_SETTINGS: Mapping[str, Any] = {
    "policy": AddressPolicy,
    "limits": FetchLimits,
    "manners": Manners,
    "extraction": ExtractLimits,
    "cache": CacheSettings,
    "ca_file": str,
}
"""What the arguments of :class:`WebReader` are; all but the last have fields of their own."""


def web_reader(options: Mapping[str, Any]) -> WebReader:
    """A reader from plain data, as it stands in a configuration::

        web_reader({"policy": {"allow": [["127.0.0.1", 8000]], "only_allowed": True}, "manners": {"interval_s": 0}})

    Raises:
        ConfigError: an argument or a field that :class:`WebReader` and its settings do not have, or a bad value.
    """
    check_options("reader 'web'", WebReader, options)
    given = {name: value for name, value in options.items() if value is not None}
    return WebReader(**{name: settings_of(f"reader 'web', {name}", _SETTINGS[name], given[name]) for name in given})
