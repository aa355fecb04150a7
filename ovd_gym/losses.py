"""Losses: pure functions on tensors.

Letters: N trained tokens, V vocabulary, D hidden size, R rows (trajectories). Log-probabilities in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

__all__ = [
    "chunked_divergence",
    "chunked_logprobs",
    "clipped_policy_loss",
    "clipped_value_loss",
    "divergence",
    "explained_variance",
    "gae",
    "kl_estimate",
    "likelihood_drop",
    "mismatch_weight",
    "sequence_mean",
    "shaped_ratio",
    "token_weights",
    "whiten",
]

Head = Callable[[Tensor], Tensor]
Aggregation = Literal["token-mean", "sequence-mean", "fixed-length"]
Estimator = Literal["k1", "k2", "k3"]


def chunked_logprobs(
    hidden_ND: Tensor, targets_N: Tensor, head: Head, chunk: int = 1024, *, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of each distribution, without ever holding ``[N, V]`` logits.

    At most ``chunk * V`` logits exist at a time, in the forward and in the backward pass (they are recomputed there).

    Args:
        hidden_ND: the hidden state that predicts each target.
        targets_N: token ids.
        head: hidden states [n, D] to logits [n, V].
        chunk: tokens per piece.
        entropy_grad: whether the entropies have a gradient, too.

    Returns:
        logprobs_N with gradient, entropy_N.
    """

    def piece(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logprobs_NV = torch.log_softmax(head(hidden).float(), dim=-1)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy_N = -(logprobs_NV.exp() * logprobs_NV).sum(dim=-1)
        return logprobs_NV.gather(-1, targets[:, None])[:, 0], entropy_N

    pieces = [
        cast("tuple[Tensor, Tensor]", checkpoint(piece, hidden, targets, use_reentrant=False, preserve_rng_state=False))
        for hidden, targets in zip(torch.split(hidden_ND, chunk), torch.split(targets_N, chunk), strict=True)
    ]
    return torch.cat([logprobs for logprobs, _ in pieces]), torch.cat([entropy for _, entropy in pieces])


def clipped_policy_loss(
    log_ratio_N: Tensor, advantages_N: Tensor, weights_N: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """``-w min(rho A, clip(rho, 1 - low, 1 + high) A)`` per token, and where the clip is active.

    PPO (arXiv 1707.06347) with DAPO's asymmetric clip (arXiv 2503.14476); ``rho = exp(log_ratio)``, ``w`` is
    :func:`mismatch_weight`.
    """
    ratio_N = torch.exp(log_ratio_N)
    plain_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - low, 1 + high) * advantages_N
    return -weights_N * torch.minimum(plain_N, clipped_N), clipped_N < plain_N


def sequence_mean(log_ratio_N: Tensor, rows_N: Tensor) -> Tensor:
    """GSPO's log-ratio (arXiv 2507.18071, equation 7): the mean over the tokens of a row, at each of its tokens.

    It has the gradient of the mean: aggregated by ``sequence-mean``, the token losses are GSPO's sequence loss.

    Args:
        rows_N: which row each token belongs to, in 0 .. R-1.
    """
    count_R = torch.bincount(rows_N)
    total_R = torch.zeros(len(count_R), dtype=log_ratio_N.dtype, device=log_ratio_N.device)
    return (total_R.index_add(0, rows_N, log_ratio_N) / count_R)[rows_N]


def token_weights(lengths_N: Tensor, kind: Aggregation, tokens: int, rows: int, length: int) -> Tensor:
    """What each token's loss is multiplied by, so that their plain sum is the batch's loss.

    ``token-mean``: 1 / tokens (DAPO, arXiv 2503.14476). ``sequence-mean``: 1 / (rows x tokens of its row) (GRPO, arXiv
    2402.03300). ``fixed-length``: 1 / (rows x length) (Dr. GRPO, arXiv 2503.20783).

    Args:
        lengths_N: number of trained tokens in each token's row.
        tokens, rows: of the whole batch, also of the rows that have no advantage.
        length: the constant of ``fixed-length``.
    """
    if kind == "token-mean":
        return torch.full_like(lengths_N, 1 / tokens, dtype=torch.float32)
    return 1 / (rows * (lengths_N.float() if kind == "sequence-mean" else torch.full_like(lengths_N, length).float()))


def mismatch_weight(logprobs_N: Tensor, rollout_logprobs_N: Tensor, cap: float = 2.0) -> Tensor:
    """``min(pi_train / pi_rollout, cap)``, no gradient: corrects for an engine that samples slightly differently.

    Truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL").
    """
    return torch.exp(logprobs_N.detach() - rollout_logprobs_N).clamp(max=cap)


def shaped_ratio(logprobs_N: Tensor, gamma: float = 0.1) -> Tensor:
    """``f(pi) = pi / (pi + gamma)``: the ratio of a token that the policy did not sample.

    Policy shaping (LUFFY, arXiv 2504.14945): the gradient is largest for tokens that the policy finds unlikely.
    """
    probability_N = torch.exp(logprobs_N)
    return probability_N / (probability_N + gamma)


def kl_estimate(logprobs_N: Tensor, reference_logprobs_N: Tensor, kind: Estimator = "k3") -> Tensor:
    """Estimate of ``KL(pi || ref)`` per sampled token, with ``d = log ref - log pi``.

    ``k1 = -d`` is unbiased and may be negative; ``k2 = d^2 / 2`` is biased, its gradient is not;
    ``k3 = exp(d) - 1 - d`` is unbiased and never negative. Schulman 2020, "Approximating KL divergence".
    """
    difference_N = reference_logprobs_N - logprobs_N
    if kind == "k1":
        return -difference_N
    return difference_N.square() / 2 if kind == "k2" else torch.exp(difference_N) - 1 - difference_N


def likelihood_drop(log_ratio_N: Tensor, rows_N: Tensor, correct_R: Tensor) -> Tensor:
    """``max(0, log pi_old - log pi)`` on the tokens of right trajectories that have become less likely as a whole.

    A safeguard against the slow loss of what was right: arXiv 2512.04220 (likelihood-preserving regularisation).
    """
    total_R = torch.zeros(len(correct_R), device=log_ratio_N.device).index_add(0, rows_N, log_ratio_N.detach())
    return torch.relu(-log_ratio_N) * (correct_R & (total_R < 0))[rows_N]


# Advantages from a value head (PPO) ---------------------------------------------------------------------


def gae(values_N: Tensor, rewards_N: Tensor, rows_N: Tensor, gamma: float = 1.0, lam: float = 1.0) -> Tensor:
    """[N] generalised advantage estimates (arXiv 1506.02438, equation 16), over action tokens alone::

        A_t = sum_{l >= 0} (gamma lam)^l delta_{t+l},    delta_t = r_t + gamma V_{t+1} - V_t

    ``t + 1`` is the row's next *action* token: an observation in between takes no time, however long it is.
    Nothing follows a row's last token (V = 0), also when the episode was truncated: its budget of turns or tokens is a
    rule of the task, and running out of it is one way to end, so there is no bootstrapping.

    Args:
        values_N: V of the state in which each token is chosen.
        rewards_N: what choosing it earned.
        rows_N: which row each token belongs to, ascending in 0 .. R-1.
    """
    lengths = torch.bincount(rows_N).tolist()
    pieces = ([*torch.split(x, lengths)] for x in (values_N, rewards_N))
    values_RK, rewards_RK = (pad_sequence(rows, batch_first=True) for rows in pieces)
    deltas_RK = rewards_RK + gamma * pad(values_RK[:, 1:], (0, 1)) - values_RK
    advantages_RK = torch.empty_like(deltas_RK)
    following_R = torch.zeros_like(deltas_RK[:, 0])
    for k in reversed(range(deltas_RK.shape[1])):
        following_R = deltas_RK[:, k] + gamma * lam * following_R
        advantages_RK[:, k] = following_R
    return torch.cat([row[:length] for row, length in zip(advantages_RK, lengths, strict=True)])


def whiten(values_N: Tensor) -> Tensor:
    """``values_N`` with mean 0 and standard deviation 1 (all 0 if they do not differ)."""
    return (values_N - values_N.mean()) / (values_N.std(correction=0) + 1e-8)


def clipped_value_loss(values_N: Tensor, old_N: Tensor, returns_N: Tensor, clip: float) -> Tensor:
    """``max((V - R)^2, (V_clipped - R)^2) / 2`` per token, with V clipped to ``V_old +- clip``.

    The squared error of PPO (arXiv 1707.06347, equation 9), clipped as in its published code (OpenAI Baselines, ppo2).
    """
    clipped_N = old_N + (values_N - old_N).clamp(-clip, clip)
    return torch.maximum((values_N - returns_N).square(), (clipped_N - returns_N).square()) / 2


def explained_variance(values_N: Tensor, returns_N: Tensor) -> float | None:
    """``1 - Var(R - V) / Var(R)``: 1 for perfect values, 0 for constant ones; None if the returns hardly differ."""
    variance = float(returns_N.var(correction=0))
    return 1 - float((returns_N - values_N).var(correction=0)) / variance if variance > 1e-8 else None


# The comparator: token-level distillation ---------------------------------------------------------------


def divergence(student_NV: Tensor, teacher_NV: Tensor, beta: float = 1.0, top_k: int | None = None) -> Tensor:
    """[N] divergence between two next-token distributions, given their log-probabilities.

    ``beta = 1``: reverse KL ``KL(student || teacher)``; ``beta = 0``: forward KL; between them the generalised
    Jensen-Shannon divergence ``beta KL(teacher || m) + (1 - beta) KL(student || m)``, ``m = beta teacher +
    (1 - beta) student`` (GKD, arXiv 2306.13649).

    Args:
        student_NV, teacher_NV: log-probabilities over the vocabulary.
        top_k: compare the teacher's k likeliest tokens and the rest as one; None compares all.
    """
    if top_k is not None:
        kept = teacher_NV.topk(min(top_k, teacher_NV.shape[-1]), dim=-1).indices
        student_NV, teacher_NV = _with_rest(student_NV, kept), _with_rest(teacher_NV, kept)
    if beta in (0.0, 1.0):
        a, b = (student_NV, teacher_NV) if beta else (teacher_NV, student_NV)
        return (a.exp() * (a - b)).sum(-1)
    mix = torch.tensor([beta, 1 - beta], dtype=student_NV.dtype, device=student_NV.device).log()
    m_NV = torch.logsumexp(torch.stack([teacher_NV + mix[0], student_NV + mix[1]]), dim=0)
    forward = (teacher_NV.exp() * (teacher_NV - m_NV)).sum(-1)
    return beta * forward + (1 - beta) * (student_NV.exp() * (student_NV - m_NV)).sum(-1)


def chunked_divergence(
    student_ND: Tensor,
    student_head: Head,
    teacher_ND: Tensor,
    teacher_head: Head,
    *,
    beta: float = 1.0,
    top_k: int | None = None,
    chunk: int = 1024,
) -> Tensor:
    """:func:`divergence` from hidden states, with at most ``chunk * V`` logits of either model at a time.

    Args:
        student_ND, teacher_ND: hidden states that predict the same tokens; only the student's have a gradient.
        student_head, teacher_head: hidden states to logits.
    """

    def piece(student: Tensor, teacher: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_NV = torch.log_softmax(teacher_head(teacher).float(), dim=-1)
        return divergence(torch.log_softmax(student_head(student).float(), dim=-1), teacher_NV, beta, top_k)

    pairs = zip(torch.split(student_ND, chunk), torch.split(teacher_ND, chunk), strict=True)
    pieces = [checkpoint(piece, a, b, use_reentrant=False, preserve_rng_state=False) for a, b in pairs]
    return torch.cat(cast("list[Tensor]", pieces))


def _with_rest(logprobs_NV: Tensor, kept_NK: Tensor) -> Tensor:
    """[N, K + 1] the log-probabilities of the tokens ``kept``, and of all others together."""
    kept = logprobs_NV.gather(-1, kept_NK)
    rest = logprobs_NV.scatter(-1, kept_NK, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([kept, rest.clamp(min=-80.0)], dim=-1)  # a rest of nothing would give 0 * -inf
