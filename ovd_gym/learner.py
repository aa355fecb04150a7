"""The learner: a model, an optimiser and ``update(batch) -> metrics``.

Objective (letters as in :mod:`ovd_gym.losses`; a_t is the token's share in the aggregation, 1 / N by default)::

    L = sum_t a_t [ -w_t min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t) + beta kl_t - eta H_t + mu drop_t ]

A demonstrator's tokens have no w, KL, entropy or drop, and a policy term of their own (``teacher_tokens``):
``as-student`` the one above (biased: the policy did not sample them), ``shaped`` ``-f(pi_t) A_t``, ``nll``
``-0.1 log pi_t``.

Given a value head (PPO, :mod:`ovd_gym.value_head`), A_t is estimated from the rewards before the first epoch, and
the head's own loss, the mean over all trained tokens, is added.

Rows that have no gradient are left out of the forward pass, but not of N, so leaving them out changes nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from ovd_gym.accumulation import Metrics, accumulate, token_budget
from ovd_gym.batch import Batch
from ovd_gym.config import DistillationConfig, LearnerConfig, ValueConfig
from ovd_gym.errors import TrainingStopped
from ovd_gym.forward import checkpointing, predicting
from ovd_gym.llm.decoder import Decoder
from ovd_gym.losses import (
    chunked_divergence,
    chunked_logprobs,
    clipped_policy_loss,
    kl_estimate,
    likelihood_drop,
    mismatch_weight,
    sequence_mean,
    shaped_ratio,
    token_weights,
)
from ovd_gym.ranks import Ranks, dealt, whole
from ovd_gym.sharing import micro_batches
from ovd_gym.value_head import ValueHead, estimate

__all__ = ["Learner", "Metrics", "learning_rate", "trainable_model"]

_NLL_WEIGHT = 0.1


class Size(NamedTuple):
    """Of a whole batch, of which a micro-batch is a part."""

    tokens: int
    rows: int

    @classmethod
    def of(cls, batch: Batch) -> Size:
        """The size of ``batch``."""
        return cls(batch.num_trained, len(batch))


Loss = Callable[[Batch, Tensor | None, Size], tuple[Tensor, Tensor, Metrics]]
"""From (micro-batch, earlier log-probabilities, size of the batch) to (loss, log-probabilities, sums for metrics)."""


def trainable_model(model: nn.Module, config: LearnerConfig, seed: int) -> nn.Module:
    """``model`` ready for training: with LoRA adapters (initialised from ``seed``), or all of its weights."""
    if config.lora_rank == 0:
        return model.requires_grad_(True)
    lora = LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules="all-linear")
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft's own
        torch.manual_seed(seed)
        return get_peft_model(model, lora)


def learning_rate(config: LearnerConfig, step: int, total_steps: int) -> float:
    """The learning rate of update ``step`` (from 0): linear warm-up, then the schedule."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    left = 1 - (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    factor = {"constant": 1.0, "linear": left, "cosine": 0.5 - 0.5 * math.cos(math.pi * left)}
    return config.learning_rate * factor[config.schedule]


class Learner:
    """Trains ``decoder.model`` in place.

    The model stays in evaluation mode (no dropout): its log-probabilities are those it samples with.

    Args:
        value: estimate advantages with a value head; None takes those of the batch.
        ranks: the processes that train together; each makes every call, with the same arguments.
    """

    def __init__(
        self,
        decoder: Decoder,
        config: LearnerConfig,
        total_steps: int,
        value: ValueConfig | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.decoder = decoder
        self.config = config
        self.total_steps = total_steps
        self._budget = token_budget(config.micro_batch_tokens, decoder.device)
        self.value = ValueHead(decoder.config.hidden_size, value, decoder.device) if value else None
        copied = config.kl_weight > 0 and not hasattr(decoder.model, "disable_adapter")
        self._frozen = Decoder(deepcopy(decoder.model).requires_grad_(False)) if copied else None
        self._ranks = ranks or Ranks()
        models = [decoder, *([self._frozen] if self._frozen else [])]
        self._within = self._ranks.shard(models, *([self.value] if self.value is not None else []))
        self.parameters: dict[str, nn.Parameter] = decoder.trained
        groups = [{"params": list(self.parameters.values()), "scale": 1.0}]
        if self.value is not None:
            scale = self.value.config.learning_rate / config.learning_rate
            groups.append({"params": list(self.value.parameters()), "scale": scale})
            self.parameters |= {f"value.{n}": p for n, p in self.value.named_parameters()}
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)

    def update(self, batch: Batch, step: int) -> Metrics:
        """Train on ``batch``; ``step`` counts updates from 0 and sets the learning rate.

        Returns mean metrics over the trained tokens: ``loss, trained_entropy, clip_fraction, logprob_gap`` (largest
        |train - rollout|), ``weight_mean, weight_max, grad_norm, learning_rate, trained_tokens``, and ``kl`` to the
        reference when ``kl_weight > 0``. With a value head also ``value_loss`` and ``explained_variance`` (of the
        values before the update; absent when all returns are alike). Without one, a batch that has no advantage changes
        nothing and says so by ``trained_tokens = 0``.

        Raises:
            TrainingStopped: when a gradient is not finite; the weights are as before the call's failing step.
        """
        if self.value is not None:
            pieces, explained = self._estimated(self._pieces(batch), self.value)
            return self._train(pieces, step, Size.of(batch), self._policy_loss) | explained
        used = batch if self._trains_all(batch) else batch.informative()
        if used is None:
            return {"trained_tokens": 0.0, "learning_rate": learning_rate(self.config, step, self.total_steps)}
        return self._train(self._pieces(used), step, Size.of(batch), self._policy_loss)

    def _trains_all(self, batch: Batch) -> bool:
        """Whether rows without an advantage have a gradient, too."""
        config = self.config
        taught = config.teacher_tokens == "nll" and bool(batch.taught_BT.any())
        return taught or max(config.kl_weight, config.entropy_weight, config.safeguard_weight) > 0

    def imitate(self, batch: Batch, step: int) -> Metrics:
        """Supervised fine-tuning: lower the mean negative log-likelihood of the batch's trained tokens.

        Takes demonstrations; advantages and rollout log-probabilities are not read. Metrics are ``nll`` (nats per
        token), ``loss, trained_entropy, grad_norm, learning_rate, trained_tokens``. Raises as :meth:`update`.
        """
        return self._train(self._pieces(batch), step, Size.of(batch), self._likelihood_loss)

    def distill(self, batch: Batch, step: int, teacher: Decoder, config: DistillationConfig) -> Metrics:
        """The comparator ``token-opd``: bring the student's next-token distributions to ``teacher``'s.

        Reads no advantage and no score. ``variant: sampled`` is a policy gradient whose advantage is
        ``log pi_T - log pi_S`` of each sampled token, weighted by w as above; the others compare distributions wherever
        a token was sampled. Metrics are ``divergence`` (nats per token), ``loss, trained_entropy, grad_norm,
        learning_rate, trained_tokens``. Raises as :meth:`update`.
        """
        loss = partial(self._distillation_loss, teacher, config)
        return self._train(self._pieces(batch), step, Size.of(batch), loss)

    def weights(self) -> dict[str, Tensor]:
        """The student's trained weights by name. Unless they lie in shards: the very tensors that updates change."""
        return {name: whole(p) for name, p in self.decoder.trained.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Trained weights by name, and the optimiser's tensors as ``KIND/NAME``; likewise."""
        moments = {
            f"{kind}/{name}": whole(value)
            for name, p in self.parameters.items()
            for kind, value in self.optimizer.state[p].items()
        }
        return {name: whole(p.detach()) for name, p in self.parameters.items()}, moments

    @torch.no_grad()
    def load_state(self, weights: Mapping[str, Tensor | None], moments: Mapping[str, Tensor | None]) -> None:
        """Take over what :meth:`state` gave; ranks other than the first may be given names alone."""
        for name, p in self.parameters.items():
            p.copy_(dealt(weights[name], p))
            mine = {key.partition("/")[0]: value for key, value in moments.items() if key.partition("/")[2] == name}
            # AdamW counts its steps on the CPU; the moments live with their parameter.
            self.optimizer.state[p] = {
                kind: value.clone() if kind == "step" and value is not None else dealt(value, p).to(p.device)
                for kind, value in mine.items()
            }

    def _pieces(self, batch: Batch) -> list[Batch]:
        return list(micro_batches(batch.to(self.decoder.device), self._budget))

    @torch.no_grad()
    def _estimated(self, pieces: Sequence[Batch], head: ValueHead) -> tuple[list[Batch], Metrics]:
        """``pieces`` with advantages, values and returns, and metrics of the values."""
        mine = [self._within(self._forecast, piece, head) for piece, _ in self._ranks.share(pieces)]
        found = self._ranks.gather(mine, len(pieces))
        device = self.decoder.device
        values, rewards = ([column.to(device) for column in columns] for columns in zip(*found, strict=True))
        return estimate(pieces, values, rewards, head.config)

    def _forecast(self, piece: Batch, head: ValueHead) -> tuple[Tensor, Tensor]:
        """[N] values and rewards of the trained tokens."""
        hidden_ND, targets_N = predicting(self.decoder, piece)
        rewards_N = piece.rewards_BT[piece.mask_BT]
        if self.config.kl_in == "reward":
            rewards_N = rewards_N - self.config.kl_weight * self._kl(piece, self._logprobs(hidden_ND, targets_N)[0])
        return head(hidden_ND), rewards_N

    def _train(self, pieces: Sequence[Batch], step: int, size: Size, loss_of: Loss) -> Metrics:
        rate = learning_rate(self.config, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        old: Sequence[Tensor | None] = [None] * len(pieces)
        tallies: list[Metrics] = []
        halved: list[int] = []

        def compute(piece: Batch, old_N: Tensor | None) -> tuple[Tensor, Tensor, Metrics]:
            found: tuple[Tensor, Tensor, Metrics] = self._within(loss_of, piece, old_N, size)
            return found

        for _ in range(self.config.epochs):
            with checkpointing(self.decoder) if self.config.gradient_checkpointing else nullcontext():
                done = accumulate(pieces, old, compute, self.optimizer.zero_grad, self._ranks)
            grad_norm = self._step()
            pieces, old = done.pieces, done.old
            tallies += done.tallies
            halved += done.halved
        self._budget = min([self._budget, *(max(1, tokens // 2) for tokens in halved)])  # do not try that again
        return {
            **_merge(tallies, self.config.epochs),
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "trained_tokens": float(sum(piece.num_trained for piece in pieces)),
            "out_of_memory": float(len(halved)),
        }

    def logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] of the trained tokens (row after row) and entropies [N] before each."""
        return self._logprobs(*predicting(self.decoder, batch))

    def _logprobs(self, hidden_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        entropy_grad = self.config.entropy_weight > 0
        return chunked_logprobs(
            hidden_ND, targets_N, self.decoder.head, self.config.logit_chunk, entropy_grad=entropy_grad
        )

    def _policy_loss(self, batch: Batch, old_N: Tensor | None, size: Size) -> tuple[Tensor, Tensor, Metrics]:
        config, mask = self.config, batch.mask_BT
        hidden_ND, targets_N = predicting(self.decoder, batch)
        logprobs_N, entropy_N = self._logprobs(hidden_ND, targets_N)
        current_N = logprobs_N.detach()
        anchor_N = current_N if old_N is None else old_N
        own_N = ~batch.taught_BT[mask]
        rows_N = mask.nonzero()[:, 0]
        rollout_N = torch.where(own_N, batch.rollout_logprobs_BT[mask], anchor_N)  # hence w = 1 where it was taught
        weights_N = mismatch_weight(anchor_N, rollout_N)
        tally = {
            "tokens": float(own_N.sum()),
            "trained_entropy": float(entropy_N.detach()[own_N].sum()),
            "weight_mean": float(weights_N[own_N].sum()),
            "weight_max": float(weights_N.max()),
            "logprob_gap": float((current_N - rollout_N).abs().max()) if old_N is None else 0.0,
        }
        advantages_N = batch.advantages_BT[mask]
        kl_N = self._kl(batch, logprobs_N) if config.kl_weight > 0 else torch.zeros_like(logprobs_N)
        if config.kl_weight > 0:
            tally["kl"] = float(kl_N.detach()[own_N].sum())
        if config.kl_in == "reward" and self.value is None:
            advantages_N = advantages_N - config.kl_weight * kl_N.detach() * own_N
        log_ratio_N = logprobs_N - anchor_N
        ratio_N = sequence_mean(log_ratio_N, rows_N) if config.ratio == "sequence" else log_ratio_N
        loss_N, clipped_N = clipped_policy_loss(ratio_N, advantages_N, weights_N, config.clip_low, config.clip_high)
        tally["clip_fraction"] = float(clipped_N[own_N].sum())
        if config.teacher_tokens != "as-student":
            loss_N = torch.where(own_N, loss_N, self._taught_loss(logprobs_N, advantages_N))
        if config.kl_in == "loss":
            loss_N = loss_N + config.kl_weight * kl_N * own_N
        loss_N = loss_N - config.entropy_weight * entropy_N * own_N
        if config.safeguard_weight > 0:
            drop_N = likelihood_drop(log_ratio_N * own_N, rows_N, batch.correct_B)
            loss_N = loss_N + config.safeguard_weight * drop_N
            tally["likelihood_drop"] = float(drop_N.detach().sum())
        lengths_N = mask.sum(dim=1)[rows_N]
        loss = (loss_N * token_weights(lengths_N, config.aggregation, *size, config.fixed_length or 1)).sum()
        if self.value is not None:
            value_loss = self.value.loss(hidden_ND, batch)
            loss = loss + self.value.config.loss_weight * value_loss / size.tokens
            tally["value_loss"] = float(value_loss.detach())
        return loss, current_N, {**tally, "loss": float(loss.detach())}

    def _taught_loss(self, logprobs_N: Tensor, advantages_N: Tensor) -> Tensor:
        """What a demonstrator's tokens are trained with."""
        if self.config.teacher_tokens == "nll":
            return -_NLL_WEIGHT * logprobs_N
        return -shaped_ratio(logprobs_N) * advantages_N

    def _kl(self, batch: Batch, logprobs_N: Tensor) -> Tensor:
        """[N] estimates of the KL to the reference."""
        with self._reference() as reference, torch.no_grad():
            hidden_ND, targets_N = predicting(reference, batch)
            reference_N, _ = chunked_logprobs(hidden_ND, targets_N, reference.head, self.config.logit_chunk)
        return kl_estimate(logprobs_N, reference_N, self.config.kl_estimator)

    def _likelihood_loss(self, batch: Batch, old_N: Tensor | None, size: Size) -> tuple[Tensor, Tensor, Metrics]:
        logprobs_N, entropy_N = self.logprobs(batch)
        loss = -logprobs_N.sum() / size.tokens
        tally = {
            "tokens": float(len(logprobs_N)),
            "nll": -float(logprobs_N.detach().sum()),
            "trained_entropy": float(entropy_N.sum()),
            "loss": float(loss.detach()),
        }
        return loss, logprobs_N.detach(), tally

    def _distillation_loss(
        self, teacher: Decoder, config: DistillationConfig, batch: Batch, old_N: Tensor | None, size: Size
    ) -> tuple[Tensor, Tensor, Metrics]:
        chunk = self.config.logit_chunk
        student_ND, targets_N = predicting(self.decoder, batch)
        with torch.no_grad():
            teacher_ND, _ = predicting(teacher, batch)
        tally = {"tokens": float(len(targets_N))}
        if config.variant == "sampled":
            logprobs_N, entropy_N = chunked_logprobs(student_ND, targets_N, self.decoder.head, chunk)
            with torch.no_grad():
                taught_N, _ = chunked_logprobs(teacher_ND, targets_N, teacher.head, chunk)
            gap_N = logprobs_N.detach() - taught_N
            weights_N = mismatch_weight(logprobs_N, batch.rollout_logprobs_BT[batch.mask_BT])
            loss_N, seen_N = weights_N * logprobs_N * gap_N, gap_N  # the gradient of REINFORCE with advantage -gap
            tally["trained_entropy"] = float(entropy_N.sum())
        else:
            seen_N = loss_N = chunked_divergence(
                student_ND,
                self.decoder.head,
                teacher_ND,
                teacher.head,
                beta=config.beta,
                top_k=config.top_k if config.variant == "top-k" else None,
                chunk=chunk,
            )
        loss = loss_N.sum() / size.tokens
        tally |= {"divergence": float(seen_N.detach().sum()), "loss": float(loss.detach())}
        return loss, loss_N.detach(), tally

    @contextmanager
    def _reference(self) -> Iterator[Decoder]:
        if self._frozen is not None:
            yield self._frozen
        else:
            model: Any = self.decoder.model
            with model.disable_adapter():
                yield self.decoder

    def _step(self) -> float:
        """One optimiser step; the student's gradient norm. It and a value head are clipped each by itself."""
        limit, groups = self.config.max_grad_norm, self.optimizer.param_groups
        norms = [float(whole(nn.utils.clip_grad_norm_(group["params"], limit))) for group in groups]
        if not math.isfinite(sum(norms)):
            self.optimizer.zero_grad()
            raise TrainingStopped(f"the gradient norm is {sum(norms)}: lower learner.learning_rate or raise kl_weight")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norms[0]


def _merge(tallies: list[Metrics], epochs: int) -> Metrics:
    """Token means of the sums, maxima of the maxima, and the mean loss of an epoch."""
    tokens = sum(tally["tokens"] for tally in tallies)
    merged: Metrics = {"loss": sum(tally["loss"] for tally in tallies) / epochs}
    for name in tallies[0].keys() - {"tokens", "loss"}:
        values = [tally[name] for tally in tallies]
        merged[name] = max(values) if name in ("weight_max", "logprob_gap") else sum(values) / max(1.0, tokens)
    return merged
