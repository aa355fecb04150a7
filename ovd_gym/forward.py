"""One forward pass over a batch: the hidden states that predict its trained tokens.

What rows begin with is computed once (:mod:`ovd_gym.sharing`): pass after pass, each on the keys and values of the one
before, gradient included. Nothing else of one row is visible to another. Letters as in :mod:`ovd_gym.batch`, and D
hidden size, S tokens before a pass, P tokens of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, DynamicLayer

from ovd_gym.batch import Batch
from ovd_gym.errors import ConfigError, TrainingStopped
from ovd_gym.llm.decoder import Decoder
from ovd_gym.sharing import Sharing

__all__ = ["checkpointing", "predicting"]


def predicting(decoder: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D] that predict the trained tokens, and those tokens [N].

    Raises:
        TrainingStopped: a row is longer than what the model's positions are exact for.
    """
    ids_BT, mask_BT = batch.token_ids_BT, batch.mask_BT
    if (longest := int(batch.lengths_B.max())) > decoder.max_positions:
        raise TrainingStopped(
            f"a trajectory of {longest} tokens, but {decoder.name} has positions for {decoder.max_positions}: set "
            "student.max_context to at most that"
        )
    sharing = Sharing.of(batch)
    thrice = decoder.agrees(sharing.best == "leads" and sharing.common > 0)
    if not (thrice or decoder.agrees(sharing.best != "nothing")):
        hidden_BTD = decoder.hidden(ids_BT, use_cache=False)  # causal: padding at the end is seen by nobody
        return hidden_BTD[:, :-1][mask_BT[:, 1:]], ids_BT[mask_BT]
    leads, known = list(sharing.leads), _Known.nothing(decoder)
    common = sharing.common if thrice or sharing.best == "common" else 0
    if common:
        _, known = _read(decoder, [leads[0][:common]], known)
    sources, starts = [0] * len(batch), [common] * len(batch)
    if sharing.best == "leads":
        _, known = _read(decoder, [lead[common:] for lead in leads], known.rows([0] * len(leads)))
        sources, starts = sharing.sources, [len(leads[place]) for place in sharing.sources]
    ends = batch.lengths_B.tolist()
    rests = [ids[start:end] for ids, start, end in zip(ids_BT.tolist(), starts, ends, strict=True)]
    hidden_BPD, _ = _read(decoder, rests, known.rows(sources))
    rows_N, columns_N = mask_BT.nonzero(as_tuple=True)
    starts_B = torch.tensor(starts, device=decoder.device)
    return hidden_BPD[rows_N, columns_N - 1 - starts_B[rows_N]], ids_BT[mask_BT]


@contextmanager
def checkpointing(decoder: Decoder) -> Iterator[None]:
    """Within it, only what goes into a layer is kept for the backward pass; the rest is computed again (Chen et al.
    2016, arXiv 1604.06174).

    Unlike transformers' own switch it leaves the model in evaluation mode and lets passes build on each other: a pass
    never changes the keys and values it reads, so a repeated one finds the same.

    Raises:
        ConfigError: the model's layers cannot be told.
    """
    layers = decoder.layers
    if not layers:
        raise ConfigError(f"{decoder.name} has no layers to checkpoint: set learner.gradient_checkpointing to false")
    for layer in layers:
        vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer in layers:
            del vars(layer)["forward"]


@dataclass(frozen=True)
class _Known:
    """What passes have read so far, row by row."""

    layers: Sequence[tuple[Tensor, Tensor] | None]
    """Keys and values [B, heads, S, D / heads] of each layer; None before the first pass."""
    visible_BS: Tensor
    """False at padding."""
    lengths_B: Tensor

    @classmethod
    def nothing(cls, decoder: Decoder) -> _Known:
        """One row without a token."""
        empty = torch.zeros(1, 0, dtype=torch.bool, device=decoder.device)
        return cls([None] * decoder.config.num_hidden_layers, empty, empty.sum(dim=1))

    def rows(self, sources: Sequence[int]) -> _Known:
        """Row ``i`` is a copy of row ``sources[i]``."""
        index = torch.tensor(sources, device=self.lengths_B.device)
        layers = [layer and (_picked(layer[0], sources), _picked(layer[1], sources)) for layer in self.layers]
        return _Known(layers, self.visible_BS[index], self.lengths_B[index])


def _picked(rows: Tensor, sources: Sequence[int]) -> Tensor:
    """``rows[sources]``. Indexing with a tensor would add up the gradient of a row in an order that threads decide."""
    apart = rows.unbind()
    return torch.stack([apart[source] for source in sources])


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is partly typed
    """One layer's keys and values during one pass."""

    def __init__(self, before: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._before = before
        self.after: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        found = (key_states, value_states)
        if self._before is not None:
            found = (torch.cat((self._before[0], found[0]), dim=2), torch.cat((self._before[1], found[1]), dim=2))
        self.after = found
        return found


def _read(decoder: Decoder, tokens: Sequence[Sequence[int]], known: _Known) -> tuple[Tensor, _Known]:
    """Hidden states [B, P, D] of ``tokens[i]`` after what is known of row ``i``, and what is known then."""
    device = decoder.device
    ids_BP = pad_sequence([torch.tensor(ids, dtype=torch.long) for ids in tokens], batch_first=True).to(device)
    width = ids_BP.shape[1]
    counts_B = torch.tensor([len(ids) for ids in tokens], device=device)
    steps_P = torch.arange(width, device=device)
    positions_BP = known.lengths_B[:, None] + steps_P
    causal_BPP = (steps_P <= steps_P[:, None]).expand(len(ids_BP), width, width)
    before_BPS = known.visible_BS[:, None].expand(len(ids_BP), width, known.visible_BS.shape[1])
    layers = [_Layer(before) for before in known.layers]
    hidden_BPD = decoder.hidden(
        ids_BP,
        attention_mask=decoder.attention_mask(torch.cat((before_BPS, causal_BPP), dim=2)),
        position_ids=positions_BP.clamp(max=decoder.config.max_position_embeddings - 1),  # padding may lie beyond
        past_key_values=Cache(layers=list(layers)),
        use_cache=True,
    )
    visible_BS = torch.cat((known.visible_BS, steps_P < counts_B[:, None]), dim=1)
    return hidden_BPD, _Known([layer.after for layer in layers], visible_BS, known.lengths_B + counts_B)
