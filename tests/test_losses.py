"""Losses against independent references."""

from __future__ import annotations

import math

import pytest
import torch

from ovd_gym.losses import chunked_logprobs, clipped_policy_loss, k3, mismatch_weight


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunked_logprobs_equal_the_plain_ones_with_their_gradients(chunk: int) -> None:
    torch.manual_seed(0)
    head = torch.nn.Linear(5, 11, dtype=torch.float64)
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (7,))
    logprobs, entropy = chunked_logprobs(hidden, targets, lambda h: head(h).double(), chunk)
    plain = torch.log_softmax(head(hidden).float(), -1)
    assert torch.equal(logprobs, plain[torch.arange(7), targets])
    assert torch.allclose(entropy, torch.distributions.Categorical(logits=plain).entropy())
    assert not entropy.requires_grad
    (mine,) = torch.autograd.grad(logprobs.sum(), hidden)
    (reference,) = torch.autograd.grad(plain[torch.arange(7), targets].sum(), hidden)
    assert torch.allclose(mine, reference, atol=1e-7)


def test_full_logits_never_exist() -> None:
    sizes = []

    def head(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return hidden @ torch.ones(4, 1000)

    hidden = torch.randn(100, 4, requires_grad=True)
    chunked_logprobs(hidden, torch.zeros(100, dtype=torch.long), head, 16)[0].sum().backward()
    assert max(sizes) == 16
    assert len(sizes) == 2 * math.ceil(100 / 16)  # once forward, once recomputed for the gradient


def test_clipped_loss_by_hand() -> None:
    old = torch.zeros(4)
    new = torch.log(torch.tensor([1.5, 0.5, 1.5, 0.5]))
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, clipped = clipped_policy_loss(new, old, advantages, torch.ones(4), 0.2, 0.28)
    # too far up on a good token, too far down on a bad one: held; the two others: the full pull back
    assert loss.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8])
    assert clipped.tolist() == [True, False, False, True]


def test_on_policy_gradient_is_reinforce() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -0.25])
    loss, _ = clipped_policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(2), 0.2, 0.28)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert torch.equal(gradient, -advantages)


def test_mismatch_weight_is_truncated_and_has_no_gradient() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    weights = mismatch_weight(logprobs, torch.tensor([-1.0, -4.0, -2.0]))
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])
    assert not weights.requires_grad


def test_k3_is_an_unbiased_kl() -> None:
    torch.manual_seed(0)
    p, q = torch.log_softmax(torch.randn(6), 0), torch.log_softmax(torch.randn(6), 0)
    samples = torch.multinomial(p.exp(), 200_000, replacement=True)
    estimate = k3(p[samples], q[samples])
    exact = float((p.exp() * (p - q)).sum())
    assert float(estimate.min()) >= 0
    assert float(estimate.mean()) == pytest.approx(exact, rel=0.02)
