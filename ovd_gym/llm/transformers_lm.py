"""The transformers backend: batched sampling with log-probabilities and a cache that is kept across turns.

Letters: B rows, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ovd_gym.errors import ConfigError, TrainingStopped
from ovd_gym.llm.base import TRAINING, Completion, Decoding, Sampling
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.shelf import Shelf
from ovd_gym.llm.turn import OpenTurn
from ovd_gym.usage import give_memory_back

__all__ = ["TransformersLM", "sample_tokens"]


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
    """See :class:`~ovd_gym.llm.base.Session`.

    One :meth:`advance` is either a pass over everything that was submitted since, or one token for every turn under
    way (continuous batching: who has something to read joins the others at the next token).
    """

    def __init__(self, lm: TransformersLM, seeds: Sequence[int], sampling: Sampling) -> None:
        self._lm = lm
        self._seeds = seeds
        self._sampling = sampling
        self._shelf = Shelf(lm.decoder)
        self._merged = ExitStack()
        self._merged.enter_context(lm.decoder.merged())
        self._rows: dict[int, _Row] = {}
        self._ended: set[int] = set()
        self._waiting: dict[int, Sequence[int]] = {}
        """Submitted, not yet read."""

    def submit(self, feeds: Mapping[int, Sequence[int]]) -> None:
        """See :class:`~ovd_gym.llm.base.Session`."""
        for row, ids in feeds.items():
            if not len(ids):
                raise ValueError("every row needs at least one token to continue from")
            if row in self._ended or not 0 <= row < len(self._seeds):
                raise ValueError(f"row {row} has ended, or is none of the {len(self._seeds)} of this session")
            if row in self._waiting or (row in self._rows and self._rows[row].turn.open):
                raise ValueError(f"row {row} is in the middle of a turn")
            self._waiting[row] = ids

    @torch.no_grad()
    def advance(self) -> dict[int, Completion]:
        """See :class:`~ovd_gym.llm.base.Session`. Raises TrainingStopped when the weights are broken."""
        refused = self._refuse()
        if self._waiting:
            return refused | self._sample(*self._read())
        under_way = sorted(row for row, held in self._rows.items() if held.turn.open)
        if not under_way:
            return refused
        held = [self._rows[row] for row in under_way]
        return refused | self._sample(under_way, self._feed([(row.slot, [row.last]) for row in held]))

    def end(self, rows: Iterable[int]) -> None:
        """See :class:`~ovd_gym.llm.base.Session`. A row's cache may be built upon until another needs its place."""
        for row in rows:
            self._waiting.pop(row, None)
            self._ended.add(row)
            if (held := self._rows.pop(row, None)) is not None:
                self._shelf.release(held.slot)

    def close(self) -> None:
        """See :class:`~ovd_gym.llm.base.Session`."""
        self.end(range(len(self._seeds)))
        self._shelf = Shelf(self._lm.decoder)
        self._merged.close()
        give_memory_back()

    def _refuse(self) -> dict[int, Completion]:
        """Empty completions for the rows that have no room for what they are fed and one more token; they end."""
        held = {row: self._rows[row].held if row in self._rows else 0 for row in self._waiting}
        limit = self._lm.max_context
        full = [row for row, ids in self._waiting.items() if held[row] + len(ids) >= limit]
        self.end(full)
        return {row: Completion((), (), "", (), "context") for row in full}

    def _read(self) -> tuple[list[int], Tensor]:
        """Begin the turns that wait: their rows, and the [B, D] hidden states to sample their first tokens from."""
        feeds, self._waiting = {row: tuple(ids) for row, ids in sorted(self._waiting.items())}, {}
        first: dict[tuple[int, ...], int] = {}
        reader = {row: row if row in self._rows else first.setdefault(ids, row) for row, ids in feeds.items()}
        parts: dict[int, tuple[int, Sequence[int]]]
        parts = {row: (held.slot, [held.last, *feeds[row]]) for row, held in self._rows.items() if row in feeds}
        parts |= dict(zip(first.values(), self._shelf.place(list(first)), strict=True))
        order = sorted(parts)
        hidden_UD = self._feed([parts[row] for row in order])
        for row in first.values():  # a prompt is read once, whoever else was given it too
            twins = [other for other in feeds if reader[other] == row != other]
            slots = [parts[row][0], *self._shelf.twins(parts[row][0], len(twins))]
            for new, slot in zip([row, *twins], slots, strict=True):
                self._rows[new] = _Row(slot, np.random.default_rng(self._seeds[new]))
        for row, ids in feeds.items():
            self._rows[row].held += len(ids)
            self._rows[row].turn = OpenTurn(self._lm.tokenizer, self._sampling)
        return list(feeds), hidden_UD[[order.index(reader[row]) for row in feeds]]

    def _feed(self, parts: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
        return self._shelf.feed([slot for slot, _ in parts], [ids for _, ids in parts])

    def _sample(self, rows: Sequence[int], hidden_BD: Tensor) -> dict[int, Completion]:
        """Sample a token for each of ``rows``; the turns that end with it."""
        held = [self._rows[row] for row in rows]
        uniforms = [row.rng.random() for row in held]
        tokens, logprobs = sample_tokens(self._lm.decoder.head(hidden_BD), uniforms, self._sampling.decoding)
        if not bool(torch.isfinite(logprobs).all()):
            raise TrainingStopped("the model gives log-probabilities that are not finite: its weights are broken")
        for row, token, logprob in zip(held, tokens.tolist(), logprobs.tolist(), strict=True):
            row.turn.add(token, logprob, self._lm.max_context - row.held)
            row.held += 1
            row.last = token
        return {n: row.turn.completion() for n, row in zip(rows, held, strict=True) if not row.turn.open}


@dataclass
class _Row:
    """One sequence."""

    slot: int
    rng: np.random.Generator
    held: int = 0
    """Tokens, the last sampled one among them."""
    last: int = -1
    """The last sampled token: not yet fed to the model."""
    turn: OpenTurn = field(init=False)
    """The one under way, or the last."""


@torch.no_grad()
def _check_cache(decoder: Decoder) -> None:
    """Feed two rows over two turns through the cache and compare with plain forward passes.

    Raises ConfigError for a model whose attention is not what the cache assumes (state-space and hybrid models, an
    attention kernel without masks): its samples would be silently wrong.
    """
    rows = [[1, 2, 3, 4, 5], [1, 2, 3]]
    try:
        shelf = Shelf(decoder)
        first = shelf.place([rows[0][:2], rows[1][:1]])
        shelf.feed([slot for slot, _ in first], [ids for _, ids in first])
        cached = shelf.feed([slot for slot, _ in first], [rows[0][2:], rows[1][1:]])
        plain = [decoder.hidden(torch.tensor([row], device=decoder.device), use_cache=False)[0, -1] for row in rows]
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, RuntimeError) as error:
        raise ConfigError(f"{decoder.name} cannot be sampled with a row-wise cache: {error}") from error
    tolerance = 1e-3 if decoder.dtype == torch.float32 else 0.1
    if not torch.allclose(cached, torch.stack(plain), atol=tolerance, rtol=tolerance):
        raise ConfigError(f"{decoder.name} attends in a way the row-wise cache does not support")


def sample_tokens(logits_BV: Tensor, uniforms: Sequence[float], decoding: Decoding = TRAINING) -> tuple[Tensor, Tensor]:
    """Tokens [B] drawn by inverting the cumulative distribution at ``uniforms``, and their log-probabilities [B].

    One uniform number per row makes a row's draw independent of the rest of the batch. The log-probabilities are those
    at temperature 1 over the whole vocabulary.
    """
    logprobs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    if decoding.temperature == 0:
        tokens = logprobs_BV.argmax(dim=-1)
    else:
        cdf_BV = _weights(logprobs_BV.double(), decoding).cumsum(dim=-1)
        points = torch.tensor(uniforms, dtype=torch.float64, device=cdf_BV.device)[:, None] * cdf_BV[:, -1:]
        tokens = torch.searchsorted(cdf_BV, points, right=True).clamp(max=cdf_BV.shape[-1] - 1)[:, 0]
    return tokens, logprobs_BV.gather(-1, tokens[:, None])[:, 0]


def _weights(logprobs_BV: Tensor, decoding: Decoding) -> Tensor:
    """[B, V] what to draw in proportion to."""
    if decoding == TRAINING:
        return logprobs_BV.exp()
    probs_BV = torch.softmax(logprobs_BV / decoding.temperature, dim=-1)
    falling_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
    beyond_BV = falling_BV.cumsum(dim=-1) - falling_BV >= decoding.top_p  # never the likeliest one
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, falling_BV.masked_fill(beyond_BV, 0.0))
