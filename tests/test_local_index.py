"""The local index: ranking, untrusted queries, snippets, and a folder that is whole or not there."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_gym.envs.web_search import index_write
from ovd_gym.envs.web_search.base import Passage, SearchOutage
from ovd_gym.envs.web_search.index_query import Analyser, snippet
from ovd_gym.envs.web_search.index_sources import join_contents, read_passages, split_contents
from ovd_gym.envs.web_search.index_store import verify
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.errors import ConfigError, DataError, ToolError

QA = Path(__file__).resolve().parents[2] / "shared" / "data" / "qa"

PASSAGES = [
    Passage(id="roentgen", title="Wilhelm Röntgen", text="A physicist. He discovered X-rays in Würzburg in 1895."),
    Passage(id="curie", title="Marie Curie", text="She won two Nobel Prizes, for physics and for chemistry."),
    Passage(id="who", title="The Who", text="An English rock band formed in London.", url="https://example.org/who"),
    Passage(id="nobel", title="Nobel Prize", text="Prizes awarded each year.", metadata={"src": ["a", 1]}),
    Passage(id="db", title="Query languages", text="The operators AND, OR and NOT; title:value; (a OR b)^2."),
]


@pytest.fixture
def memory() -> LocalIndex:
    return LocalIndex.in_memory(PASSAGES)


def ids(index: LocalIndex, query: str, top_k: int = 5) -> list[str]:
    return [hit.id for hit in index.search(query, top_k)]


# Searching ----------------------------------------------------------------------------------------------


def test_a_hit_says_what_and_where(memory: LocalIndex) -> None:
    hit = memory.search("Who discovered X-rays?", 1)[0]
    assert (hit.id, hit.url, hit.title, hit.source) == ("roentgen", "doc:roentgen", "Wilhelm Röntgen", "local")
    assert hit.snippet == PASSAGES[0].text
    assert hit.score is not None
    assert hit.score > 0


def test_a_passage_with_an_address_of_its_own_is_found_there(memory: LocalIndex) -> None:
    assert memory.search("english band", 1)[0].url == "https://example.org/who"
    odd = ("javascript:alert(1)", "file:///etc/passwd", "doc:roentgen", "//example.org", "example.org")
    index = LocalIndex.in_memory(Passage(id=f"p{i}", title="Odd", text="odd", url=url) for i, url in enumerate(odd))
    assert {hit.url for hit in index.search("odd", 9)} == {f"doc:p{i}" for i in range(len(odd))}


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("discovering", "roentgen"),  # stems
        ("ROENTGEN rontgen", "roentgen"),  # accents
        ("nobel prize", "nobel"),  # in the title
        ("The Who", "who"),  # nothing but stop words
        ("what is the english band", "who"),
    ],
)
def test_ranking(memory: LocalIndex, query: str, first: str) -> None:
    assert ids(memory, query)[0] == first


def test_no_match_is_an_empty_list_and_top_k_a_bound(memory: LocalIndex) -> None:
    assert memory.search("zeppelin", 5) == []
    assert len(memory.search("nobel physics english operators", 2)) == 2


def test_stop_words_do_not_match_where_there_are_others(memory: LocalIndex) -> None:
    assert ids(memory, "who and or the curie") == ["curie"]


@pytest.mark.parametrize(
    "query",
    ["AND", 'AND OR title:( " * ^', "title:curie AND NOT (", "*", "curie^99", '"', "id:curie", "/.*/", "[a TO z]"],
)
def test_nothing_in_a_query_is_syntax(memory: LocalIndex, query: str) -> None:
    words = set(Analyser().terms(query))
    if not words:
        with pytest.raises(ToolError, match="no word to search for"):
            memory.search(query, 5)
        return
    assert ids(memory, query) == ids(memory, " ".join(sorted(words)))


@pytest.mark.parametrize("query", ["", "  \n ", "***", "🙂", "\ud800", "\x00"])
def test_a_query_without_a_word_is_refused(memory: LocalIndex, query: str) -> None:
    with pytest.raises(ToolError, match=r"empty|no word"):
        memory.search(query, 5)


def test_overlong_queries_and_impossible_numbers_are_refused(memory: LocalIndex) -> None:
    with pytest.raises(ToolError, match="at most 1000"):
        memory.search("curie " * 400, 5)
    for top_k in (0, -1, 1001):
        with pytest.raises(ToolError, match="top_k must be"):
            memory.search("curie", top_k)


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=80)


@settings(deadline=None, max_examples=200)
@given(query=ANY_TEXT)
def test_any_text_finds_something_nothing_or_is_refused(query: str) -> None:
    try:
        hits = SHARED.search(query, 3)
    except ToolError:
        return
    assert len(hits) <= 3
    assert all(hit.model_validate_json(hit.model_dump_json()) == hit for hit in hits)


SHARED = LocalIndex.in_memory(PASSAGES)


def test_threads_get_the_same_answers(memory: LocalIndex) -> None:
    queries = ["nobel prize", "x-rays", "english band", "operators"] * 25
    expected = [ids(memory, query) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda query: ids(memory, query), queries)) == expected


def test_equal_scores_keep_the_order_of_the_corpus() -> None:
    index = LocalIndex.in_memory(Passage(id=f"p{i}", title="Same", text="the same words") for i in range(300))
    assert ids(index, "same words", 200) == [f"p{i}" for i in range(200)]


# Snippets -----------------------------------------------------------------------------------------------


def test_a_snippet_shows_the_place_with_the_most_terms() -> None:
    text = "prize " + "filler words here " * 60 + "the prize for chemistry went to Curie. " + "more filler " * 60
    shown = snippet(text, ["prize", "chemistri", "curi"])
    assert "prize for chemistry went to Curie" in shown
    assert shown.startswith("... ")
    assert shown.endswith(" ...")
    assert len(shown) <= 308


def test_a_snippet_of_a_short_text_is_the_text_on_one_line() -> None:
    assert snippet("two\nlines\t here", ["line"]) == "two lines here"


@settings(deadline=None)
@given(text=ANY_TEXT.map(lambda t: t * 9), terms=st.lists(st.text(min_size=1, max_size=5), max_size=4))
def test_a_snippet_is_a_part_of_the_text(text: str, terms: list[str]) -> None:
    shown = snippet(text, terms, chars=60)
    assert shown.removeprefix("... ").removesuffix(" ...") in " ".join(text.split()) or "..." in text
    assert len(shown) <= 68


# Passages by id -----------------------------------------------------------------------------------------


def test_passages_come_back_equal(memory: LocalIndex) -> None:
    assert memory.passages([p.id for p in reversed(PASSAGES)]) == PASSAGES[::-1]
    for unknown in ("nobody", "Curie", "", "\ud800"):
        with pytest.raises(ToolError, match="no document"):
            memory.passage(unknown)


# Adding -------------------------------------------------------------------------------------------------


def test_the_same_id_replaces_and_the_hash_knows_only_the_set(tmp_path: Path) -> None:
    changed = PASSAGES[1].model_copy(update={"text": "She discovered polonium."})
    index = LocalIndex.build(tmp_path / "a", [*PASSAGES, PASSAGES[0]])
    assert len(index) == 5
    assert index.add([changed, Passage(id="new", title="Zeppelin", text="An airship.")]) == 6
    assert ids(index, "polonium") == ["curie"]
    assert ids(index, "chemistry") == []
    assert index.passage("curie") == changed
    at_once = LocalIndex.in_memory([index.passage("new"), *PASSAGES[2:], changed, PASSAGES[0]])
    assert at_once.describe() == index.describe()
    index.add([PASSAGES[1]])
    assert index.describe() != at_once.describe()


def test_batches_replace_across_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_write, "BATCH_PASSAGES", 7)
    passages = [Passage(id=str(i % 30), title=f"Title {i}", text=f"text{i}") for i in range(100)]
    index = LocalIndex.build(tmp_path / "a", passages)
    assert len(index) == 30
    assert index.passages([str(i % 30) for i in range(70, 100)]) == passages[70:]
    assert ids(index, "text69") == []
    assert index.describe() == LocalIndex.in_memory(passages[70:]).describe()


def test_whoever_has_an_index_open_goes_on_reading_it(tmp_path: Path) -> None:
    built = LocalIndex.build(tmp_path / "a", PASSAGES[:3])
    reader = LocalIndex.open(tmp_path / "a")
    built.add(PASSAGES[3:])
    assert len(reader) == 3
    assert ids(reader, "curie") == ["curie"]
    assert reader.passage("who") == PASSAGES[2]
    assert len(LocalIndex.open(tmp_path / "a")) == 5


def test_searching_goes_on_while_passages_are_added(tmp_path: Path) -> None:
    index = LocalIndex.build(tmp_path / "a", PASSAGES)
    stop = threading.Event()
    wrong: list[list[str]] = []

    def search() -> None:
        while not stop.is_set():
            wrong.extend(found for found in [ids(index, "curie")] if found != ["curie"])

    thread = threading.Thread(target=search)
    thread.start()
    for i in range(5):
        index.add([Passage(id=f"x{i}", title="Other", text="something else")])
    stop.set()
    thread.join()
    assert wrong == []
    assert len(index) == 10


# On disk ------------------------------------------------------------------------------------------------


def failing(passages: list[Passage]) -> Iterator[Passage]:
    yield from passages
    raise KeyboardInterrupt


def test_a_build_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        LocalIndex.build(tmp_path / "a", failing(PASSAGES))
    assert list(tmp_path.iterdir()) == []


def test_an_addition_that_is_stopped_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_write, "BATCH_PASSAGES", 1)
    disk, memory = LocalIndex.build(tmp_path / "a", PASSAGES[:2]), LocalIndex.in_memory(PASSAGES[:2])
    for index in (disk, memory):
        before = index.describe()
        with pytest.raises(KeyboardInterrupt):
            index.add(failing(PASSAGES[2:]))
        assert index.describe() == before
        assert ids(index, "english band") == []
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert LocalIndex.open(tmp_path / "a").describe() == disk.describe()


def test_one_build_at_a_time(tmp_path: Path) -> None:
    (tmp_path / ".a.building").mkdir()
    with pytest.raises(DataError, match="another build is under way"):
        LocalIndex.build(tmp_path / "a", PASSAGES)
    assert (tmp_path / ".a.building").exists()


def test_only_an_index_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "precious.txt").write_text("x")
    with pytest.raises(DataError, match="something else than an index"):
        LocalIndex.build(path, PASSAGES, overwrite=True)
    (path / "precious.txt").unlink()
    LocalIndex.build(path, PASSAGES)
    with pytest.raises(DataError, match="exists already"):
        LocalIndex.build(path, PASSAGES)
    assert len(LocalIndex.build(path, PASSAGES[:1], overwrite=True)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_index_needs_passages_and_memory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no passages"):
        LocalIndex.build(tmp_path / "a", [])
    with pytest.raises(ConfigError, match="heap_bytes must be at least"):
        LocalIndex.build(tmp_path / "a", PASSAGES, heap_bytes=1000)
    assert list(tmp_path.iterdir()) == []
    assert LocalIndex.in_memory().search("anything", 3) == []


def test_an_index_is_pickled_by_its_path(tmp_path: Path) -> None:
    index = LocalIndex.build(tmp_path / "a", PASSAGES)
    assert ids(pickle.loads(pickle.dumps(index)), "curie") == ["curie"]  # noqa: S301
    with pytest.raises(TypeError, match="in memory"):
        pickle.dumps(LocalIndex.in_memory(PASSAGES))


def test_a_closed_index_says_so(tmp_path: Path) -> None:
    with LocalIndex.build(tmp_path / "a", PASSAGES) as index:
        assert len(index) == 5
    with pytest.raises(ConfigError, match="closed"):
        index.search("curie", 1)


def damage(path: Path, how: str) -> None:
    manifest = path / "manifest.json"
    content = json.loads(manifest.read_text())
    segment = next(p for p in (path / "segments").iterdir() if p.suffix == ".store")
    match how:
        case "cut":
            segment.write_bytes(segment.read_bytes()[:-5])
        case "missing":
            segment.unlink()
        case "newer":
            manifest.write_text(json.dumps(content | {"version": 99, "extra": 1}))
        case "foreign":
            manifest.write_text('{"format": "other"}')
        case "garbled":
            manifest.write_bytes(b"\xff{")
        case "no manifest":
            manifest.unlink()
        case "count":
            manifest.write_text(json.dumps(content | {"documents": 4}))
        case "way out":
            (path / "secret").write_text("key")
            manifest.write_text(json.dumps(content | {"files": {"../secret": {"bytes": 1, "crc32": 0}}}))
        case "meta":
            meta = path / "segments" / "meta.json"
            meta.write_bytes(b" " * meta.stat().st_size)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "damaged.*has .* bytes, not"),
        ("missing", "damaged.*is missing"),
        ("newer", "index version 99 is of a newer ovd-gym"),
        ("foreign", "not an index of ovd-gym: format"),
        ("garbled", "not an index of ovd-gym"),
        ("no manifest", "not an index"),
        ("way out", "not an index of ovd-gym: files"),
        ("count", "5 documents instead of 4"),
        ("meta", "damaged, or of another version of tantivy"),
    ],
)
def test_what_is_no_whole_index_is_not_opened(tmp_path: Path, how: str, message: str) -> None:
    LocalIndex.build(tmp_path / "a", PASSAGES).close()
    damage(tmp_path / "a", how)
    with pytest.raises(DataError, match=message) as caught:
        LocalIndex.open(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_a_missing_index_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such index"):
        LocalIndex.open(tmp_path / "a")


def test_changed_bytes_are_found_and_are_an_outage_never_no_results(tmp_path: Path) -> None:
    LocalIndex.build(tmp_path / "a", PASSAGES).close()
    assert verify(tmp_path / "a").documents == 5
    store = next(p for p in (tmp_path / "a" / "segments").iterdir() if p.suffix == ".store")
    store.write_bytes(bytes(64) + store.read_bytes()[64:])
    with pytest.raises(DataError, match=f"{store.name} has changed"):
        verify(tmp_path / "a")
    with pytest.raises(SearchOutage, match="damaged"):
        LocalIndex.open(tmp_path / "a").search("curie", 5)


# Sources ------------------------------------------------------------------------------------------------


def test_json_lines_plain_gzipped_and_of_search_r1(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "title": "A", "text": "one", "url": "https://example.org/a", "src": ["x"]},
        {"id": 7, "contents": '"B"\ntwo\nlines'},
    ]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "c.jsonl").write_text(text)
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write(text)
    expected = [
        Passage(id="a", title="A", text="one", url="https://example.org/a", metadata={"src": ["x"]}),
        Passage(id="7", title="B", text="two\nlines"),
    ]
    assert list(read_passages(tmp_path / "c.jsonl")) == expected
    assert list(read_passages(tmp_path / "c.jsonl.gz")) == expected
    assert split_contents(join_contents('Say "x"', "y\nz")) == ('Say "x"', "y\nz")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"id": "a", "title": "A"}', r"c.jsonl:1: text: Field required"),
        ('{"title": "A", "text": "x"}', r"c.jsonl:1: id: Field required"),
        ('{"id": "a", "title": 1, "text": "x"}', r"c.jsonl:1: title: .*string"),
        ("[1]", r"c.jsonl:1: expected a JSON object"),
        ("{", r"c.jsonl:1: not valid JSON"),
    ],
)
def test_a_row_that_is_no_passage_is_named(tmp_path: Path, row: str, message: str) -> None:
    (tmp_path / "c.jsonl").write_text(row)
    with pytest.raises(DataError, match=message):
        LocalIndex.build(tmp_path / "i", read_passages(tmp_path / "c.jsonl"))
    assert not (tmp_path / "i").exists()


def test_a_folder_of_html(tmp_path: Path) -> None:
    (tmp_path / "people").mkdir()
    paragraph = "Anna Brandt was a painter from the harbour town of Velm, where she lived for forty years. " * 4
    (tmp_path / "people" / "anna.html").write_text(
        "<html><head><title>Anna  Brandt</title><style>p {}</style></head><body><nav><a href='/'>Home</a></nav>"
        f"<article><h1>Anna Brandt</h1><p>{paragraph}</p><table><tr><td>Born</td><td>1871</td></tr></table></article>"
        "<script>alert(1)</script></body></html>"
    )
    (tmp_path / "tiny.htm").write_text("<p>Kastell")
    anna, tiny = read_passages(tmp_path)
    assert (anna.id, anna.title) == ("people/anna.html", "Anna Brandt")
    assert "painter from the harbour town" in anna.text
    assert "1871" in anna.text
    assert "alert" not in anna.text
    assert (tiny.id, tiny.title, tiny.text) == ("tiny.htm", "tiny", "Kastell")


def test_sources_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        list(read_passages(tmp_path / "missing.jsonl"))
    with pytest.raises(DataError, match=r"no .jsonl.* file in it"):
        list(read_passages(tmp_path))
    (tmp_path / "x.pdf").touch()
    with pytest.raises(DataError, match=r"expected a folder or one of .jsonl"):
        list(read_passages(tmp_path / "x.pdf"))


# The real corpus, and what importing costs ---------------------------------------------------------------


@pytest.mark.skipif(not QA.is_dir(), reason="needs ../shared/data/qa")
def test_the_wikipedia_passages() -> None:
    index = LocalIndex.in_memory(read_passages(QA / "wiki_passages.jsonl.gz"))
    assert len(index) == 12_766
    hits = index.search("who got the first nobel prize in physics", 5)
    assert hits[0].title == "List of Nobel laureates in Physics"
    assert "Röntgen" in hits[0].snippet
    assert index.passage("w00012").id == "w00012"


def test_the_contract_loads_no_engine() -> None:
    code = (
        "import sys, ovd_gym.envs.web_search.base, ovd_gym.envs.web_search.local;"
        "print(*sorted({'tantivy', 'torch', 'fastapi', 'uvicorn', 'trafilatura'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.split() == []
