"""A full-text index on this machine: BM25 over titles and bodies, by tantivy.

On disk it is memory-mapped, so that opening is instant and processes share it; see
:mod:`ovd_gym.envs.web_search.index_store` for the folder.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from pydantic import JsonValue

from ovd_gym.envs.web_search.base import Hit, Passage, SearchOutage, address_of
from ovd_gym.envs.web_search.index_query import ANALYSER, TITLE_WEIGHT, Analyser, make_schema, snippet
from ovd_gym.envs.web_search.index_store import check_target, read_manifest, segments_of, staged, write_manifest
from ovd_gym.envs.web_search.index_write import HEAP_BYTES, Corpus, record_at, stored, write
from ovd_gym.envs.web_search.services import check_query, optional
from ovd_gym.errors import ConfigError, DataError, ToolError

if TYPE_CHECKING:
    import tantivy

__all__ = ["LocalIndex"]

MAX_QUERY_CHARS = 1000
MAX_TOP_K = 1000
SNIPPET_CHARS = 300


class _State(NamedTuple):
    """What a search needs; replaced as a whole when the index changes."""

    engine: tantivy.Index
    searcher: tantivy.Searcher
    schema: tantivy.Schema
    corpus: Corpus


class LocalIndex:
    """Passages on this machine: a search backend and a closed corpus. Make one with :meth:`build`, :meth:`open`
    or :meth:`in_memory`; safe to use from several threads.

    >>> index = LocalIndex.in_memory([Passage(id="r", title="Röntgen", text="He discovered X-rays in 1895.")])
    >>> [hit.url for hit in index.search("Who discovered X-rays?", top_k=3)]
    ['doc:r']
    """

    name = "local"

    def __init__(self, index: tantivy.Index, corpus: Corpus, path: Path | None) -> None:
        self._path = path
        self._analyser = Analyser()
        self._state: _State | None = _State(index, index.searcher(), index.schema, corpus)
        self._adding = threading.Lock()

    # Making and changing --------------------------------------------------------------------------------

    @classmethod
    def build(
        cls,
        path: str | Path,
        passages: Iterable[Passage],
        *,
        overwrite: bool = False,
        heap_bytes: int = HEAP_BYTES,
    ) -> Self:
        """Make an index at ``path``; nothing is there until it is complete.

        Args:
            path: the folder to make.
            passages: any number, streamed; of those with the same id the last one stays.
            overwrite: replace an index that is there already. Nothing else is ever replaced.
            heap_bytes: memory for the writer, besides the batch of passages at hand.

        Raises:
            DataError: the path is taken, or there are no passages.
        """
        path = Path(path).resolve()
        check_target(path, overwrite)
        with staged(path) as work:
            index = _engine(lambda tv: tv.Index(make_schema(), str(segments_of(work))))
            corpus = write(index, passages, Corpus(), heap_bytes)
            write_manifest(work, corpus.documents, corpus.hash)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """The index at ``path``, memory-mapped.

        Raises:
            DataError: there is none, or it is damaged, made by a newer version, or something else.
        """
        path = Path(path).resolve()
        index, corpus = _open(path)
        return cls(index, corpus, path)

    @classmethod
    def in_memory(cls, passages: Iterable[Passage] = ()) -> Self:
        """An index that vanishes with the process."""
        made = cls(_engine(lambda tv: tv.Index(make_schema())), Corpus(), None)
        if batch := list(passages):
            made.add(batch)
        return made

    def add(self, passages: Iterable[Passage], *, heap_bytes: int = HEAP_BYTES) -> int:
        """Add ``passages``, or replace those with the same id, all or none; returns how many there are now.

        Whoever has the same index open elsewhere goes on seeing it as it was until they open it anew.
        """
        with self._adding:
            state = self._open_state
            if self._path is None:
                whole = list(passages)  # reading them may fail, and then nothing is to change
                self._become(state.engine, write(state.engine, whole, state.corpus, heap_bytes))
            else:
                self._become(*self._add_on_disk(self._path, passages, heap_bytes))
        return len(self)

    @staticmethod
    def _add_on_disk(path: Path, passages: Iterable[Passage], heap_bytes: int) -> tuple[tantivy.Index, Corpus]:
        with staged(path, keep=True) as work:
            before = read_manifest(path)
            index = _engine(lambda tv: tv.Index.open(str(segments_of(work))))
            corpus = Corpus(before.documents, int(before.corpus_hash, 16))
            corpus = write(index, passages, corpus, heap_bytes)
            write_manifest(work, corpus.documents, corpus.hash)
        return _open(path)

    # Reading --------------------------------------------------------------------------------------------

    def search(self, query: str, top_k: int) -> list[Hit]:
        """At most ``top_k`` passages with any word of ``query``, best first. Nothing in ``query`` is syntax.

        Raises:
            ToolError: a query without a word, an overlong one, or ``top_k`` out of range.
            SearchOutage: the index cannot be read any more.
        """
        query = check_query(query, top_k, MAX_QUERY_CHARS)
        if top_k > MAX_TOP_K:
            raise ToolError(f"top_k must be at most {MAX_TOP_K}, got {top_k}")
        if not (terms := self._analyser.terms(query)):
            raise ToolError(f"the query {query[:80]!r} holds no word to search for")
        state = self._open_state
        found = self._find(state, self._analyser.query(state.schema, terms), top_k)
        return [_hit(score, record, terms) for score, record in found]

    def passage(self, id: str) -> Passage:
        """The passage with that id. Raises :class:`~ovd_gym.errors.ToolError` for an unknown id."""
        return self.passages([id])[0]

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Several at once, in order. Raises :class:`~ovd_gym.errors.ToolError` naming the first unknown id."""
        state, found = self._open_state, []
        for id in ids:
            record = stored(state.searcher, state.schema, _encodable(id))
            if record is None:
                raise ToolError(f"no document {id[:80]!r}: open one of the search results")
            found.append(Passage.model_validate_json(record))
        return found

    def describe(self) -> Mapping[str, JsonValue]:
        """Kind, corpus hash, number of passages, analyser and ranking."""
        corpus = self._open_state.corpus
        return {
            "kind": self.name,
            "corpus_hash": corpus.hash,
            "documents": corpus.documents,
            "analyser": ANALYSER,
            "ranking": f"bm25, title {TITLE_WEIGHT:g}",
            "snippet_chars": SNIPPET_CHARS,
        }

    def close(self) -> None:
        """Let go of the files."""
        self._state = None

    def __len__(self) -> int:
        return self._open_state.corpus.documents

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        if self._path is None:
            raise TypeError("an index in memory cannot be pickled: build it at a path")
        return type(self).open, (self._path,)

    def __repr__(self) -> str:
        return f"LocalIndex({str(self._path) if self._path else 'in memory'!r})"

    @property
    def _open_state(self) -> _State:
        if self._state is None:
            raise ConfigError("the index is closed: open it again")
        return self._state

    def _become(self, index: tantivy.Index, corpus: Corpus) -> None:
        self._state = _State(index, index.searcher(), index.schema, corpus)

    @staticmethod
    def _find(state: _State, query: tantivy.Query, top_k: int) -> list[tuple[float, bytes]]:
        try:
            hits = state.searcher.search(query, top_k, count=False).hits
            return [(score, record_at(state.searcher, address)) for score, address in hits]
        except BaseException as error:  # a panic of tantivy's, which is no Exception, must not end the whole run
            if not isinstance(error, ValueError | OSError) and type(error).__name__ != "PanicException":
                raise
            raise SearchOutage(f"the local index is damaged, see `ovd-gym index info`: {error}") from error


def _hit(score: float, record: bytes, terms: Sequence[str]) -> Hit:
    passage = json.loads(record)  # it was checked when it was written; checking again would take a tenth of a search
    return Hit(
        id=passage["id"],
        title=passage["title"],
        url=address_of(passage["id"], passage["url"]),
        snippet=snippet(passage["text"], terms, SNIPPET_CHARS),
        score=score,
        source=LocalIndex.name,
    )


def _engine(make: Callable[[Any], tantivy.Index]) -> tantivy.Index:
    """An index of tantivy's, made or opened by ``make``, with our analyser; it watches no files for changes."""
    index = make(optional("tantivy"))
    Analyser().register(index)
    index.config_reader("manual")
    return index


def _open(path: Path) -> tuple[tantivy.Index, Corpus]:
    manifest = read_manifest(path)
    try:
        index = _engine(lambda tv: tv.Index.open(str(segments_of(path))))
        count = index.searcher().num_docs
    except ValueError as error:
        raise DataError(f"{path}: the index is damaged, or of another version of tantivy: {error}") from error
    if count != manifest.documents:
        raise DataError(
            f"{path}: the index is damaged: {count} documents instead of {manifest.documents}; build it anew"
        )
    return index, Corpus(manifest.documents, int(manifest.corpus_hash, 16))


def _encodable(id: str) -> str:
    return id.encode("utf-8", "replace").decode("utf-8")
