"""Environments by name: what is wrong with a name or an option is said in one line."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest

from ovd_gym.errors import ConfigError
from ovd_gym.worlds import make_env


def broken(size: int) -> None:
    raise TypeError("a number is missing")


gym.register("Broken-v0", broken)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ovd_gym/Math-v0", {"max_turn": 3}, "unknown option of ovd_gym/Math-v0: 'max_turn': did you mean 'max_turns'"),
        ("ovd_gym/Math-v0", {"task_option": {}}, "did you mean 'task_options'"),
        ("ovd_gym/Search-v0", {"max_turn": 3}, "did you mean 'max_turns'"),
        ("Broken-v0", {"size": 3}, "environment 'Broken-v0' cannot be made: TypeError: a number is missing"),
        ("ovd_gym:ovd_gym/Math-v0", {"max_turn": 3}, "did you mean 'max_turns'"),
        ("ovd_gym/Maths-v0", {}, "unknown environment 'ovd_gym/Maths-v0'"),
    ],
)
def test_what_is_wrong_is_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        make_env(name, options)
    assert "\n" not in str(raised.value)
