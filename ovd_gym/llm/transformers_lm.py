"""The transformers backend: batched sampling with log-probabilities and a cache that is kept across turns.

Prompts that begin alike are computed once: the prefix common to all rows, then each distinct prompt.
Letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ovd_gym.errors import ConfigError, TrainingStopped
from ovd_gym.llm.base import Completion, Sampling
from ovd_gym.llm.cache import RowCache
from ovd_gym.llm.decoder import Decoder

__all__ = ["TransformersLM", "common_prefix", "sample_tokens"]


class TransformersLM:
    """A :class:`~ovd_gym.llm.base.LanguageModel` over a local transformers model.

    Args:
        decoder: the model; weights are read in place, so a learner that shares it needs no weight copy.
        tokenizer: a fast tokenizer.
        max_context: tokens a row may hold; None takes what the model supports.
    """

    def __init__(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, max_context: int | None = None) -> None:
        if max_context is not None and not 1 < max_context <= decoder.max_positions:
            raise ConfigError(f"max_context must be in 2..{decoder.max_positions} for this model, got {max_context}")
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.max_context = max_context or decoder.max_positions
        _check_cache(decoder)

    def open(self, seeds: Sequence[int], sampling: Sampling) -> TransformersSession:
        """See :class:`~ovd_gym.llm.base.LanguageModel`."""
        return TransformersSession(self, seeds, sampling)


class TransformersSession:
    """See :class:`~ovd_gym.llm.base.Session`."""

    def __init__(self, lm: TransformersLM, seeds: Sequence[int], sampling: Sampling) -> None:
        self._lm = lm
        self._sampling = sampling
        self._rngs = [np.random.default_rng(seed) for seed in seeds]
        self._cache: RowCache | None = None
        """Made by the first call; its rows are the rows that call admitted, in order."""
        self._slot: dict[int, int] = {}
        self._held: dict[int, int] = {}
        """Tokens each open row holds."""
        self._last: dict[int, int] = {}
        """The token that ended a row's turn: sampled, not yet fed to the model."""

    @torch.no_grad()
    def generate(self, feeds: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
        """See :class:`~ovd_gym.llm.base.Session`. Raises ValueError for an empty feed or a row that is not open."""
        if any(not len(ids) for ids in feeds.values()):
            raise ValueError("every row needs at least one token to continue from")
        rows = self._admit(feeds)
        turns = {row: _Turn(self._lm, self._sampling) for row in feeds}
        if rows:
            with self._lm.decoder.merged():
                self._run(rows, {row: feeds[row] for row in rows}, turns)
        return {row: turn.completion() for row, turn in turns.items()}

    def _admit(self, feeds: Mapping[int, Sequence[int]]) -> list[int]:
        """The rows with room for their feed and at least one new token; the others are closed."""
        if self._cache is None:
            self._held = dict.fromkeys(range(len(self._rngs)), 0)
            if feeds.keys() != self._held.keys():
                raise ValueError(f"the first call has to feed all {len(self._rngs)} rows")
        if closed := feeds.keys() - self._held.keys():
            raise ValueError(f"rows {sorted(closed)} are closed")
        held = {row: self._held.pop(row) + len(ids) for row, ids in feeds.items()}
        admitted = {row: total for row, total in held.items() if total < self._lm.max_context}
        self._held |= admitted
        return sorted(admitted)

    def _run(self, rows: list[int], feeds: Mapping[int, Sequence[int]], turns: Mapping[int, _Turn]) -> None:
        if self._cache is None:
            self._slot = {row: slot for slot, row in enumerate(rows)}
            self._cache, hidden_BD = self._prefill([tuple(feeds[row]) for row in rows])
        else:
            hidden_BD = self._forward(self._cache, rows, [[self._last[row], *feeds[row]] for row in rows])
        active = rows
        while True:
            uniforms = [self._rngs[row].random() for row in active]
            tokens, logprobs = sample_tokens(self._lm.decoder.head(hidden_BD), uniforms, self._sampling.greedy)
            if not bool(torch.isfinite(logprobs).all()):
                raise TrainingStopped("the model gives log-probabilities that are not finite: its weights are broken")
            for row, token, logprob in zip(active, tokens.tolist(), logprobs.tolist(), strict=True):
                turns[row].add(token, logprob, self._lm.max_context - self._held[row])
                self._held[row] += 1
                self._last[row] = token
            active = [row for row in active if turns[row].open]
            if not active:
                return
            hidden_BD = self._forward(self._cache, active, [[self._last[row]] for row in active])

    def _prefill(self, prompts: list[tuple[int, ...]]) -> tuple[RowCache, Tensor]:
        """A cache that holds ``prompts``, and the [B, D] hidden states after them; nothing is computed twice."""
        distinct = list(dict.fromkeys(prompts))
        shared = min(common_prefix(distinct), min(map(len, distinct)) - 1)
        decoder = self._lm.decoder
        cache = RowCache(decoder, 1 if shared else len(distinct))
        if shared:
            _feed(decoder, cache, [0], [distinct[0][:shared]])
            cache.expand([0] * len(distinct))
        hidden_UD = _feed(decoder, cache, range(len(distinct)), [prompt[shared:] for prompt in distinct])
        place = {prompt: i for i, prompt in enumerate(distinct)}
        sources = [place[prompt] for prompt in prompts]
        cache.expand(sources)
        return cache, hidden_UD[sources]

    def _forward(self, cache: RowCache, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
        return _feed(self._lm.decoder, cache, [self._slot[row] for row in rows], ids)


def _feed(decoder: Decoder, cache: RowCache, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
    """Append ``ids[i]`` to cache row ``slots[i]``; the [b, D] hidden states of each row's last token."""
    if len(ids) < len(cache.lengths) <= 2 * len(ids) and all(len(row) == 1 for row in ids):
        # One dummy token for the few rows that wait costs less than copying the cache of the others.
        given = dict(zip(slots, ids, strict=True))
        every = range(len(cache.lengths))
        return _feed_padded(decoder, cache, every, [given.get(slot, ()) for slot in every])[list(slots)]
    return _feed_padded(decoder, cache, slots, ids)


def _feed_padded(decoder: Decoder, cache: RowCache, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> Tensor:
    """As :func:`_feed`; an empty row is computed on padding and left as it was."""
    counts = torch.tensor([len(row) for row in ids], device=decoder.device)
    width = int(counts.max())
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=decoder.device)
    hidden = decoder.hidden(padded, **cache.plan(slots, width))
    cache.grow(slots, counts)
    return hidden[torch.arange(len(ids), device=decoder.device), counts - 1]


class _Turn:
    """One row's turn while it is being sampled."""

    def __init__(self, lm: TransformersLM, sampling: Sampling) -> None:
        self.ids: list[int] = []
        self.open = True
        self._logprobs: list[float] = []
        self._offsets: list[int] = []
        self._text = ""
        self._reason: Literal["stop", "eos", "length", "context"] = "context"
        self._sampling = sampling
        self._tokenizer = lm.tokenizer._tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token: int, logprob: float, room: int) -> None:
        """Take a sampled token; ``room`` counts the tokens the row could hold with this one among them."""
        self.ids.append(token)
        self._logprobs.append(min(logprob, 0.0))
        ended = token in self._sampling.stop_ids
        if not ended:
            self._text += self._stream.step(self._tokenizer, token) or ""
        self._offsets.append(len(self._text))
        if ended:
            self._end("eos")
        elif any(stop in self._text for stop in self._sampling.stop):
            self._end("stop")
        elif len(self.ids) >= self._sampling.max_new_tokens or room <= 1:
            self._end("length")

    def completion(self) -> Completion:
        return Completion(tuple(self.ids), tuple(self._logprobs), self._text, tuple(self._offsets), self._reason)

    def _end(self, reason: Literal["stop", "eos", "length"]) -> None:
        self._reason, self.open = reason, False


@torch.no_grad()
def _check_cache(decoder: Decoder) -> None:
    """Feed two rows over two turns through the cache and compare with plain forward passes.

    Raises ConfigError for a model whose attention is not what the cache assumes (state-space and hybrid models, an
    attention kernel without masks): its samples would be silently wrong.
    """
    rows = [[1, 2, 3, 4, 5], [1, 2, 3]]
    try:
        cache = RowCache(decoder, 2)
        _feed(decoder, cache, [0, 1], [rows[0][:2], rows[1][:1]])
        cached = _feed(decoder, cache, [0, 1], [rows[0][2:], rows[1][1:]])
        plain = [decoder.hidden(torch.tensor([row], device=decoder.device), use_cache=False)[0, -1] for row in rows]
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        raise ConfigError(f"{decoder.name} cannot be sampled with a row-wise cache: {error}") from error
    tolerance = 1e-3 if decoder.dtype == torch.float32 else 0.1
    if not torch.allclose(cached, torch.stack(plain), atol=tolerance, rtol=tolerance):
        raise ConfigError(f"{decoder.name} attends in a way the row-wise cache does not support")


def sample_tokens(logits_BV: Tensor, uniforms: Sequence[float], greedy: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens [B] drawn by inverting the cumulative distribution at ``uniforms``, and their log-probabilities [B].

    One uniform number per row makes a row's draw independent of the rest of the batch.
    """
    logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    if greedy:
        tokens = logprobs_BV.argmax(dim=-1)
    else:
        cdf_BV = logprobs_BV.double().exp().cumsum(dim=-1)
        points = torch.tensor(uniforms, dtype=torch.float64, device=cdf_BV.device)[:, None] * cdf_BV[:, -1:]
        tokens = torch.searchsorted(cdf_BV, points, right=True).clamp(max=cdf_BV.shape[-1] - 1)[:, 0]
    return tokens, logprobs_BV.gather(-1, tokens[:, None])[:, 0]


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Number of leading tokens that all ``sequences`` share."""
    for i, column in enumerate(zip(*sequences, strict=False)):
        if len(set(column)) > 1:
            return i
    return min(map(len, sequences))
