"""Calls with a deadline: whatever a service does, the caller goes on in time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from ovd_gym.errors import ConfigError, InfrastructureError

__all__ = ["TimedCalls"]

T = TypeVar("T")


class TimedCalls:
    """Runs each call in a thread of its own and waits for it no longer than ``timeout_s``.

    A thread cannot be stopped from outside. One that is late is left behind: nothing reads its result, it holds up
    neither its caller nor the end of the process, and it ends when the service it waits for lets go of it. At most
    ``max_hung`` of them may be behind at a time; then every call fails at once, until one of them has ended.

    Args:
        timeout_s: how long a call may take, in seconds.
        max_hung: calls that may be left behind and still be running.

    Raises:
        ConfigError: a limit that is not positive.
    """

    def __init__(self, timeout_s: float, max_hung: int = 4) -> None:
        if timeout_s <= 0 or max_hung < 1:
            raise ConfigError(f"tool_timeout_s must be positive and max_hung at least 1, got {timeout_s}, {max_hung}")
        self.timeout_s = timeout_s
        self.max_hung = max_hung
        self._hung: set[threading.Thread] = set()

    @property
    def hung(self) -> int:
        """How many calls were left behind and are running still."""
        self._hung = {thread for thread in self._hung if thread.is_alive()}
        return len(self._hung)

    def run(self, function: Callable[[], T], what: str, outage: type[InfrastructureError]) -> T:
        """What ``function`` returns, or raises.

        Args:
            function: must not change anything that its caller still uses after the deadline.
            what: the call in the error message; no addresses or keys.
            outage: raised when there is no result in time, or too many calls hang already.
        """
        if (hung := self.hung) >= self.max_hung:
            raise outage(f"{what} was not tried: {hung} earlier calls have been running past {self.timeout_s:g} s")
        future: Future[T] = Future()
        thread = threading.Thread(target=_fulfil, args=(future, function), name=f"ovd-gym {what}", daemon=True)
        thread.start()
        if future not in wait([future], self.timeout_s).done:
            self._hung.add(thread)
            raise outage(f"{what} gave no answer within {self.timeout_s:g} s")
        return future.result()


def _fulfil(future: Future[T], function: Callable[[], T]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001  (the waiting caller raises it)
        future.set_exception(error)
