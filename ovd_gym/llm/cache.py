"""A key-value cache whose rows grow each at their own pace and can be computed on in any subset.

Letters: B rows, H heads, S slots, D head dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from ovd_gym.llm.decoder import Decoder

__all__ = ["RowCache"]

_GROWTH = 64


class RowCache:
    """Storage ``[B, H, S, D]`` per layer. Row ``b`` holds ``lengths[b]`` tokens in slots ``0 .. lengths[b] - 1``."""

    def __init__(self, decoder: Decoder, num_rows: int = 0) -> None:
        device = decoder.device
        self._max_position = int(decoder.config.max_position_embeddings) - 1
        # Eager attention adds the mask to the scores; the fused kernels take it as a boolean.
        self._mask_dtype = decoder.dtype if decoder.config._attn_implementation == "eager" else torch.bool
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._pass = _Pass(device, num_rows)
        self._layers = [_RowLayer(self._pass) for _ in range(decoder.config.num_hidden_layers)]

    def plan(self, rows: Sequence[int], width: int) -> dict[str, Any]:
        """Decoder arguments for feeding ``width`` tokens to each of ``rows`` at the end of what it holds.

        Returns ``past_key_values``, ``position_ids`` [b, width] and ``attention_mask`` [b, 1, width, S']: every token
        sees its row up to itself.
        """
        device, now = self.lengths.device, self._pass
        now.rows = torch.tensor(rows, dtype=torch.long, device=device)
        now.slots = self.lengths[now.rows, None] + torch.arange(width, device=device)
        now.end = int(now.slots.max()) + 1
        now.whole = list(rows) == list(range(now.num_rows))
        visible = torch.arange(now.end, device=device) <= now.slots[:, None, :, None]
        if self._mask_dtype != torch.bool:
            lowest = torch.finfo(self._mask_dtype).min
            visible = torch.zeros_like(visible, dtype=self._mask_dtype).masked_fill(~visible, lowest)
        return {
            "past_key_values": Cache(layers=list(self._layers)),
            "position_ids": now.slots.clamp(max=self._max_position),  # padding may lie beyond the last position
            "attention_mask": visible,
            "use_cache": True,
        }

    def grow(self, rows: Sequence[int], counts: Tensor) -> None:
        """Keep the first ``counts[i]`` tokens just fed to ``rows[i]``; the padding after them is overwritten later."""
        self.lengths[torch.tensor(rows, device=self.lengths.device)] += counts

    def add(self) -> int:
        """A further row, which holds nothing."""
        self.lengths = torch.nn.functional.pad(self.lengths, (0, 1))
        self._pass.num_rows += 1
        return self._pass.num_rows - 1

    def copy(self, source: int, targets: Sequence[int], count: int) -> None:
        """Let ``targets`` hold the first ``count`` tokens of row ``source``, and nothing else."""
        self.lengths[list(targets)] = count
        others = [target for target in targets if target != source]
        if count and others:
            for layer in self._layers:
                layer.copy(source, others, count)


class _Pass:
    """Where the tokens being fed go. Layers hold this and not the cache: a cycle would outlive the rollout's end."""

    def __init__(self, device: torch.device, num_rows: int) -> None:
        self.num_rows = num_rows
        """Of the whole cache."""
        self.rows = torch.zeros(1, dtype=torch.long, device=device)
        self.slots = torch.zeros(1, 0, dtype=torch.long, device=device)
        self.end = 0
        self.whole = False
        """Whether it is over every row, in order: then a view of the cache will do."""


class _RowLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers is partly typed
    keys: Tensor
    values: Tensor

    def __init__(self, now: _Pass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._pass = now

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        rows, slots, end = self._pass.rows, self._pass.slots, self._pass.end
        self._reserve(key_states, end)
        self.keys[rows[:, None], :, slots] = key_states.transpose(1, 2)
        self.values[rows[:, None], :, slots] = value_states.transpose(1, 2)
        if self._pass.whole:
            return self.keys[:, :, :end], self.values[:, :, :end]
        return self.keys[rows, :, :end], self.values[rows, :, :end]

    def copy(self, source: int, targets: list[int], count: int) -> None:
        self._reserve(self.keys, count)
        self.keys[targets, :, :count] = self.keys[source, :, :count].clone()
        self.values[targets, :, :count] = self.values[source, :, :count].clone()

    def _reserve(self, like: Tensor, slots: int) -> None:
        """Make room for all rows of the cache, and for ``slots`` tokens in each."""
        rows = self._pass.num_rows
        if not self.is_initialized:
            self.lazy_initialization(like, like)
            self.keys = like.new_zeros(rows, like.shape[1], 0, like.shape[3])
            self.values = self.keys.clone()
        have_rows, have = len(self.keys), self.keys.shape[2]
        if have < slots or have_rows < rows:
            longer = max(slots, have + _GROWTH) - have if have < slots else 0
            room = (0, 0, 0, longer, 0, 0, 0, rows - have_rows)
            self.keys = torch.nn.functional.pad(self.keys, room)
            self.values = torch.nn.functional.pad(self.values, room)
