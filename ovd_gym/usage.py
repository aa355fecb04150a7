"""What a run takes of its machine."""

from __future__ import annotations

import resource
import sys

import torch

__all__ = ["peak_memory_gib"]


def peak_memory_gib(device: torch.device) -> float:
    """Most memory ever held, in GiB: by tensors on a GPU, by this whole process where the model is on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20  # bytes on macOS, KiB elsewhere
