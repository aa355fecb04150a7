"""Readers put together, and reading piece by piece."""

from __future__ import annotations

import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd_gym.envs.processes import pack, unpack
from ovd_gym.envs.web_search.addresses import AddressPolicy
from ovd_gym.envs.web_search.base import Page, PageReader, Passage
from ovd_gym.envs.web_search.manners import Manners
from ovd_gym.envs.web_search.page_cache import CacheSettings
from ovd_gym.envs.web_search.reader import CorpusReader, WebReader, web_reader
from ovd_gym.envs.web_search.reading import find_in_text, paginate
from ovd_gym.errors import ConfigError, ToolError

BODY = """<html><head><meta charset="iso-8859-1"><title>Caf\xe9</title></head>
<body><p>The Caf\xe9 opened in 1889. See <a href="next">the next page</a>.</p></body></html>"""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path.startswith("/wiki/") else 404)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(BODY.encode("latin-1"))

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Corpus:
    def passage(self, id: str) -> Passage:
        if id != "a b/7":
            raise ToolError(f"there is no document {id!r}")
        return Passage(id=id, title="Seven", text="It is prime.", url="https://example.org/7")

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        return [self.passage(id) for id in ids]


class Recorder(PageReader):
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.closed = False

    def read(self, url: str) -> Page:
        self.asked.append(url)
        return Page(url=url, title="", text="web")

    def close(self) -> None:
        self.closed = True


# Readers ----------------------------------------------------------------------------------------------------


def test_a_web_page_from_end_to_end(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    policy = AddressPolicy(frozenset({("127.0.0.1", server.server_port)}), only_allowed=True)
    settings = CacheSettings(tmp_path / "pages.sqlite")
    reader = WebReader(policy, manners=Manners(interval_s=0, robots=False), cache=settings)
    site = f"http://127.0.0.1:{server.server_port}"
    page = reader.read(f"{site}/wiki/cafe#top")
    assert (page.url, page.title) == (f"{site}/wiki/cafe", "Café")
    assert page.text == "The Café opened in 1889. See the next page."
    assert [(link.text, link.url) for link in page.links] == [("the next page", f"{site}/wiki/next")]
    assert reader.read(f"{site}/wiki/cafe") == page
    for url, message in (
        (f"{site}/x", "no page at"),
        ("https://example.org/", "not among the sites"),
        ("x", "must begin"),
    ):
        with pytest.raises(ToolError, match=message):
            reader.read(url)
    reader.close()


def test_a_reader_from_a_configuration(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    site = f"http://127.0.0.1:{server.server_port}/wiki"
    reader = web_reader(
        {
            "policy": {"allow": [["127.0.0.1", server.server_port]], "only_allowed": True},
            "limits": {"max_bytes": 1000, "total_s": 5},
            "manners": {"interval_s": 0, "robots": False},
            "extraction": {"max_chars": 10},
            "cache": {"path": str(tmp_path / "pages.sqlite")},
            "ca_file": None,
        }
    )
    assert reader.read(f"{site}/cafe").text.startswith("The Café o\n\n[Cut here")
    assert (tmp_path / "pages.sqlite").exists()
    assert reader.opens(f"{site}/x")
    assert not any(map(reader.opens, ("https://example.org/", "doc:1", "")))
    reader.close()


def test_threads_share_a_reader(server: ThreadingHTTPServer) -> None:
    policy = AddressPolicy(frozenset({("127.0.0.1", server.server_port)}))
    reader = WebReader(policy, manners=Manners(interval_s=0, robots=False))
    pages: list[Page] = []

    def read(number: int) -> None:
        pages.append(reader.read(f"http://127.0.0.1:{server.server_port}/wiki/{number}"))

    threads = [threading.Thread(target=read, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({page.url for page in pages}) == 16
    assert {page.title for page in pages} == {"Café"}


def test_a_corpus_and_nothing_else() -> None:
    reader = CorpusReader(Corpus())
    page = reader.read(" doc:a b/7 ")
    assert page == Page(url="doc:a b/7", title="Seven", text="It is prime.", content_type="text/plain")
    with pytest.raises(ToolError, match="no document 'nine'"):
        reader.read("doc:nine")
    for url in ("https://example.org/7", "a b/7", "DOC:a b/7", ""):
        with pytest.raises(ToolError, match="only documents doc:<id>"):
            reader.read(url)
    reader.close()


def test_a_corpus_with_the_web_behind_it() -> None:
    web = Recorder()
    reader = CorpusReader(Corpus(), web)
    assert reader.read("doc:a b/7").text == "It is prime."
    assert reader.read("https://example.org/").text == "web"
    assert web.asked == ["https://example.org/"]
    reader.close()
    assert web.closed


def test_importing_the_reader_loads_no_extraction_library() -> None:
    heavy = {"trafilatura", "pypdf", "bs4", "lxml", "requests_cache"}
    code = f"import sys, ovd_gym.envs.web_search.reader; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@given(st.recursive(st.binary() | st.text() | st.integers() | st.none(), st.lists))
def test_what_goes_to_a_worker_comes_back(value: Any) -> None:
    assert unpack(pack(value)) == value
    assert unpack(pack({"a": value, 1: [value]})) == {"a": value, 1: [value]}


# Pages of a long text ---------------------------------------------------------------------------------------

PROSE = st.text(alphabet="ab. \n!?'\"。é\u0301😀", max_size=300)


@given(PROSE | st.text(max_size=300), st.integers(1, 120))
def test_pages_hold_every_character(text: str, page_chars: int) -> None:
    pages = paginate(text, page_chars)
    assert "".join(pages) == text
    assert all(len(page) <= page_chars for page in pages)
    assert all(pages) or pages == ("",)


@given(PROSE, st.integers(1, 120))
def test_pages_are_at_least_half_full(text: str, page_chars: int) -> None:
    assert all(len(page) >= page_chars / 2 for page in paginate(text, page_chars)[:-1])


@pytest.mark.parametrize(
    ("text", "pages"),
    [
        ("", ("",)),
        ("short", ("short",)),
        ("exactly twenty chars", ("exactly twenty chars",)),
        ("First one.\n\nNext two. Three.", ("First one.\n\n", "Next two. Three.")),
        ("A line of it\nanother. line", ("A line of it\n", "another. line")),
        ("One sentence. And another one.", ("One sentence. ", "And another one.")),
        ("no sentence ends in here", ("no sentence ends in ", "here")),
        ("x" * 45, ("x" * 20, "x" * 20, "x" * 5)),
    ],
)
def test_pages_end_where_something_ends(text: str, pages: tuple[str, ...]) -> None:
    assert paginate(text, 20) == pages


def test_a_page_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="page_chars"):
        paginate("text", 0)


# Finding ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "needle", "found"),
    [
        ("In the CAFÉ of Zürich", "cafe of zurich", ["CAFÉ of Zürich"]),
        ("In the cafe", "CAFÉ", ["cafe"]),
        ("cafe\u0301 noir", "café noir", ["cafe\u0301 noir"]),
        ("Die Straße, die STRASSE", "strasse", ["Straße", "STRASSE"]),
        ("two\n  words", "two words", ["two\n  words"]),
        ("two words", "  two   words ", ["two words"]),
        ("ﬁne ½ ①", "fine", ["ﬁne"]),
        ("a.b a+b axb", "a+b", ["a+b"]),
        ("ИВАН Иван", "иван", ["ИВАН", "Иван"]),
        ("Ἀθῆναι", "αθηναι", ["Ἀθῆναι"]),
        ("nothing", "something", []),
    ],
)
def test_case_accents_and_blanks_do_not_matter(text: str, needle: str, found: list[str]) -> None:
    findings = find_in_text(text, needle, context=0)
    assert [text[match.start : match.end] for match in findings.matches] == found
    assert findings.total == len(found)


@given(st.text(max_size=200), st.text(max_size=5), st.integers(0, 30), st.integers(1, 4))
def test_matches_stand_where_they_say(text: str, needle: str, context: int, limit: int) -> None:
    try:
        findings = find_in_text(text + needle, needle, context, limit)
    except ToolError:
        assert not needle.strip() or not find_folded(needle)
        return
    text += needle
    assert 1 <= len(findings.matches) <= min(limit, findings.total)
    for match in findings.matches:
        passage_end = match.passage_start + len(match.passage)
        assert text[match.passage_start : passage_end] == match.passage
        assert match.passage_start <= match.start < match.end <= passage_end
        assert match.start - match.passage_start <= context
        assert passage_end - match.end <= context
        assert find_folded(text[match.start : match.end]) == find_folded(needle)


def find_folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return " ".join("".join(c for c in decomposed if not unicodedata.combining(c)).casefold().split())


def test_passages_end_with_words_and_do_not_repeat() -> None:
    text = " ".join(f"word{n} needle" for n in range(100))
    findings = find_in_text(text, "Needle", context=20, limit=3)
    assert findings.total == 100
    assert len(findings.matches) == 3
    assert findings.matches[0].passage == "word0 needle word1 needle word2"
    assert findings.matches[1].passage_start > len(findings.matches[0].passage) - 20
    assert all(not match.passage.startswith(" ") for match in findings.matches)
    starts = [match.start for match in findings.matches]
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("needle", ["", "  \n", "\u0301", "x" * 501])
def test_nothing_to_find_is_the_askers_mistake(needle: str) -> None:
    with pytest.raises(ToolError, match="1 to 500 characters"):
        find_in_text("some text", needle)
