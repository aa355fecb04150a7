"""Losses against independent references."""

from __future__ import annotations

import math

import pytest
import torch

from ovd_gym.losses import (
    chunked_divergence,
    chunked_logprobs,
    clipped_policy_loss,
    divergence,
    kl_estimate,
    likelihood_drop,
    mismatch_weight,
    sequence_mean,
    shaped_ratio,
    token_weights,
)


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
    loss, clipped = clipped_policy_loss(new - old, advantages, torch.ones(4), 0.2, 0.28)
    # too far up on a good token, too far down on a bad one: held; the two others: the full pull back
    assert loss.tolist() == pytest.approx([-1.28, -0.5, 1.5, 0.8])
    assert clipped.tolist() == [True, False, False, True]


def test_on_policy_gradient_is_reinforce() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([0.5, -0.25])
    loss, _ = clipped_policy_loss(logprobs - logprobs.detach(), advantages, torch.ones(2), 0.2, 0.28)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    assert torch.equal(gradient, -advantages)


def test_mismatch_weight_is_truncated_and_has_no_gradient() -> None:
    logprobs = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    weights = mismatch_weight(logprobs, torch.tensor([-1.0, -4.0, -2.0]))
    assert weights.tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])
    assert not weights.requires_grad


def test_the_kl_estimators() -> None:
    torch.manual_seed(0)
    p, q = torch.log_softmax(torch.randn(6), 0), torch.log_softmax(torch.randn(6), 0)
    samples = torch.multinomial(p.exp(), 200_000, replacement=True)
    exact = float((p.exp() * (p - q)).sum())
    for kind in ("k1", "k3"):
        assert float(kl_estimate(p[samples], q[samples], kind).mean()) == pytest.approx(exact, rel=0.03)
    assert float(kl_estimate(p[samples], q[samples], "k3").min()) >= 0
    assert kl_estimate(p, q, "k2").tolist() == pytest.approx(((q - p) ** 2 / 2).tolist())


def test_the_gradient_of_k2_is_that_of_the_kl() -> None:
    logits = torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    reference = torch.log_softmax(torch.arange(5.0, dtype=torch.float64), 0)
    policy = torch.log_softmax(logits, 0)
    (exact,) = torch.autograd.grad((policy.exp() * (policy - reference)).sum(), logits, retain_graph=True)
    expected = policy.exp().detach() * kl_estimate(policy, reference, "k2")
    (mine,) = torch.autograd.grad(expected.sum(), logits)
    assert torch.allclose(mine, exact, atol=1e-10)


# Whole losses against the published formulas, written out in float64 over padded rows ---------------------

LENGTHS = (5, 2, 7)
ROWS, TOKENS = len(LENGTHS), sum(LENGTHS)


class Case:
    """Random log-probabilities [R, T] with a mask; the flat tensors are the mask's tokens, row after row."""

    def __init__(self, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
        self.old = -torch.rand(self.mask.shape, generator=g, dtype=torch.float64) * 3
        self.new = (self.old + 0.4 * torch.randn(self.mask.shape, generator=g, dtype=torch.float64)).requires_grad_()
        self.advantages = torch.randn(ROWS, generator=g, dtype=torch.float64)

    @property
    def rows(self) -> torch.Tensor:
        return self.mask.nonzero()[:, 0]

    def mine(self, aggregation: str, low: float, high: float, *, sequence: bool = False) -> torch.Tensor:
        log_ratio = (self.new - self.old)[self.mask]
        if sequence:
            log_ratio = sequence_mean(log_ratio, self.rows)
        loss, _ = clipped_policy_loss(
            log_ratio, self.advantages[self.rows], torch.ones(TOKENS, dtype=torch.float64), low, high
        )
        weights = token_weights(torch.tensor(LENGTHS)[self.rows], aggregation, TOKENS, ROWS, 9)  # type: ignore[arg-type]
        return (loss * weights.double()).sum()

    def token_losses(self, low: float, high: float) -> torch.Tensor:
        ratio = torch.exp(self.new - self.old)
        advantages = self.advantages[:, None]
        return -torch.min(ratio * advantages, torch.clamp(ratio, 1 - low, 1 + high) * advantages) * self.mask


def same(mine: torch.Tensor, reference: torch.Tensor, case: Case) -> None:
    assert float(mine.detach()) == pytest.approx(float(reference.detach()), abs=1e-6)
    (a,) = torch.autograd.grad(mine, case.new)
    (b,) = torch.autograd.grad(reference, case.new)
    assert torch.allclose(a, b, atol=1e-6)
    assert not a[~case.mask].any()


@pytest.mark.parametrize("seed", range(5))
def test_grpo(seed: int) -> None:
    """arXiv 2402.03300, equation 3: the mean over the group of each output's mean over its tokens."""
    case = Case(seed)
    reference = (case.token_losses(0.2, 0.2).sum(1) / case.mask.sum(1)).mean()
    same(case.mine("sequence-mean", 0.2, 0.2), reference, case)


@pytest.mark.parametrize("seed", range(5))
def test_dapo(seed: int) -> None:
    """arXiv 2503.14476, equation 8: the mean over all tokens, clipped higher above than below."""
    case = Case(seed)
    same(case.mine("token-mean", 0.2, 0.28), case.token_losses(0.2, 0.28).sum() / case.mask.sum(), case)


@pytest.mark.parametrize("seed", range(5))
def test_dr_grpo(seed: int) -> None:
    """arXiv 2503.20783: each output's sum over a constant, whatever its length."""
    case = Case(seed)
    same(case.mine("fixed-length", 0.2, 0.2), (case.token_losses(0.2, 0.2).sum(1) / 9).mean(), case)


@pytest.mark.parametrize("seed", range(5))
def test_gspo(seed: int) -> None:
    """arXiv 2507.18071, equations 5 and 7: one ratio a sequence, the geometric mean of its tokens' ratios."""
    case = Case(seed)
    mean = ((case.new - case.old) * case.mask).sum(1) / case.mask.sum(1)
    ratio = torch.exp(mean)
    clipped = torch.clamp(ratio, 1 - 0.05, 1 + 0.08)
    reference = -torch.min(ratio * case.advantages, clipped * case.advantages).mean()
    same(case.mine("sequence-mean", 0.05, 0.08, sequence=True), reference, case)


def test_the_shaped_ratio_pulls_hardest_on_unlikely_tokens() -> None:
    logprobs = torch.log(torch.tensor([0.9, 0.1, 0.01])).requires_grad_()
    assert shaped_ratio(logprobs).tolist() == pytest.approx([0.9, 0.5, 0.01 / 0.11])
    probability = torch.tensor([0.9, 0.1, 0.01], requires_grad=True)
    (gradient,) = torch.autograd.grad(shaped_ratio(torch.log(probability)).sum(), probability)
    assert gradient.tolist() == pytest.approx([0.1 / 1.0**2, 0.1 / 0.2**2, 0.1 / 0.11**2], rel=1e-4)


def test_only_right_trajectories_that_lost_likelihood_are_guarded() -> None:
    log_ratio = torch.tensor([-0.5, 0.1, -0.5, 0.9, -0.5, -0.5], requires_grad=True)
    rows = torch.tensor([0, 0, 1, 1, 2, 2])  # less likely; more likely; less likely, but wrong
    drop = likelihood_drop(log_ratio, rows, torch.tensor([True, True, False]))
    assert drop.tolist() == pytest.approx([0.5, 0, 0, 0, 0, 0])
    (gradient,) = torch.autograd.grad(drop.sum(), log_ratio)
    assert gradient.tolist() == [-1, 0, 0, 0, 0, 0]


# Token-level distillation -------------------------------------------------------------------------------


def distributions(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    student, teacher = (torch.log_softmax(2 * torch.randn(4, 9, generator=g, dtype=torch.float64), -1) for _ in "ab")
    return student, teacher


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_divergences_equal_those_of_torch_distributions(seed: int, beta: float) -> None:
    student, teacher = distributions(seed)
    p, q = (torch.distributions.Categorical(logits=x) for x in (student, teacher))
    kl = torch.distributions.kl_divergence
    if beta in (0.0, 1.0):
        reference = kl(p, q) if beta else kl(q, p)
    else:
        m = torch.distributions.Categorical(probs=beta * q.probs + (1 - beta) * p.probs)
        reference = beta * kl(q, m) + (1 - beta) * kl(p, m)
    assert torch.allclose(divergence(student, teacher, beta), reference, atol=1e-9)


def test_the_rest_of_the_vocabulary_counts_as_one_token() -> None:
    student, teacher = distributions(0)
    kept = teacher.topk(3).indices
    probabilities = [torch.cat([x.exp().gather(-1, kept), torch.zeros(4, 1)], -1) for x in (student, teacher)]
    for row in probabilities:
        row[:, -1] = 1 - row.sum(-1)
    p, q = (torch.distributions.Categorical(probs=row) for row in probabilities)
    assert torch.allclose(divergence(student, teacher, top_k=3), torch.distributions.kl_divergence(p, q), atol=1e-9)
    assert torch.allclose(divergence(student, teacher, top_k=99), divergence(student, teacher), atol=1e-9)


@pytest.mark.parametrize("top_k", [None, 4])
@pytest.mark.parametrize("chunk", [2, 100])
def test_chunked_divergence_equals_the_plain_one_with_its_gradient(chunk: int, top_k: int | None) -> None:
    torch.manual_seed(0)
    heads = [torch.nn.Linear(5, 11) for _ in "ab"]
    hidden = [torch.randn(7, 5, requires_grad=True) for _ in "ab"]
    mine = chunked_divergence(hidden[0], heads[0], hidden[1], heads[1], beta=0.5, top_k=top_k, chunk=chunk)
    logprobs = [torch.log_softmax(head(h), -1) for head, h in zip(heads, hidden, strict=True)]
    plain = divergence(logprobs[0], logprobs[1].detach(), 0.5, top_k)
    assert torch.allclose(mine, plain, atol=1e-6)
    (a,), (b,) = (torch.autograd.grad(x.sum(), hidden[0], retain_graph=True) for x in (mine, plain))
    assert torch.allclose(a, b, atol=1e-6)
    assert list(torch.autograd.grad(mine.sum(), hidden[1], allow_unused=True)) == [None]
