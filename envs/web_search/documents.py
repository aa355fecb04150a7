"""What a document says, in the worker process: title, text and links of a page, a PDF or plain text.

The libraries at work here were made for honest documents; a hostile one can keep them busy for hours or make them take
all memory. So nothing in this module runs in the caller's process: see :mod:`ovd_gym.envs.web_search.extract`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urldefrag, urljoin

from ovd_gym.envs.processes import confine
from ovd_gym.envs.web_search.plain import decode, normalise
from ovd_gym.errors import ToolError

__all__ = ["worker"]

MEMORY_BYTES = 1 << 30
MAX_TITLE = 300
MAX_LINK_TEXT = 200
MAX_URL = 2048
CACHED_BYTES = 262_144
"""A page larger than this is not left in the libraries' caches."""

Content = tuple[str, str, list[tuple[str, str]]]
"""Title, text, (text, address) of the links."""


def worker() -> Mapping[str, Callable[..., Any]]:
    """The role of this process: read documents, and nothing else."""
    import bs4  # noqa: F401  (the first page should not pay for the imports)
    import charset_normalizer  # noqa: F401
    import pypdf  # noqa: F401
    import trafilatura  # noqa: F401

    logging.disable()  # libraries complain of every page; their output goes nowhere
    confine(MEMORY_BYTES)
    return {"html": html, "pdf": pdf, "text": text}


def html(body: bytes, max_chars: int, url: str, charset: str, max_links: int) -> Content:
    """The main content of a page, with the links in it before those around it."""
    from trafilatura import load_html
    from trafilatura.meta import reset_caches

    source = decode(body, charset, html=True)
    tree = load_html(source)
    content, main = ("", set()) if tree is None else _main_content(tree)
    title, links = ("", []) if tree is None else (_title(tree), list(_links(tree, url, main, max_links)))
    content = _cut(normalise(content) or normalise(_all_text(source)), max_chars)
    if len(body) > CACHED_BYTES:
        reset_caches()
    return title, content, links


def text(body: bytes, max_chars: int, url: str, charset: str, max_links: int) -> Content:
    """Plain text, Markdown or JSON, as it is; the first line of Markdown may be a title."""
    content = normalise(decode(body, charset))
    first = content.partition("\n")[0]
    return first.lstrip("# ")[:MAX_TITLE] if first.startswith("# ") else "", _cut(content, max_chars), []


def pdf(body: bytes, max_chars: int, max_pages: int, time_s: float) -> Content:
    """The text of at most ``max_pages`` pages, or of as many as can be read in ``time_s``."""
    from io import BytesIO

    from pypdf import PdfReader
    from pypdf.errors import DependencyError

    started = time.monotonic()
    reader = PdfReader(BytesIO(body))
    try:
        if reader.is_encrypted and not reader.decrypt(""):
            raise ToolError("the PDF is encrypted and needs a password")
    except DependencyError:
        raise ToolError("the PDF is encrypted in a way that cannot be undone here") from None
    pages: list[str] = []
    for page in reader.pages[:max_pages]:
        if time.monotonic() - started > time_s or sum(map(len, pages)) > max_chars:
            break
        pages.append(normalise(page.extract_text()))
    content = "\n\n".join(filter(None, pages))
    if content and len(pages) < len(reader.pages):
        content += f"\n\n[Only the first {len(pages)} of {len(reader.pages)} pages were read.]"
    title = reader.metadata.title if reader.metadata else None
    return _line(title, MAX_TITLE) if isinstance(title, str) else "", _cut(content, max_chars), []


def _main_content(tree: Any) -> tuple[str, set[str]]:
    """Text of the main content, and the addresses it links to, as written."""
    from copy import deepcopy

    from lxml import etree  # type: ignore[import-untyped]
    from trafilatura import bare_extraction
    from trafilatura.settings import DEFAULT_CONFIG
    from trafilatura.xml import xmltotxt

    config = deepcopy(DEFAULT_CONFIG)
    # With the default, pages of a few sentences fall to a cruder method that takes their tables apart.
    config["DEFAULT"]["min_extracted_size"] = "1"
    found = bare_extraction(tree, include_links=True, include_comments=False, favor_recall=True, config=config)
    if found is None or isinstance(found, dict) or found.body is None:
        return "", set()
    targets = {str(link.get("target")) for link in found.body.iter("ref")}
    etree.strip_tags(found.body, "ref")  # else they come out as [text](address)
    return xmltotxt(found.body, include_formatting=False), targets


def _all_text(source: str) -> str:
    """All visible text: for pages in which no main content is found."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(source, "lxml")
    for element in soup(["script", "style", "template", "svg", "head"]):
        element.decompose()
    return soup.get_text("\n")


def _title(tree: Any) -> str:
    for name in ("title", "h1"):
        for element in tree.iter(name):
            if title := _line(element.text_content(), MAX_TITLE):
                return title
    return ""


def _links(tree: Any, url: str, main: set[str], max_links: int) -> Iterator[tuple[str, str]]:
    """(text, absolute address) of each address once; first those in ``main``, then the others, as they stand."""
    base = next((urljoin(url, element.get("href")) for element in tree.iter("base") if element.get("href")), url)
    anchors = [element for element in tree.iter("a") if len(element.get("href", "#")) <= MAX_URL]
    seen = {urldefrag(url)[0]}
    for anchor in sorted(anchors, key=lambda element: element.get("href") not in main):
        target = _absolute(base, anchor.get("href", ""))
        if target and target not in seen:
            seen.add(target)
            yield _line(anchor.text_content(), MAX_LINK_TEXT), target
        if len(seen) > max_links:
            return


def _absolute(base: str, href: str) -> str:
    """The web address that ``href`` leads to, without its fragment; "" when it leads to none."""
    href = href.strip()
    try:
        target = "" if href.startswith("#") else urldefrag(urljoin(base, href))[0]
    except ValueError:
        return ""
    return target if target.startswith(("http://", "https://")) and len(target) <= MAX_URL else ""


def _line(text: str, limit: int) -> str:
    return " ".join(normalise(text[: 20 * limit]).split())[:limit].rstrip()


def _cut(text: str, max_chars: int) -> str:
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}\n\n[Cut here: {len(text) - max_chars} more characters were left out.]"
