"""The Ray cluster of a run: one that is there already, or one of this machine's for the run alone."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from ovd_gym.errors import ConfigError
from ovd_gym.placement import ScaleConfig

__all__ = ["connected"]

_PATIENCE_S = 10.0
_MIN_STORE = 100_000_000
"""Bytes; Ray wants some room to work in."""


@contextmanager
def connected(config: ScaleConfig, weights: int) -> Iterator[None]:
    """Within it Ray is there.

    A process that has called ``ray.init`` itself goes on with what it has; otherwise the cluster is ``config.address``
    or, without one, processes on this machine that end with the block.

    Args:
        weights: bytes of one version of the student's trained weights; the store has to hold a few.

    Raises:
        ConfigError: nothing answers at ``config.address``, or Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    if config.address is not None:
        _knock(config.address)
    # As Ray does by default; said aloud, it does not warn about it. Without a GPU of its own a worker sees none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        ray.init(log_to_driver=False, configure_logging=False, **_where(config, weights))
    except Exception as error:  # Ray raises bare ones, too
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if config.address is None:
            raise ConfigError(f"Ray does not start on this machine: {why}") from error
        raise _no_cluster(config.address, why) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise ConfigError if nothing listens at a plain ``host:port``: Ray would go on asking for minutes."""
    host, _, port = address.rpartition(":")
    if "/" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from None


def _no_cluster(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster at scale.address {address!r} ({why}): start one with `ray start --head`, or remove the key "
        "for one on this machine"
    )


def _where(config: ScaleConfig, weights: int) -> dict[str, Any]:
    if config.address is not None:
        return {"address": config.address}
    cpus = config.workers * config.cpus_per_worker + config.teachers * config.cpus_per_teacher
    return {
        "address": "local",
        "num_cpus": math.ceil(cpus),
        "object_store_memory": max(_MIN_STORE, 4 * weights),
        "include_dashboard": False,
    }
