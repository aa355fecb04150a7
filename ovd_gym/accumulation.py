"""Gradients of a batch, added up over micro-batches that fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ovd_gym.batch import Batch
from ovd_gym.errors import TrainingStopped
from ovd_gym.ranks import Ranks
from ovd_gym.sharing import Sharing

__all__ = ["Accumulated", "Loss", "Metrics", "accumulate", "out_of_memory", "token_budget"]

Metrics = dict[str, float]
Loss = Callable[[Batch, Tensor | None], tuple[Tensor, Tensor, Metrics]]
"""From (micro-batch, earlier log-probabilities) to (loss, log-probabilities [N], sums for metrics)."""


@dataclass(frozen=True)
class Accumulated:
    """What one epoch's backward passes leave beside the gradients."""

    pieces: Sequence[Batch]
    old: Sequence[Tensor | None]
    """Log-probabilities of each piece before the first epoch; None for those that another rank computes."""
    tallies: Sequence[Metrics]
    """Of each piece."""
    halved: Sequence[int]
    """Tokens of the pieces that were too large."""


def accumulate(
    pieces: Sequence[Batch], old: Sequence[Tensor | None], loss_of: Loss, discard: Callable[[], None], ranks: Ranks
) -> Accumulated:
    """Add the gradients of all ``pieces`` to the parameters; each rank computes its share of them.

    A piece that runs out of memory is split in two halves. The sum then begins anew, because a backward pass that broke
    off has left a part of its gradients behind; so the result is that of the halves, exactly. Where several ranks have
    to make the same passes, the error stands.

    Args:
        old: log-probabilities of each piece before the first epoch; None in that epoch.
        discard: forgets all gradients.

    Raises:
        TrainingStopped: a single row does not fit.
    """
    halved: list[int] = []
    while True:
        before, tallies = list(old), list[Metrics]()
        if _all_fit(pieces, before, tallies, loss_of, ranks):
            return Accumulated(pieces, before, ranks.gather(tallies, len(pieces)), halved)
        discard()
        torch.cuda.empty_cache()  # does nothing without a GPU
        halved.append(Sharing.of(pieces[len(tallies)]).tokens)
        pieces, old = _halved(pieces, old, len(tallies))


def _all_fit(
    pieces: Sequence[Batch], old: list[Tensor | None], tallies: list[Metrics], loss_of: Loss, ranks: Ranks
) -> bool:
    """Forward and backward of every piece, until all are done (True) or memory runs out (False); fills in ``old``."""
    try:
        for index, counts in ranks.share(range(len(pieces))):
            loss, current, tally = loss_of(pieces[index], old[index])
            (loss if counts else 0 * loss).backward()  # type: ignore[no-untyped-call]
            old[index] = current if old[index] is None else old[index]
            tallies.append(tally)
    except (RuntimeError, MemoryError) as error:
        if ranks.size > 1 or not out_of_memory(error):
            raise
        return False  # with this function ends the error, which holds on to the tensors of all its frames
    return True


def _halved(
    pieces: Sequence[Batch], old: Sequence[Tensor | None], index: int
) -> tuple[list[Batch], list[Tensor | None]]:
    """``pieces`` with the one at ``index`` in two."""
    piece, earlier = pieces[index], old[index]
    if len(piece) == 1:
        raise TrainingStopped(
            f"a single trajectory of {int(piece.lengths_B[0])} tokens does not fit into memory: set "
            "learner.gradient_checkpointing, lower learner.logit_chunk, or limit student.max_context"
        )
    middle = len(piece) // 2
    parts = [piece.rows(range(middle)), piece.rows(range(middle, len(piece)))]
    split: Sequence[Tensor | None] = [None, None]
    if earlier is not None:
        split = torch.split(earlier, [part.num_trained for part in parts])
    return [*pieces[:index], *parts, *pieces[index + 1 :]], [*old[:index], *split, *old[index + 1 :]]


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def token_budget(given: int | None, device: torch.device) -> int:
    """Tokens of a micro-batch: ``given``, or what keeps the device busy without holding much."""
    return given or (1024 if device.type == "cpu" else 8192)
