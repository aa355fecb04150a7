"""The learner: a model, an optimiser and ``update(batch) -> metrics``.

Objective (letters as in :mod:`ovd_gym.losses`; N counts every sampled token of the batch)::

    L = (1 / N) sum_t [ -w_t min(rho_t A_t, clip(rho_t, 1 - low, 1 + high) A_t) + beta k3(pi || ref)_t ]

Rows without any advantage have no policy gradient: with ``beta = 0`` they are left out of the forward pass, but
not of ``N``, so leaving them out changes nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from ovd_gym.batch import Batch, micro_batches
from ovd_gym.config import LearnerConfig
from ovd_gym.errors import TrainingStopped
from ovd_gym.llm.decoder import Decoder
from ovd_gym.losses import chunked_logprobs, clipped_policy_loss, k3, mismatch_weight

__all__ = ["Learner", "learning_rate", "trainable_model"]

Metrics = dict[str, float]
Loss = Callable[[Batch, Tensor | None, int], tuple[Tensor, Tensor, Metrics]]
"""From (micro-batch, earlier log-probabilities, N) to (loss, log-probabilities, sums for the metrics)."""


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
    """

    def __init__(self, decoder: Decoder, config: LearnerConfig, total_steps: int) -> None:
        self.decoder = decoder
        self.config = config
        self.total_steps = total_steps
        self.parameters = {n: p for n, p in decoder.model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        whole = config.kl_weight > 0 and not hasattr(decoder.model, "disable_adapter")
        self._frozen = Decoder(deepcopy(decoder.model).requires_grad_(False)) if whole else None

    def update(self, batch: Batch, step: int) -> Metrics:
        """Train on ``batch``; ``step`` counts updates from 0 and sets the learning rate.

        Returns mean metrics over the trained tokens: ``loss, trained_entropy, clip_fraction, logprob_gap`` (largest
        |train - rollout|), ``weight_mean, weight_max, grad_norm, learning_rate, trained_tokens``, and ``kl`` to the
        reference when ``kl_weight > 0``. A batch without any advantage changes nothing and says so by
        ``trained_tokens = 0``.

        Raises:
            TrainingStopped: when a gradient is not finite; the weights are as before the call's failing step.
        """
        used = batch if self.config.kl_weight > 0 else batch.informative()
        if used is None:
            return {"trained_tokens": 0.0, "learning_rate": learning_rate(self.config, step, self.total_steps)}
        return self._train(used, step, batch.num_trained, self._policy_loss)

    def imitate(self, batch: Batch, step: int) -> Metrics:
        """Supervised fine-tuning: lower the mean negative log-likelihood of the batch's trained tokens.

        Takes demonstrations; advantages and rollout log-probabilities are not read. Metrics are ``nll`` (nats per
        token), ``loss, trained_entropy, grad_norm, learning_rate, trained_tokens``. Raises as :meth:`update`.
        """
        return self._train(batch, step, batch.num_trained, self._likelihood_loss)

    def _train(self, batch: Batch, step: int, total: int, loss_of: Loss) -> Metrics:
        rate = learning_rate(self.config, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pieces = list(micro_batches(batch.to(self.decoder.device), self.config.micro_batch_tokens))
        old: list[Tensor] = []
        tallies: list[Metrics] = []
        for epoch in range(self.config.epochs):
            for i, piece in enumerate(pieces):
                loss, logprobs_N, tally = loss_of(piece, old[i] if epoch else None, total)
                loss.backward()  # type: ignore[no-untyped-call]
                tallies.append(tally)
                if not epoch:
                    old.append(logprobs_N)
            grad_norm = self._step()
        return {
            **_merge(tallies, self.config.epochs),
            "grad_norm": grad_norm,
            "learning_rate": rate,
            "trained_tokens": float(batch.num_trained),
        }

    def logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] of the sampled tokens (row after row) and entropies [N] before each."""
        hidden_ND, targets_N = _predicting(self.decoder, batch)
        return chunked_logprobs(hidden_ND, targets_N, self.decoder.head, self.config.logit_chunk)

    def _policy_loss(self, batch: Batch, old_N: Tensor | None, total: int) -> tuple[Tensor, Tensor, Metrics]:
        config, mask = self.config, batch.mask_BT
        advantages_N, rollout_N = batch.advantages_BT[mask], batch.rollout_logprobs_BT[mask]
        logprobs_N, entropy_N = self.logprobs(batch)
        current_N = logprobs_N.detach()
        weights_N = mismatch_weight(current_N if old_N is None else old_N, rollout_N)
        loss_N, clipped_N = clipped_policy_loss(
            logprobs_N,
            current_N if old_N is None else old_N,
            advantages_N,
            weights_N,
            config.clip_low,
            config.clip_high,
        )
        tally = {
            "tokens": float(len(current_N)),
            "trained_entropy": float(entropy_N.sum()),
            "clip_fraction": float(clipped_N.sum()),
            "weight_mean": float(weights_N.sum()),
            "weight_max": float(weights_N.max()),
            "logprob_gap": float((current_N - rollout_N).abs().max()) if old_N is None else 0.0,
        }
        if config.kl_weight > 0:
            with self._reference() as reference, torch.no_grad():
                reference_N, _ = chunked_logprobs(*_predicting(reference, batch), reference.head, config.logit_chunk)
            kl_N = k3(logprobs_N, reference_N)
            loss_N = loss_N + config.kl_weight * kl_N
            tally["kl"] = float(kl_N.detach().sum())
        loss = loss_N.sum() / total
        return loss, current_N, {**tally, "loss": float(loss.detach())}

    def _likelihood_loss(self, batch: Batch, old_N: Tensor | None, total: int) -> tuple[Tensor, Tensor, Metrics]:
        logprobs_N, entropy_N = self.logprobs(batch)
        loss = -logprobs_N.sum() / total
        tally = {
            "tokens": float(len(logprobs_N)),
            "nll": -float(logprobs_N.detach().sum()),
            "trained_entropy": float(entropy_N.sum()),
            "loss": float(loss.detach()),
        }
        return loss, logprobs_N.detach(), tally

    @contextmanager
    def _reference(self) -> Iterator[Decoder]:
        if self._frozen is not None:
            yield self._frozen
        else:
            model: Any = self.decoder.model
            with model.disable_adapter():
                yield self.decoder

    def _step(self) -> float:
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.config.max_grad_norm))
        if not math.isfinite(norm):
            self.optimizer.zero_grad()
            raise TrainingStopped(f"the gradient norm is {norm}: lower learner.learning_rate or raise kl_weight")
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


def _predicting(decoder: Decoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D] that predict the sampled tokens, and those tokens [N].

    The prefix all rows share is computed once; its keys and values are shared by the rows, gradient included.
    """
    ids_BT, mask_BT = batch.token_ids_BT, batch.mask_BT
    first = int(mask_BT.int().argmax(dim=1).min())
    differs_T = (ids_BT[:, :first] != ids_BT[:1, :first]).any(dim=0)
    shared = int(differs_T.int().argmax()) if bool(differs_T.any()) else first
    shared = min(shared, first - 1)  # the token that predicts the first sampled one stays with its row
    if shared < 1 or len(batch) == 1:
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


def _merge(tallies: list[Metrics], epochs: int) -> Metrics:
    """Token means of the sums, maxima of the maxima, and the mean loss of an epoch."""
    tokens = sum(tally["tokens"] for tally in tallies)
    merged: Metrics = {"loss": sum(tally["loss"] for tally in tallies) / epochs}
    for name in tallies[0].keys() - {"tokens", "loss"}:
        values = [tally[name] for tally in tallies]
        merged[name] = max(values) if name in ("weight_max", "logprob_gap") else sum(values) / tokens
    return merged
