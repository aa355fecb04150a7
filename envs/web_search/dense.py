"""Dense retrieval by an encoder, and several backends fused into one.

A query's vector is compared with those of all passages, exactly: ``[documents, dimensions]`` float32 in one file,
memory-mapped, a matrix product of numpy's. The passages themselves stay where they are, in any closed corpus.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ovd_gym.envs.web_search.base import ClosedCorpus, Hit, Passage, SearchBackend, address_of
from ovd_gym.envs.web_search.services import check_query, optional
from ovd_gym.errors import ConfigError, DataError, ToolError

__all__ = ["DenseIndex", "Encoder", "HybridBackend", "SentenceEncoder"]

MAX_QUERY_CHARS = 1000
MAX_TOP_K = 1000
SNIPPET_CHARS = 300
Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """Texts to vectors. Give one of your own where :class:`SentenceEncoder` will not do."""

    name: str
    """What makes vectors comparable: model and settings."""

    def encode(self, texts: Sequence[str], *, query: bool) -> Vectors:
        """[texts, dimensions]; the inner product of a query's and a passage's vector is the score."""


class SentenceEncoder:
    """A model of sentence-transformers, or any transformers model with mean pooling; vectors have length 1.

    Args:
        model: a folder, or a name on the hub.
        query_prefix, passage_prefix: what the model expects before texts, such as ``"query: "`` and ``"passage: "``
            for E5.
        device: such as "cpu" or "cuda"; None chooses.
        batch_size: texts at once.

    Raises:
        ConfigError: the library is missing, or a model that cannot be loaded without running code of its own.
    """

    def __init__(
        self,
        model: str,
        *,
        query_prefix: str = "",
        passage_prefix: str = "",
        device: str | None = None,
        batch_size: int = 64,
    ) -> None:
        library = optional("sentence_transformers", install="sentence-transformers")
        _refuse_code(Path(model))
        safe = {"trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
        try:
            self._model = library.SentenceTransformer(model, device=device, **safe)
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot load the encoder {model!r}: {error}") from error
        self._prefixes = {True: query_prefix, False: passage_prefix}
        self._batch_size = batch_size
        self.name = f"{Path(model).name}, {query_prefix!r}, {passage_prefix!r}"

    def encode(self, texts: Sequence[str], *, query: bool) -> Vectors:
        """[texts, dimensions], each of length 1."""
        prefixed = [self._prefixes[query] + text for text in texts]
        return np.asarray(
            self._model.encode(
                prefixed, batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
            ),
            dtype=np.float32,
        )


class DenseIndex:
    """Passages by the meaning of a query: a search backend, and a closed corpus like the one it stands on.

    Args:
        ids: of the passages, in the order of ``vectors``.
        vectors: [documents, dimensions].
        corpus: what the passages are read from.
        encoder: the one that made ``vectors``.
    """

    name = "dense"

    def __init__(self, ids: Sequence[str], vectors: Vectors, corpus: ClosedCorpus, encoder: Encoder) -> None:
        if len(ids) != len(vectors) or vectors.ndim != 2 or not len(ids):
            raise DataError(f"{len(ids)} ids with vectors of shape {vectors.shape}: expected [{len(ids)}, dimensions]")
        self.ids, self.vectors, self.corpus, self.encoder = tuple(ids), vectors, corpus, encoder

    @classmethod
    def build(
        cls, passages: Iterable[Passage], corpus: ClosedCorpus, encoder: Encoder, *, batch_size: int = 256
    ) -> Self:
        """Encode ``passages``, all of which are in ``corpus``. Title and text are encoded together."""
        ids: list[str] = []
        parts: list[Vectors] = []
        for batch in _batches(passages, batch_size):
            ids += [passage.id for passage in batch]
            parts.append(encoder.encode([f"{p.title}\n{p.text}" for p in batch], query=False))
        if not parts:
            raise DataError("no passages: an index needs at least one")
        return cls(ids, np.concatenate(parts).astype(np.float32, copy=False), corpus, encoder)

    def save(self, path: str | Path) -> None:
        """Write ids, vectors and what made them into the new folder ``path``."""
        path = Path(path)
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise DataError(f"{path}: cannot make this folder: {error.strerror}") from error
        np.save(path / "vectors.npy", self.vectors)
        # Last: a folder with this file is complete.
        (path / "dense.json").write_text(json.dumps({"encoder": self.encoder.name, "ids": self.ids}), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path, corpus: ClosedCorpus, encoder: Encoder) -> Self:
        """What :meth:`save` wrote, memory-mapped.

        Raises:
            DataError: it is damaged; ConfigError: another encoder made it.
        """
        path = Path(path)
        try:
            header = json.loads((path / "dense.json").read_text(encoding="utf-8"))
            vectors = np.load(path / "vectors.npy", mmap_mode="r", allow_pickle=False)
            ids, made_by = list(map(str, header["ids"])), header["encoder"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{path}: not a dense index, or a damaged one: {error}") from error
        if made_by != encoder.name:
            raise ConfigError(f"{path}: made by the encoder {made_by!r}; {encoder.name!r} gives other vectors")
        return cls(ids, vectors, corpus, encoder)

    def search(self, query: str, top_k: int) -> list[Hit]:
        """At most ``top_k`` passages, the nearest first. Raises :class:`~ovd_gym.errors.ToolError` for a bad query."""
        query = check_query(query, top_k, MAX_QUERY_CHARS)
        if top_k > MAX_TOP_K:
            raise ToolError(f"top_k must be at most {MAX_TOP_K}, got {top_k}")
        vector = self.encoder.encode([query], query=True)[0]
        scores = self.vectors @ vector
        best = _largest(scores, top_k)
        passages = self.corpus.passages([self.ids[i] for i in best])
        return [self._hit(passage, float(scores[i])) for passage, i in zip(passages, best, strict=True)]

    def passage(self, id: str) -> Passage:
        """The passage with that id. Raises :class:`~ovd_gym.errors.ToolError` for an unknown id."""
        return self.corpus.passage(id)

    def passages(self, ids: Sequence[str]) -> list[Passage]:
        """Several at once, in order."""
        return self.corpus.passages(ids)

    def describe(self) -> Mapping[str, JsonValue]:
        """Kind, encoder and size, and what the corpus says of itself."""
        describe = getattr(self.corpus, "describe", None)
        corpus = dict(describe()) if describe else None
        return {"kind": self.name, "encoder": self.encoder.name, "shape": list(self.vectors.shape), "corpus": corpus}

    def close(self) -> None:
        """Nothing to close: the corpus belongs to whoever made it."""

    def _hit(self, passage: Passage, score: float) -> Hit:
        start = " ".join(passage.text[:SNIPPET_CHARS].split())
        cut = " ..." if len(passage.text) > SNIPPET_CHARS else ""
        return Hit(
            id=passage.id,
            title=passage.title,
            url=address_of(passage.id, passage.url),
            snippet=start + cut,
            score=score,
            source=self.name,
        )


class HybridBackend:
    """Several backends over the same documents, fused by rank: a document scores the sum of ``1 / (k + rank)``.

    Reciprocal rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009. An outage of one backend is one of the whole:
    what it answered without would depend on the weather.

    Args:
        backends: at least one; they are known by the ids of their hits.
        k: how little the first ranks stand out.
        depth: hits to ask each backend for, or ``top_k`` if that is more.
    """

    name = "hybrid"

    def __init__(self, backends: Sequence[SearchBackend], *, k: int = 60, depth: int = 50) -> None:
        if not backends or k < 0 or depth < 1:
            raise ConfigError(
                f"hybrid search needs a backend, k >= 0 and depth >= 1; got {len(backends)}, {k}, {depth}"
            )
        self.backends, self.k, self.depth = tuple(backends), k, depth

    def search(self, query: str, top_k: int) -> list[Hit]:
        """At most ``top_k`` hits, best first; the snippet is that of the backend that ranked it highest.

        Raises what the backends raise.
        """
        scores: dict[str, float] = {}
        best: dict[str, tuple[int, Hit]] = {}
        for backend in self.backends:
            for rank, hit in enumerate(backend.search(query, max(top_k, self.depth)), start=1):
                scores[hit.id] = scores.get(hit.id, 0.0) + 1 / (self.k + rank)
                best[hit.id] = min(best.get(hit.id, (rank, hit)), (rank, hit), key=lambda item: item[0])
        ids = sorted(scores, key=lambda id: -scores[id])[:top_k]
        return [best[id][1].model_copy(update={"score": scores[id], "source": self.name}) for id in ids]

    def describe(self) -> Mapping[str, JsonValue]:
        """The settings and all backends."""
        parts: list[JsonValue] = [dict(backend.describe()) for backend in self.backends]
        return {"kind": self.name, "k": self.k, "depth": self.depth, "backends": parts}

    def close(self) -> None:
        """Close all."""
        for backend in self.backends:
            backend.close()

    def __getattr__(self, name: str) -> Any:
        if name in ("passage", "passages"):  # it is a closed corpus if one of the backends is
            for backend in self.backends:
                if hasattr(backend, name):
                    return getattr(backend, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _refuse_code(folder: Path) -> None:
    """Raise ConfigError for a model that names code of its own: the library up to 5.6 runs that of a local folder."""
    file = folder / "modules.json"
    if not file.is_file():
        return
    try:
        kinds = [str(module["type"]) for module in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ConfigError(f"{file}: not the modules of an encoder ({type(error).__name__}): {error}") from None
    if own := [kind for kind in kinds if not kind.startswith("sentence_transformers.")]:
        raise ConfigError(f"{file} asks for code of its own, {own[0][:80]!r}: only modules of the library are loaded")


def _largest(scores: Vectors, count: int) -> list[int]:
    """Positions of the ``count`` largest, descending; of equal ones the first."""
    count = min(count, len(scores))
    threshold = np.partition(scores, len(scores) - count)[len(scores) - count]
    candidates = np.flatnonzero(scores >= threshold)
    return [int(i) for i in candidates[np.argsort(-scores[candidates], kind="stable")][:count]]


def _batches(passages: Iterable[Passage], size: int) -> Iterator[list[Passage]]:
    rest = iter(passages)
    while batch := list(islice(rest, size)):
        yield batch
