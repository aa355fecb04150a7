"""The worker processes of the math world: computer algebra on untrusted text, and sandboxes after a fork."""

from __future__ import annotations

import os
from typing import Any

from ovd_gym.envs.processes import START_TIMEOUT_S, Worker, WorkerPool, WorkFailed, WorkTimeout, pack, unpack

__all__ = [
    "ALGEBRA",
    "SANDBOX",
    "START_TIMEOUT_S",
    "WorkFailed",
    "WorkTimeout",
    "Worker",
    "WorkerPool",
    "call",
    "pack",
    "unpack",
    "warm",
]

ALGEBRA = "ovd_gym.envs.math_qa.worker:algebra"
SANDBOX = "ovd_gym.envs.math_qa.worker:sandbox"

_POOL = WorkerPool(ALGEBRA, size=max(2, (os.cpu_count() or 2) // 2))


def call(function: str, *arguments: Any, timeout_s: float) -> Any:
    """Run ``function`` of the algebra worker in the process-wide pool; see :meth:`WorkerPool.call`."""
    return _POOL.call(function, *arguments, timeout_s=timeout_s)


def warm() -> None:
    """Have an algebra worker ready; see :meth:`WorkerPool.warm`."""
    _POOL.warm()
