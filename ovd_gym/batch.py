"""Trajectories and credits to tensors. Pure.

Letters: B rows, T tokens, N trained tokens. A row is one trajectory, right-padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ovd_gym.credit import Credit
from ovd_gym.errors import TrainingStopped
from ovd_gym.records import Trajectory

__all__ = ["Batch", "pack"]


@dataclass(frozen=True)
class Batch:
    """Tensors of one update; everything per token is aligned with ``token_ids_BT``."""

    token_ids_BT: Tensor
    """Exactly as sampled and fed; padding is 0 and never trained."""
    lengths_B: Tensor
    mask_BT: Tensor
    """True on the tokens of steps, sampled or demonstrated: the only ones in the loss."""
    advantages_BT: Tensor
    """The advantage of a token's step; 0 where not sampled."""
    rollout_logprobs_BT: Tensor
    """Nats, from the engine that sampled; 0 where not sampled."""
    taught_BT: Tensor
    """True on a demonstrator's tokens: trained, but not sampled by the policy."""
    correct_B: Tensor
    """True where the environment's reward is 1."""
    rewards_BT: Tensor
    """What a step earned, at its last token; 0 elsewhere, and everywhere unless ``credit.estimator`` is ``gae``."""
    values_BT: Tensor
    """The value head's estimate before the update, at the token it is made for; 0 until the learner has made it."""
    returns_BT: Tensor
    """What the value head is to predict there; likewise."""

    def __len__(self) -> int:
        return len(self.token_ids_BT)

    @property
    def num_trained(self) -> int:
        """N, the number of tokens in the loss."""
        return int(self.mask_BT.sum())

    def to(self, device: torch.device) -> Batch:
        """A copy on ``device`` (this one, if it is there already)."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))

    def rows(self, index: Sequence[int] | Tensor) -> Batch:
        """The rows ``index``, cut to the longest of them."""
        picked = torch.as_tensor(index, dtype=torch.long, device=self.lengths_B.device)
        width = int(self.lengths_B[picked].max())
        parts = (getattr(self, field.name)[picked] for field in fields(self))
        return Batch(*(part[:, :width] if part.dim() > 1 else part for part in parts))

    def informative(self) -> Batch | None:
        """The rows whose advantages are not all zero; None if there is no such row."""
        index = self.advantages_BT.ne(0).any(dim=1).nonzero()[:, 0]
        return self.rows(index) if len(index) else None


def pack(trajectories: Sequence[Trajectory], credits: Sequence[Credit]) -> Batch:
    """One row per credit whose trajectory holds sampled tokens, in order.

    Raises :class:`TrainingStopped` when no token was sampled at all, and when tokens were not sampled at temperature 1
    from the whole vocabulary: their log-probabilities would not be those of the policy that drew them.
    """
    by_id = {trajectory.id: trajectory for trajectory in trajectories}
    credits = [credit for credit in credits if by_id[credit.trajectory_id].steps]
    rows = [by_id[credit.trajectory_id] for credit in credits]
    for row in rows:
        if (row.temperature, row.top_p) != (1.0, 1.0):
            drawn = f"temperature {row.temperature:g} and top_p {row.top_p:g}"
            raise TrainingStopped(f"{row.id} was sampled at {drawn}: training assumes 1 and 1")
    if not rows:
        raise TrainingStopped(f"no sampled token in {len(trajectories)} trajectories: there is nothing to train on")
    width = max(len(row.token_ids) for row in rows)
    token_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    advantages = torch.zeros(len(rows), width)
    logprobs = torch.zeros(len(rows), width)
    taught = torch.zeros(len(rows), width, dtype=torch.bool)
    rewards = torch.zeros(len(rows), width)
    for i, (row, credit) in enumerate(zip(rows, credits, strict=True)):
        length = len(row.token_ids)
        token_ids[i, :length] = torch.tensor(row.token_ids)
        mask[i, :length] = torch.tensor(row.mask)
        logprobs[i, :length] = torch.tensor(row.logprobs)
        earned = credit.rewards or (0.0,) * len(row.steps)
        for step, advantage, reward in zip(row.steps, credit.advantages, earned, strict=True):
            advantages[i, step.start : step.end] = advantage
            rewards[i, step.end - 1] = reward
            taught[i, step.start : step.end] = step.source == "teacher"
    lengths = torch.tensor([len(row.token_ids) for row in rows])
    correct = torch.tensor([row.reward == 1.0 for row in rows])
    values, returns = torch.zeros_like(rewards), torch.zeros_like(rewards)
    return Batch(token_ids, lengths, mask, advantages, logprobs, taught, correct, rewards, values, returns)
