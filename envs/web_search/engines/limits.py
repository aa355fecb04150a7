"""Patience with a service, bounded: pace, budget, deadline, and attempts with exponential back-off."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from ovd_gym.envs.web_search.services import BackendOutage, Cause, optional
from ovd_gym.errors import ConfigError

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["SYSTEM", "Clock", "Failure", "Limits", "Patience"]

T = TypeVar("T")

BACKOFF_S, MAX_BACKOFF_S = 0.5, 8.0


class Clock(Protocol):
    """Time, so that tests need not wait."""

    def now(self) -> float:
        """Seconds, monotonic."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class _SystemClock:
    now = staticmethod(time.monotonic)
    sleep = staticmethod(time.sleep)


SYSTEM: Clock = _SystemClock()


@dataclass(frozen=True)
class Limits:
    """Bounds on the use of a service. Raises ConfigError unless they are positive."""

    timeout_s: float = 10.0
    """To connect, and between two pieces of an answer."""
    deadline_s: float = 30.0
    """For a whole search: pacing, retries and waiting included."""
    retries: int = 3
    """After the first attempt, where another may help: 429, 5xx, timeouts, broken connections."""
    calls_per_s: float | None = None
    """Requests are spaced by the inverse."""
    max_calls: int | None = None
    """Requests sent over the object's life, retries included: what may be billed."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not (value > 0 or (name in ("retries", "max_calls") and value == 0)):
                raise ConfigError(f"{name} must be positive, got {value}")


@dataclass(frozen=True)
class Failure:
    """Why an attempt gave no answer."""

    cause: Cause
    detail: str
    again: bool = False
    """Whether another attempt may help."""
    after_s: float = 0.0
    """How long the service asked to wait."""


class Patience:
    """Runs attempts within :class:`Limits`. Safe to use from several threads, which share pace and budget."""

    def __init__(self, name: str, limits: Limits, clock: Clock = SYSTEM) -> None:
        self.limits, self.clock = limits, clock
        self._name = name
        self._tenacity = optional("tenacity")
        self._lock = threading.Lock()
        self._next_slot = clock.now()
        self._calls = 0
        self._jitter = random.Random()  # unseeded: processes that failed together must not come back together

    def call(self, attempt: Callable[[float], T | Failure]) -> T:
        """The first result of ``attempt(deadline)`` that is no :class:`Failure`.

        Raises:
            BackendOutage: none came within the limits, or another attempt would not help.
        """
        deadline = self.clock.now() + self.limits.deadline_s

        def enough(state: RetryCallState) -> bool:
            late = self.clock.now() + state.upcoming_sleep >= deadline
            return late or state.attempt_number > self.limits.retries

        retrying = self._tenacity.Retrying(
            retry=self._tenacity.retry_if_result(lambda result: isinstance(result, Failure) and result.again),
            wait=self._wait_s,
            stop=enough,
            sleep=self.clock.sleep,
            retry_error_callback=lambda state: state.outcome.result(),
        )
        outcome: T | Failure = retrying(lambda: self._take_turn(deadline) or attempt(deadline))
        if isinstance(outcome, Failure):
            times = retrying.statistics["attempt_number"]
            raise BackendOutage(self._name, outcome.cause, outcome.detail + (f", {times} times" if times > 1 else ""))
        return outcome

    def _wait_s(self, state: RetryCallState) -> float:
        failure = state.outcome.result() if state.outcome else None
        backoff = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** (state.attempt_number - 1)) * self._jitter.uniform(0.5, 1.0)
        return max(backoff, failure.after_s) if isinstance(failure, Failure) else backoff

    def _take_turn(self, deadline: float) -> Failure | None:
        """Count a call and wait for its turn, or say why it must not be made."""
        with self._lock:
            if self.limits.max_calls is not None and self._calls >= self.limits.max_calls:
                return Failure("budget", f"all {self.limits.max_calls} calls of max_calls are used up")
            now = self.clock.now()
            slot = max(now, self._next_slot)
            if slot >= deadline:
                return Failure("timeout", f"no turn within {self.limits.deadline_s:g} s: too many calls at once")
            self._calls += 1
            self._next_slot = slot + (1 / self.limits.calls_per_s if self.limits.calls_per_s else 0.0)
        if slot > now:
            self.clock.sleep(slot - now)
        return None
