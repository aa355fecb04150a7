"""An article as HTML and as plain text; both say the same."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import jinja2

from ovd_gym.envs.web_search.world.article import Article, Line

__all__ = ["ROOT", "article_html", "article_text", "index_html"]

ROOT = "/wiki/"
"""Where pages are on the site: ``/wiki/<id>``."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
)


def article_html(article: Article) -> str:
    """The page as an HTML document; names and numbers are escaped by Jinja."""
    return _TEMPLATES.get_template("page.html.j2").render(article=article, root=ROOT)


def index_html(pages: Iterable[tuple[str, str]]) -> str:
    """A list of links to ``pages``, given as (id, title)."""
    return _TEMPLATES.get_template("index.html.j2").render(pages=pages, root=ROOT)


def article_text(article: Article) -> str:
    """The page below its title as plain text, one block a line."""
    blocks = [
        _plain(article.hatnote),
        _plain(article.intro),
        *(f"{label}: {_plain(spans)}" for label, spans in article.table),
        *(f"{section.heading}. {_plain(section.lines)}" for section in article.sections),
        f"See also: {_plain(article.related)}" if article.related else "",
    ]
    return "\n".join(filter(None, blocks))


def _plain(line: Line) -> str:
    return "".join(span.text for span in line)
