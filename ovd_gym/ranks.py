"""Processes that train one model together: who computes what, and how the weights lie.

Every rank is handed the whole batch (ids are small) and takes each ``size``-th of its micro-batches. The weights, their
gradients and the optimiser's state lie in shards (FSDP2, ``torch.distributed.fsdp.fully_shard``): layer by layer,
weights are gathered when they are needed, and gradients are added up over all ranks and scattered. Since a loss counts
in sizes of the whole batch, the sum is the gradient that one process would have computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ovd_gym.llm.decoder import Decoder

__all__ = ["Ranks", "dealt", "whole"]

T = TypeVar("T")


class Ranks:
    """This process among those that train together; one alone is the group of one, and computes everything.

    Args:
        group: a process group whose ranks all live in the memory of the CPU (gloo), or None for a process alone; the
            default process group then carries weights and gradients.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = dist.get_rank(group) if group else 0
        self.size = dist.get_world_size(group) if group else 1

    def share(self, items: Sequence[T]) -> list[tuple[T, bool]]:
        """This rank's part of ``items``, and whether it counts.

        All ranks get equally many, so that they gather and scatter in step: where the last round does not go round,
        an item of another rank stands in and does not count.
        """
        rounds = range(0, len(items), self.size)
        picked = [(items[start + self.rank], True) for start in rounds if start + self.rank < len(items)]
        return picked + [(items[start], False) for start in rounds if start + self.rank >= len(items)]

    def gather(self, mine: Sequence[T], total: int) -> list[T]:
        """Everybody's results for what :meth:`share` dealt out, in the order of the ``total`` items."""
        return [item for dealt_round in zip(*self._everybody(mine), strict=True) for item in dealt_round][:total]

    def all(self, flag: bool) -> bool:
        """Whether ``flag`` is true on every rank."""
        return all(self._everybody(flag))

    def shard(self, decoders: Sequence[Decoder], *modules: nn.Module) -> Callable[..., Any]:
        """Shard the models of ``decoders`` and ``modules`` in place; alone, leave them whole.

        Returns:
            What calls a function with arguments: in such a call alone the weights can be computed with.
        """
        if self._group is None:
            return lambda compute, *args: compute(*args)
        mesh = init_device_mesh(decoders[0].device.type, (self.size,))
        root = _Root([*(decoder.model for decoder in decoders), *modules])
        for decoder in decoders:
            decoder.agrees = self.all
            for layer in decoder.layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(root, mesh=mesh, reshard_after_forward=False)
        for module in root.modules():
            if isinstance(module, FSDPModule):  # gradients are added up: a loss is a share of the whole batch's
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)
        return root

    def _everybody(self, mine: T) -> list[T]:
        """What every rank holds, by rank."""
        if self._group is None:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine, group=self._group)
        return found


class _Root(nn.Module):
    """Everything an update computes with. FSDP2 acts when a module is called, but the learner calls a model's parts one
    by one; so the whole computation is the call."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, compute: Callable[..., Any], *args: Any) -> Any:
        """``compute(*args)``."""
        return compute(*args)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may lie in shards; if it does, all ranks have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def dealt(full: Tensor | None, like: Tensor) -> Tensor:
    """``full``, in shards if ``like`` lies in shards; all ranks have to ask, and only rank 0 needs to have it."""
    if not isinstance(like, DTensor):
        assert full is not None
        return full
    source = torch.empty(like.shape, dtype=like.dtype) if full is None else full
    return distribute_tensor(source.to(like.device, like.dtype), like.device_mesh, like.placements)
