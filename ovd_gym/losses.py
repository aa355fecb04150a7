"""Losses: pure functions on tensors.

Letters: N trained tokens, V vocabulary, D hidden size. Log-probabilities in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["chunked_logprobs", "clipped_policy_loss", "k3", "mismatch_weight"]

Head = Callable[[Tensor], Tensor]


def chunked_logprobs(hidden_ND: Tensor, targets_N: Tensor, head: Head, chunk: int = 1024) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, without ever holding ``[N, V]`` logits.

    At most ``chunk * V`` logits exist at a time, in the forward and in the backward pass (they are recomputed there).

    Args:
        hidden_ND: the hidden state that predicts each target.
        targets_N: token ids.
        head: hidden states [n, D] to logits [n, V].
        chunk: tokens per piece.

    Returns:
        logprobs_N with gradient, entropy_N without.
    """
    pieces = [
        cast(
            "tuple[Tensor, Tensor]",
            checkpoint(_logprobs, hidden, targets, head, use_reentrant=False, preserve_rng_state=False),
        )
        for hidden, targets in zip(torch.split(hidden_ND, chunk), torch.split(targets_N, chunk), strict=True)
    ]
    return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])


def clipped_policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, weights_N: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """``-w min(rho A, clip(rho, 1 - low, 1 + high) A)`` per token, and where the clip is active.

    PPO (arXiv 1707.06347) with DAPO's asymmetric clip (arXiv 2503.14476); ``rho = exp(logprob - old_logprob)``,
    ``w`` is :func:`mismatch_weight`.
    """
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    plain_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - low, 1 + high) * advantages_N
    return -weights_N * torch.minimum(plain_N, clipped_N), clipped_N < plain_N


def mismatch_weight(logprobs_N: Tensor, rollout_logprobs_N: Tensor, cap: float = 2.0) -> Tensor:
    """``min(pi_train / pi_rollout, cap)``, no gradient: corrects for an engine that samples slightly differently.

    Truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL").
    """
    return torch.exp(logprobs_N.detach() - rollout_logprobs_N).clamp(max=cap)


def k3(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """Unbiased, non-negative estimate of ``KL(pi || ref)`` per token: ``exp(d) - 1 - d`` with ``d = ref - pi``.

    Schulman 2020, "Approximating KL divergence".
    """
    difference_N = reference_logprobs_N - logprobs_N
    return torch.exp(difference_N) - 1 - difference_N


def _logprobs(hidden_ND: Tensor, targets_N: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    logprobs_NV = torch.log_softmax(head(hidden_ND).float(), dim=-1)
    with torch.no_grad():
        entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
    return logprobs_NV.gather(-1, targets_N[:, None])[:, 0], entropy_N
