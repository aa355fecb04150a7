"""What a run takes of its machine."""

from __future__ import annotations

import ctypes
import resource
import sys

import torch

__all__ = ["give_memory_back", "peak_memory_gib"]

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)


def peak_memory_gib(device: torch.device) -> float:
    """Most memory ever held, in GiB: by tensors on a GPU, by this whole process where the model is on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes on macOS, KiB elsewhere


def give_memory_back() -> None:
    """Return memory that was freed to the system.

    glibc keeps pages that lie between pieces still in use: a key-value cache that is made and dropped with every
    rollout would leave more of them each time (malloc_trim(3)). Elsewhere this does nothing.
    """
    if _TRIM is not None:
        _TRIM(0)
