"""What keeps a served model honest when it fails: retries within a deadline, a circuit breaker, a budget.

An attempt gives what was asked for or a :class:`Failure`, which becomes the status of one reading: nothing is raised.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from ovd_gym.llm.choice import Usage
from ovd_gym.records import Record, ScoreStatus

__all__ = ["Account", "Breaker", "Failure", "Limits", "Patience", "Prices"]

BACKOFF_S = 0.5
MAX_BACKOFF_S = 16.0
_PER = 1_000_000
"""Tokens that prices are given for."""

T = TypeVar("T")
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]


class Prices(Record):
    """What a million tokens cost, in any one currency."""

    prompt: NonNegative
    completion: NonNegative
    cached: NonNegative | None = None
    """Prompt tokens that the server says it had in its cache; None: they cost what others cost."""


class Limits(Record):
    """How long, how often and how much."""

    concurrency: Annotated[int, Field(ge=1)] = 8
    """Requests under way at the same time, whichever threads they come from."""
    timeout_s: Positive = 60.0
    """For one request with all its retries, once it is its turn."""
    max_retries: Annotated[int, Field(ge=0)] = 5
    """After failures that may pass: no connection, HTTP 408, 409, 429 and 5xx, an answer that cannot be read."""
    breaker_failures: Annotated[int, Field(ge=1)] = 5
    """Requests in a row that failed through no fault of their own, retries included, before none is sent."""
    breaker_cooldown_s: Positive = 30.0
    """For how long none is sent."""
    max_tokens_total: Annotated[int, Field(ge=1)] | None = None
    """Prompt and completion tokens together, those from the server's cache left out."""
    max_cost: Positive | None = None
    """In the currency of the prices."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt gave nothing."""

    status: ScoreStatus
    why: str
    again: bool = False
    """Whether another attempt may help."""
    outage: bool = False
    """Whether every other request would fail like this one."""
    after_s: float = 0.0
    """How long the server asked to wait."""
    too_long: bool = False
    """Whether the prompt left the model no room."""


class Patience:
    """Repeats an attempt within one deadline, with exponential back-off, jitter, and the wait a server asks for."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._jitter = random.Random()  # unseeded: processes that failed together must not come back together

    async def call(self, attempt: Callable[[], Awaitable[T | Failure]]) -> T | Failure:
        """What the first attempt gave that is no failure worth repeating; else the last one's failure."""
        last: list[Failure] = []

        async def remembered() -> T | Failure:
            outcome = await attempt()
            if isinstance(outcome, Failure):
                last.append(outcome)
            return outcome

        retrying = AsyncRetrying(
            retry=retry_if_result(lambda outcome: isinstance(outcome, Failure) and outcome.again),
            wait=self._wait_s,
            stop=self._enough(time.monotonic() + self._limits.timeout_s),
            retry_error_callback=lambda state: _told(last[-1], state.attempt_number),
        )
        try:
            async with asyncio.timeout(self._limits.timeout_s):
                return await retrying(remembered)
        except TimeoutError:
            before = f"; before that: {last[-1].why}" if last else ""
            return Failure("timeout", f"no answer within {self._limits.timeout_s:g} s{before}", outage=True)

    def _wait_s(self, state: RetryCallState) -> float:
        failure = state.outcome.result() if state.outcome else None
        backoff = min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** (state.attempt_number - 1)) * self._jitter.uniform(0.5, 1.0)
        return max(backoff, failure.after_s) if isinstance(failure, Failure) else backoff

    def _enough(self, deadline: float) -> Callable[[RetryCallState], bool]:
        """Whether to stop: no retries left, or the next one would come too late."""

        def enough(state: RetryCallState) -> bool:
            late = time.monotonic() + state.upcoming_sleep >= deadline
            return late or state.attempt_number > self._limits.max_retries

        return enough


class Breaker:
    """Leaves a server that is down alone, so that a run does not wait for every single timeout.

    After ``failures`` outages in a row nothing is sent for ``cooldown_s``. Then requests are let through again: an
    answer closes the breaker, the first outage opens it anew.

    Source: M. Nygard, Release It! (2nd edition), "Circuit Breaker".
    """

    def __init__(self, failures: int, cooldown_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._outages = 0
        self._until = float("-inf")
        self._cause = ""

    def refusal(self) -> Failure | None:
        """Why nothing is sent now; None while requests go through."""
        left = self._until - self._clock()
        if left <= 0:
            return None
        why = f"not asked: {self._outages} requests in a row failed, the last: {self._cause} (next try in {left:.0f} s)"
        return Failure("error", why)

    def note(self, outcome: object) -> None:
        """Take in how a request ended: anything but an outage shows that the server is there."""
        if not (isinstance(outcome, Failure) and outcome.outage):
            self._outages, self._until = 0, float("-inf")
            return
        self._outages += 1
        self._cause = outcome.why
        if self._outages >= self._limit:
            self._until = self._clock() + self._cooldown_s


class Account:
    """Counts what is used, and says when the budget is used up.

    What requests under way will cost is not known: the budget may be passed by as many as run at the same time.
    """

    def __init__(self, limits: Limits, prices: Prices | None) -> None:
        self._limits = limits
        self._prices = prices
        self.usage = Usage()

    @property
    def limited(self) -> bool:
        """Whether there is a budget at all."""
        return self._limits.max_tokens_total is not None or self._limits.max_cost is not None

    def request(self) -> None:
        """Count a request that is being sent."""
        self.usage += Usage(requests=1)

    def tokens(self, prompt: int, cached: int, completion: int) -> None:
        """Count the tokens of an answer; ``cached`` of the ``prompt`` tokens came from the server's cache."""
        cost = 0.0
        if (prices := self._prices) is not None:
            of_cached = prices.prompt if prices.cached is None else prices.cached
            cost = ((prompt - cached) * prices.prompt + cached * of_cached + completion * prices.completion) / _PER
        self.usage += Usage(prompt_tokens=prompt - cached, completion_tokens=completion, cost=cost)

    def refusal(self) -> Failure | None:
        """Why nothing more is asked for; None while there is something left."""
        tokens = self.usage.prompt_tokens + self.usage.completion_tokens
        most, dearest = self._limits.max_tokens_total, self._limits.max_cost
        if most is not None and tokens >= most:
            return Failure("over_budget", f"{tokens} tokens used, max_tokens_total is {most}")
        if dearest is not None and self.usage.cost >= dearest:
            return Failure("over_budget", f"{self.usage.cost:g} spent, max_cost is {dearest:g}")
        return None


def _told(failure: Failure, attempts: int) -> Failure:
    """``failure`` that says how often it was met."""
    if attempts == 1:
        return failure
    return Failure(failure.status, f"{failure.why}, {attempts} times", outage=failure.outage)
