"""Endless tasks from reasoning-gym, limited to generators whose answer is one plain number.

Others are refused: their answers may be written in many ways (integrals, word lists, boards), so that only the
generator's own scorer could grade them, and some of those run ``eval`` on the student's text.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, overload

from ovd_gym.arithmetic import evaluate
from ovd_gym.errors import ConfigError, unknown
from ovd_gym.records import Task

__all__ = ["GENERATORS", "reasoning_gym_tasks"]

GENERATORS = (
    "aiw",
    "basic_arithmetic",
    "chain_sum",
    "count_bits",
    "count_primes",
    "decimal_arithmetic",
    "decimal_chain_sum",
    "dice",
    "gcd",
    "gsm_symbolic",
    "largest_island",
    "lcm",
    "leg_counting",
    "letter_counting",
    "products",
    "rectangle_count",
    "simple_equations",
    "simple_geometry",
)
"""Left out although numeric: powers and probabilities, whose tiny values rounding makes equal; number sequences, which
have more than one continuation; fractions and factorisations to simplify, where the question equals the answer."""


_DIVIDE = frozenset({"basic_arithmetic", "decimal_arithmetic"})
"""Generators whose answers may have endless decimals."""
_ROUNDING = 1e-6
"""Tolerance for their answers; all others are exact."""


def reasoning_gym_tasks(name: str = "chain_sum", size: int = 10_000, seed: int = 0, **config: Any) -> Sequence[Task]:
    """Tasks of the generator ``name``, each made when asked for; the same arguments give the same tasks.

    Args:
        name: one of :data:`GENERATORS`.
        size: number of tasks.
        seed: tasks of different seeds are drawn independently: take another one for held-out tasks. (A generator
            with few questions may still ask one of them twice.)
        config: options of the generator, such as ``max_terms=3`` for "chain_sum".

    Raises:
        ConfigError: for an unknown generator or option, or a value the generator refuses.
    """
    if name not in GENERATORS:
        raise ConfigError(unknown("generator with plain number answers", name, GENERATORS))
    if size < 1 or seed < 0:
        raise ConfigError(f"size must be at least 1 and seed at least 0, got size {size}, seed {seed}")
    tasks = _Generated(name, size, seed, config)
    tasks.dataset()
    return tasks


class _Generated(Sequence[Task]):
    def __init__(self, name: str, size: int, seed: int, config: dict[str, Any]) -> None:
        self._name = name
        self._size = size
        self._seed = seed
        self._config = config
        self._dataset: Any = None

    def dataset(self) -> Any:
        """The generator, made at first use: processes that get this object pickled make their own."""
        if self._dataset is None:
            import reasoning_gym
            from reasoning_gym.factory import DATASETS

            options = {f.name for f in dataclasses.fields(DATASETS[self._name][1])} - {"size", "seed"}
            for option in self._config:
                if option not in options:
                    raise ConfigError(unknown(f"option of generator {self._name!r}", option, options))
            linear = self._name == "basic_arithmetic" and not self._config.get("allow_parentheses", True)
            if linear and "/" in self._config.get("operators", "+-*/"):
                raise ConfigError(
                    "basic_arithmetic without parentheses divides by zero at times: "
                    "set operators to some of ['+', '-', '*'], or allow_parentheses to true"
                )
            # reasoning-gym draws item i from seed + i: neighbouring seeds would share all tasks but one.
            seed = random.Random(f"reasoning_gym:{self._seed}").getrandbits(128)
            try:
                self._dataset = reasoning_gym.create_dataset(self._name, size=self._size, seed=seed, **self._config)
            except (AssertionError, ValueError, TypeError) as error:
                raise ConfigError(f"generator {self._name!r} refuses {self._config}: {error}") from error
        return self._dataset

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._size))]
        if not -self._size <= index < self._size:
            raise IndexError(f"task {index} of {self._size}")
        index %= self._size
        item = self.dataset()[index]
        metadata: dict[str, Any] = {"source": f"reasoning_gym:{self._name}", "form": "number"}
        if self._name in _DIVIDE:
            metadata["error"] = _ROUNDING
        return Task(
            id=f"{self._name}-{self._seed}-{index}",
            question=item["question"].strip(),
            answers=(_gold(item),),
            metadata=metadata,
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_dataset": None}


def _gold(item: dict[str, Any]) -> str:
    """The exact value of the expression the question states; the generator's own answer where it states none.

    The two differ: reasoning-gym works out "50 + 83 * 6" from left to right and rounds some divisions down.
    """
    expression = item["metadata"].get("expression")
    answer = str(item["answer"])
    if expression is None or Fraction(answer) == (value := evaluate(expression)):
        return answer
    return str(value)
