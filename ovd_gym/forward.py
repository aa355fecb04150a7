"""One forward pass over a batch: the hidden states that predict its trained tokens.

Letters as in :mod:`ovd_gym.batch`, and D hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ovd_gym.batch import Batch
from ovd_gym.llm.decoder import Decoder

__all__ = ["predicting"]


def predicting(decoder: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D] that predict the trained tokens, and those tokens [N].

    The prefix all rows share is computed once; its keys and values are shared by the rows, gradient included.
    """
    ids_BT, mask_BT = batch.token_ids_BT, batch.mask_BT
    first = int(mask_BT.int().argmax(dim=1).min())
    differs_T = (ids_BT[:, :first] != ids_BT[:1, :first]).any(dim=0)
    shared = int(differs_T.int().argmax()) if bool(differs_T.any()) else first
    shared = min(shared, first - 1)  # the token that predicts the first sampled one stays with its row
    if not decoder.agrees(shared >= 1 and len(batch) > 1):
        hidden_BTD = decoder.hidden(ids_BT, attention_mask=_attention(batch), use_cache=False)
        shared = 0
    else:
        cache = DynamicCache()
        decoder.hidden(ids_BT[:1, :shared], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(batch))
        hidden_BTD = decoder.hidden(
            ids_BT[:, shared:],
            attention_mask=_attention(batch),
            position_ids=torch.arange(shared, ids_BT.shape[1], device=ids_BT.device)[None],
            past_key_values=cache,
            use_cache=True,
        )
    return hidden_BTD[:, :-1][mask_BT[:, shared + 1 :]], ids_BT[mask_BT]


def _attention(batch: Batch) -> Tensor:
    span = torch.arange(batch.token_ids_BT.shape[1], device=batch.token_ids_BT.device)
    return (span < batch.lengths_B[:, None]).long()
