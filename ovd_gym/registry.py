"""The environments by name, for ``gymnasium.make``. Registering imports none of them."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym

__all__ = ["ENVIRONMENTS", "register_envs"]

ENVIRONMENTS: Mapping[str, str] = {
    "ovd_gym/Math-v0": "ovd_gym.envs.math_qa.env:MathEnv",
    "ovd_gym/Search-v0": "ovd_gym.envs.web_search.env:SearchEnv",
}
"""Gymnasium id to ``module:class``."""


def register_envs() -> None:
    """Register all of :data:`ENVIRONMENTS`; those that are registered already stay as they are."""
    for name, entry_point in ENVIRONMENTS.items():
        if name not in gym.registry:
            gym.register(id=name, entry_point=entry_point)
