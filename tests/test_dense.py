"""Dense retrieval with a tiny encoder, and fusion by rank, worked by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import JsonValue

from ovd_gym.envs.web_search.base import Hit, Passage, SearchOutage
from ovd_gym.envs.web_search.dense import DenseIndex, HybridBackend, SentenceEncoder, Vectors
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.errors import ConfigError, DataError, ToolError

PASSAGES = [
    Passage(id="cat", title="Cats", text="Felines that purr."),
    Passage(id="dog", title="Dogs", text="Animals that bark. " * 30),
    Passage(id="car", title="Cars", text="Machines with wheels."),
]


class Topics:
    """Three dimensions: how often each topic's words occur. It knows synonyms, which BM25 does not."""

    name = "topics"
    words = (("cats", "felines", "kitten"), ("dogs", "bark", "puppy"), ("cars", "wheels", "automobile"))

    def encode(self, texts: Sequence[str], *, query: bool) -> Vectors:
        rows = [[sum(text.lower().count(word) for word in topic) for topic in self.words] for text in texts]
        vectors = np.array(rows, dtype=np.float32).reshape(len(texts), 3)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.maximum(norms, 1e-9), dtype=np.float32)


@pytest.fixture
def corpus() -> LocalIndex:
    return LocalIndex.in_memory(PASSAGES)


@pytest.fixture
def dense(corpus: LocalIndex) -> DenseIndex:
    return DenseIndex.build(PASSAGES, corpus, Topics(), batch_size=2)


def test_the_nearest_come_first(dense: DenseIndex) -> None:
    hits = dense.search("a puppy and a little automobile, puppy", 2)
    assert [hit.id for hit in hits] == ["dog", "car"]
    assert [hit.score for hit in hits] == pytest.approx([2 / 5**0.5, 1 / 5**0.5])
    assert hits[0].url == "doc:dog"
    assert hits[0].snippet.endswith(" ...")
    assert dense.passage("cat") == PASSAGES[0]


def test_queries_are_checked(dense: DenseIndex) -> None:
    for query, top_k in (("", 1), ("x" * 2000, 1), ("x", 0), ("x", 5000)):
        with pytest.raises(ToolError):
            dense.search(query, top_k)
    assert len(dense.search("puppy", 100)) == 3


def test_equal_scores_keep_the_order_of_the_corpus(corpus: LocalIndex) -> None:
    index = DenseIndex(["car", "cat", "dog"], np.ones((3, 3), dtype=np.float32), corpus, Topics())
    assert [hit.id for hit in index.search("puppy", 2)] == ["car", "cat"]


def test_an_index_is_stored_and_loads_equal(dense: DenseIndex, corpus: LocalIndex, tmp_path: Path) -> None:
    dense.save(tmp_path / "d")
    loaded = DenseIndex.load(tmp_path / "d", corpus, Topics())
    assert loaded.search("kitten", 3) == dense.search("kitten", 3)
    assert loaded.describe() == dense.describe()
    other = Topics()
    other.name = "others"
    with pytest.raises(ConfigError, match="made by the encoder 'topics'"):
        DenseIndex.load(tmp_path / "d", corpus, other)
    with pytest.raises(DataError, match="cannot make this folder"):
        dense.save(tmp_path / "d")
    (tmp_path / "d" / "vectors.npy").write_bytes(b"x")
    with pytest.raises(DataError, match="damaged"):
        DenseIndex.load(tmp_path / "d", corpus, Topics())


def test_ids_and_vectors_must_fit(corpus: LocalIndex) -> None:
    with pytest.raises(DataError, match="2 ids with vectors of shape"):
        DenseIndex(["a", "b"], np.ones((3, 3), dtype=np.float32), corpus, Topics())
    with pytest.raises(DataError, match="no passages"):
        DenseIndex.build([], corpus, Topics())


def test_an_encoder_is_loaded_without_code_or_pickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, object]] = []
    library = SimpleNamespace(SentenceTransformer=lambda model, **options: made.append(options))
    monkeypatch.setitem(sys.modules, "sentence_transformers", library)
    modules = tmp_path / "modules.json"
    for kind in ("hostile.Transformer", "sentence_transformers_evil.X"):
        modules.write_text(json.dumps([{"type": "sentence_transformers.models.Pooling"}, {"type": kind}]))
        with pytest.raises(ConfigError, match=f"asks for code of its own, '{kind}'"):
            SentenceEncoder(str(tmp_path))
    for text in ("{", "[1]", '{"a": 1}', "[" * 100_000):
        modules.write_text(text)
        with pytest.raises(ConfigError, match="not the modules of an encoder"):
            SentenceEncoder(str(tmp_path))
    assert not made
    modules.write_text(json.dumps([{"type": "sentence_transformers.models.Transformer"}]))
    SentenceEncoder(str(tmp_path))
    assert made == [{"device": None, "trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}]


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is not None, reason="the library is installed")
def test_a_missing_library_is_named() -> None:
    with pytest.raises(ConfigError, match="pip install sentence-transformers"):
        SentenceEncoder("some-model")


class Fixed:
    """A backend that always ranks the same documents."""

    def __init__(self, name: str, ids: Sequence[str], broken: bool = False) -> None:
        self.name, self.ids, self.broken, self.closed = name, ids, broken, False

    def search(self, query: str, top_k: int) -> list[Hit]:
        if self.broken:
            raise SearchOutage(f"{self.name} is down")
        return [
            Hit(id=id, title=id, url=f"doc:{id}", snippet=f"{self.name} on {id}", score=9.0, source=self.name)
            for id in self.ids[:top_k]
        ]

    def describe(self) -> Mapping[str, JsonValue]:
        return {"kind": self.name}

    def close(self) -> None:
        self.closed = True


def test_fusion_by_rank_is_that_of_the_paper() -> None:
    hybrid = HybridBackend([Fixed("one", ["a", "b", "c"]), Fixed("two", ["c", "b", "d"])])
    hits = hybrid.search("anything", 3)
    assert [hit.id for hit in hits] == ["c", "b", "a"]
    assert [hit.score for hit in hits] == pytest.approx([1 / 63 + 1 / 61, 2 / 62, 1 / 61])
    assert [hit.snippet for hit in hits] == ["two on c", "one on b", "one on a"]
    assert {hit.source for hit in hits} == {"hybrid"}


def test_each_backend_is_asked_for_enough() -> None:
    many = [f"p{i}" for i in range(200)]
    hybrid = HybridBackend([Fixed("one", many), Fixed("two", many[::-1])], depth=10)
    assert len(hybrid.search("anything", 150)) == 150
    assert len(hybrid.search("anything", 15)) == 15


def test_an_outage_of_one_is_an_outage() -> None:
    with pytest.raises(SearchOutage, match="two is down"):
        HybridBackend([Fixed("one", ["a"]), Fixed("two", [], broken=True)]).search("anything", 3)


def test_dense_adds_what_words_cannot_find(corpus: LocalIndex, dense: DenseIndex) -> None:
    hybrid = HybridBackend([corpus, dense])
    assert [hit.id for hit in corpus.search("kitten with wheels", 3)] == ["car"]
    assert {hit.id for hit in hybrid.search("kitten with wheels", 2)} == {"car", "cat"}
    assert hybrid.passage("dog") == PASSAGES[1]
    described = hybrid.describe()
    assert described["k"] == 60


def test_fusion_is_a_closed_corpus_only_if_a_part_is() -> None:
    part = Fixed("one", ["a"])
    hybrid = HybridBackend([part])
    assert not hasattr(hybrid, "passages")
    hybrid.close()
    assert part.closed
    with pytest.raises(ConfigError, match="needs a backend"):
        HybridBackend([])
