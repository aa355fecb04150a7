"""Writing passages into an index in bounded memory, and what identifies the set of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.services import optional
from ovd_gym.errors import ConfigError, DataError

if TYPE_CHECKING:
    import tantivy

__all__ = ["HEAP_BYTES", "Corpus", "record_at", "stored", "write"]

HEAP_BYTES = 64_000_000
"""What the writer holds before it puts a segment on disk."""
BATCH_PASSAGES, BATCH_CHARS = 20_000, 16_000_000
"""A batch, held in memory, ends at the first of these."""


class Corpus(NamedTuple):
    """A set of passages as a count and a hash: the sum of their SHA-256 digests modulo 2^256, in any order.

    Addition is what makes adding and replacing cheap (AdHash: Bellare and Micciancio, EUROCRYPT 1997). It tells
    corpora apart; it is no protection against somebody who constructs one to match.
    """

    documents: int = 0
    digest: int = 0

    def plus(self, record: bytes) -> Corpus:
        """With the passage that ``record`` stores."""
        return Corpus(self.documents + 1, (self.digest + _digest(record)) % 2**256)

    def minus(self, record: bytes) -> Corpus:
        """Without it."""
        return Corpus(self.documents - 1, (self.digest - _digest(record)) % 2**256)

    @property
    def hash(self) -> str:
        """As 64 hexadecimal digits."""
        return f"{self.digest:064x}"


def write(index: tantivy.Index, passages: Iterable[Passage], corpus: Corpus, heap_bytes: int) -> Corpus:
    """Write ``passages`` into ``index``, which holds ``corpus``, and return what it holds then.

    Args:
        index: an index in memory or on disk.
        passages: streamed; one with an id that is there already replaces it.
        corpus: what is there already.
        heap_bytes: what the writer holds before it puts a segment on disk; at least 15,000,000.

    Raises:
        ConfigError: too little memory; DataError: nothing to write into an empty index.
    """
    if heap_bytes < 15_000_000:
        raise ConfigError(f"heap_bytes must be at least 15,000,000, got {heap_bytes}")
    # One thread: two of them would leave the order of equal scores to chance.
    writer = index.writer(heap_bytes, 1)
    try:
        for batch in _batches(passages):
            corpus = _write_batch(index, writer, batch, corpus)
            writer.commit()
            index.reload()
    finally:
        writer.wait_merging_threads()  # also after an error: they would write into a folder that is being removed
    index.reload()
    if not corpus.documents:
        raise DataError("no passages: an index needs at least one")
    return corpus


def _write_batch(
    index: tantivy.Index, writer: tantivy.IndexWriter, batch: Mapping[str, Passage], corpus: Corpus
) -> Corpus:
    new_document = optional("tantivy").Document
    searcher, schema = index.searcher(), index.schema
    for id, passage in batch.items():
        if (old := stored(searcher, schema, id)) is not None:
            writer.delete_documents_by_term("id", id)
            corpus = corpus.minus(old)
        record = passage.model_dump_json().encode()
        corpus = corpus.plus(record)
        body = f"{passage.title}\n{passage.text}"
        writer.add_document(new_document(id=id, title=passage.title, body=body, record=record))
    return corpus


def _batches(passages: Iterable[Passage]) -> Iterator[dict[str, Passage]]:
    """``passages`` by id, in portions of bounded size; within one, the last of an id replaces the others."""
    batch: dict[str, Passage] = {}
    chars = 0
    for passage in passages:
        batch[passage.id] = passage
        chars += len(passage.title) + len(passage.text)
        if len(batch) >= BATCH_PASSAGES or chars >= BATCH_CHARS:
            yield batch
            batch, chars = {}, 0
    if batch:
        yield batch


def stored(searcher: tantivy.Searcher, schema: tantivy.Schema, id: str) -> bytes | None:
    """The stored record of a passage; None if there is no such id."""
    if not searcher.num_docs or not searcher.doc_freq("id", id):
        return None
    query = optional("tantivy").Query.term_query(schema, "id", id, "basic")
    hits = searcher.search(query, 1, count=False).hits
    return record_at(searcher, hits[0][1]) if hits else None


def record_at(searcher: tantivy.Searcher, address: tantivy.DocAddress) -> bytes:
    """The stored record of a hit."""
    record: bytes = searcher.doc(address)["record"][0]
    return record


def _digest(record: bytes) -> int:
    return int.from_bytes(hashlib.sha256(record).digest(), "big")
