"""Bytes to text and text to plain text: charsets, control characters, blanks."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterator

__all__ = ["decode", "normalise"]

_ALIASES = {
    # What these labels mean on the web (https://encoding.spec.whatwg.org/#names-and-labels), by Python's names.
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "iso8859-11": "cp874",
    "tis-620": "cp874",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}
_CHARSETS = [
    *("utf-8", "utf-16", "utf-16-le", "utf-16-be", "gb18030", "big5", "big5hkscs", "euc_jp", "iso2022_jp", "koi8-r"),
    *("koi8-u", "mac-cyrillic", "mac-roman", "cp866", "cp874", "cp932", "cp949"),
    *(f"cp125{n}" for n in range(9)),
    *(f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)),
]
"""What a page may be written in. Python knows more codecs, and some take quadratic time (idna, punycode)."""
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_META = re.compile(rb"""<meta[^>]{0,500}?charset\s{0,20}=\s{0,20}["']?\s{0,20}([a-z0-9_:.-]{1,40})""", re.IGNORECASE)
_META_BYTES = 4096
_SAMPLE_BYTES = 65_536
_STRAY = 1000
"""One broken byte in this many characters does not disprove a declared charset."""

_LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f"  # controls
    "\u00ad\u200b\u2060-\u2064\ufeff\ufff9-\ufffb"  # hyphenation and width hints
    "\u202a-\u202e\u2066-\u2069"  # changes of direction, which can make text look like another
    "\ud800-\udfff\ufffe\uffff"  # no characters
    "\U000e0000-\U000e007f]"  # tags: text that only programs see
)
_MAX_INDENT = 32


def decode(body: bytes, charset: str = "", html: bool = False) -> str:
    """``body`` as text: byte-order mark, then ``charset`` (the header's), then the page's own word, then a guess.

    >>> decode("naïve".encode("latin-1"), "iso-8859-1")
    'naïve'
    """
    declared = list(dict.fromkeys(_declared(body, charset, html)))
    for name in (*declared, "utf-8"):
        try:
            return body.decode(name).removeprefix("\ufeff")
        except UnicodeDecodeError:
            continue
    for name in declared:
        text = body.decode(name, "replace")
        if text.count("\ufffd") <= 1 + len(text) // _STRAY:
            return text.removeprefix("\ufeff")
    return body.decode(_guess(body), "replace")


def normalise(text: str) -> str:
    """NFC, no invisible characters, one blank between words, at most one empty line; indentation stays. Idempotent.

    >>> normalise("a\\u200b \\xa0 b\\r\\n\\r\\n\\r\\n\\r\\n  c\\x07 ")
    'a b\\n\\n  c'
    """
    text = _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text))
    text = "\n".join(map(_trim, unicodedata.normalize("NFC", text).split("\n")))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def _trim(line: str) -> str:
    words = " ".join(line.split())
    indent = min(len(line) - len(line.lstrip()), _MAX_INDENT)
    return " " * indent + words if words else ""


def _declared(body: bytes, charset: str, html: bool) -> Iterator[str]:
    yield from (name for mark, name in _BOMS if body.startswith(mark))
    if name := _known(charset):
        yield name
    if html and (found := _META.search(body[:_META_BYTES])) and (name := _known(found[1].decode("ascii"))):
        yield "utf-8" if name.startswith("utf-16") else name  # it was read as ASCII, so it is not UTF-16


def _known(label: str) -> str:
    """Python's name of a charset, or "" for one that pages are not written in."""
    try:
        name = codecs.lookup(label.strip()).name
    except (LookupError, ValueError):
        return ""
    name = _ALIASES.get(name, name)
    return name if name in _CHARSETS else ""


def _guess(body: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(body[:_SAMPLE_BYTES], cp_isolation=_CHARSETS).best()
    return best.encoding if best else "utf-8"
