"""Titles and snippets of search engines as plain text."""

from __future__ import annotations

import html
import re

__all__ = ["plain_text"]

_MARKUP = re.compile(
    r"</?(?:a|abbr|b|br|code|div|em|font|h[1-6]|i|li|mark|ol|p|q|s|small|span|strong|sub|sup|table|td|tr|tt|u|ul|wbr)"
    r"(?:\s[^<>]{0,500})?/?>",
    re.IGNORECASE,
)
_BREAKS = re.compile(r"<(?:br|p|div|li|tr|td|h[1-6])\b", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2060\ufeff]")


def plain_text(markup: str) -> str:
    """``markup`` without inline HTML, entities and control characters, on one line.

    Only the names of real HTML elements count as tags: engines also send plain text, in which ``a < b`` and
    ``List<String>`` mean themselves.

    >>> plain_text("<strong>Tom</strong> &amp; <b>Jerry</b>&#x27;s&nbsp;&lt;tag&gt;, List<String>")
    "Tom & Jerry's <tag>, List<String>"
    """
    text = _MARKUP.sub(lambda tag: " " if _BREAKS.match(tag.group()) else "", markup)
    text = html.unescape(text).encode("utf-8", "replace").decode("utf-8")  # half a pair of surrogates is no text
    return " ".join(_CONTROL.sub("", text).split())
