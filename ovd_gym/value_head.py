"""The value head of PPO (arXiv 1707.06347): what a student expects to earn, and the advantages that follow from it.

Letters as in :mod:`ovd_gym.batch`, and D hidden size. The state in which a token is chosen is everything before it, so
its value is read from the hidden state that predicts the token, the one its log-probability comes from. Values exist at
action tokens alone: observations are part of the next state and have none.

Before the first epoch one pass without gradients gives the values that advantages and returns are estimated from;
they stay the same for all epochs. In the epochs, values and log-probabilities come from one pass, and the value loss
trains the student's weights, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from ovd_gym.batch import Batch
from ovd_gym.config import ValueConfig
from ovd_gym.losses import clipped_value_loss, explained_variance, gae, whiten

__all__ = ["ValueHead", "estimate"]


class ValueHead(nn.Linear):
    """A linear layer from hidden states to expected returns: float32, zero at first.

    Hidden states are divided by their root mean square: it differs between models by orders of magnitude, and the step
    that Adam takes in the weights does not adapt to it.
    """

    def __init__(self, hidden_size: int, config: ValueConfig, device: torch.device) -> None:
        super().__init__(hidden_size, 1, device=device, dtype=torch.float32)
        self.config = config

    def reset_parameters(self) -> None:
        """Zero: no return is expected anywhere."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """[N] values of the states with these hidden states."""
        return super().forward(rms_norm(hidden_ND.float(), hidden_ND.shape[-1:]))[:, 0]

    def loss(self, hidden_ND: Tensor, batch: Batch) -> Tensor:
        """The value losses of the trained tokens of ``batch``, added up."""
        mask_BT = batch.mask_BT
        old_N, returns_N = batch.values_BT[mask_BT], batch.returns_BT[mask_BT]
        return clipped_value_loss(self(hidden_ND), old_N, returns_N, self.config.clip).sum()


def estimate(
    pieces: Sequence[Batch], values: Sequence[Tensor], rewards: Sequence[Tensor], config: ValueConfig
) -> tuple[list[Batch], dict[str, float]]:
    """Fill in advantages, values and returns.

    Args:
        pieces: all micro-batches of a batch, each of whole rows.
        values, rewards: [N] of each piece's trained tokens, row after row.

    Returns:
        the pieces, and ``explained_variance`` unless all returns are alike. Returns are lambda-returns, ``A + V``
        before whitening.
    """
    rows = [piece.mask_BT.nonzero()[:, 0] for piece in pieces]
    raw = [gae(v, r, row, config.gamma, config.lam) for v, r, row in zip(values, rewards, rows, strict=True)]
    returns = [a + v for a, v in zip(raw, values, strict=True)]
    advantages = torch.split(whiten(torch.cat(raw)), [len(a) for a in raw]) if config.whiten else raw
    filled = [
        replace(piece, advantages_BT=_spread(a, piece), values_BT=_spread(v, piece), returns_BT=_spread(r, piece))
        for piece, a, v, r in zip(pieces, advantages, values, returns, strict=True)
    ]
    explained = explained_variance(torch.cat(list(values)), torch.cat(returns))
    return filled, {} if explained is None else {"explained_variance": explained}


def _spread(values_N: Tensor, batch: Batch) -> Tensor:
    """[B, T] ``values_N`` at the trained tokens, 0 elsewhere."""
    return torch.zeros_like(batch.advantages_BT).masked_scatter(batch.mask_BT, values_N)
