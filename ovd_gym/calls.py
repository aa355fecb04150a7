"""Calls into environments, each in a thread, with a deadline: what hangs is left behind, and nobody waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakSet

__all__ = ["Call", "Calls", "occupied"]

_left_behind: WeakSet[Any] = WeakSet()
_lock = threading.Lock()


def occupied(owner: object) -> bool:
    """Whether a call on ``owner`` was left behind and has not returned yet, in whichever rollout it began."""
    with _lock:
        return owner in _left_behind


@dataclass(eq=False)
class Call:
    """One call, and what came of it."""

    row: int
    owner: object
    """What the call works on; it can be weakly referenced."""
    function: Callable[[], Any]
    timeout_s: float | None
    began: float | None = None
    """On the monotonic clock; None until a thread is free."""
    result: Any = None
    error: BaseException | None = None
    left: bool = False
    done: bool = False

    def overdue(self, now: float) -> bool:
        """Whether it has run for longer than it may."""
        return self.timeout_s is not None and self.began is not None and now - self.began > self.timeout_s


class Calls:
    """At most ``threads`` calls at a time, one per row; the others queue.

    A thread that hangs cannot be stopped: it is left behind, ends when its call returns, and another takes its place.
    What it works on is :func:`occupied` until then, so no more threads are ever left behind than there are owners.
    """

    def __init__(self, threads: int) -> None:
        self._limit = threads
        self._alive = 0
        self._todo: SimpleQueue[Call | None] = SimpleQueue()
        self._returned: SimpleQueue[Call] = SimpleQueue()
        self._running: dict[int, Call] = {}

    def __len__(self) -> int:
        return len(self._running)

    def start(self, row: int, owner: object, function: Callable[[], Any], timeout_s: float | None) -> None:
        """Carry out ``function`` for ``row``."""
        self._running[row] = call = Call(row, owner, function, timeout_s)
        self._todo.put(call)
        if self._alive < min(self._limit, len(self._running)):
            self._alive += 1
            threading.Thread(target=self._work, name=f"tools-{self._alive}", daemon=True).start()

    def finished(self, wait_s: float) -> Iterator[Call]:
        """Those that have returned or raised; waits up to ``wait_s`` seconds for the first."""
        try:
            while self._running:
                call = self._returned.get(timeout=wait_s) if wait_s else self._returned.get_nowait()
                wait_s = 0.0
                if not call.left:
                    del self._running[call.row]
                    yield call
        except Empty:
            return

    def overdue(self) -> list[int]:
        """Rows of those whose deadline has passed; they are still running."""
        now = time.monotonic()
        return [row for row, call in self._running.items() if call.overdue(now)]

    def leave(self, row: int) -> None:
        """Wait no longer for the call of ``row``, if there is one."""
        call = self._running.pop(row, None)
        if call is None:
            return
        with _lock:
            call.left = True
            if call.began is not None and not call.done:
                _left_behind.add(call.owner)
                self._alive -= 1

    def close(self) -> None:
        """Leave everything that still runs, and let the threads end."""
        for row in list(self._running):
            self.leave(row)
        for _ in range(self._alive):
            self._todo.put(None)

    def _work(self) -> None:
        while (call := self._todo.get()) is not None:
            with _lock:
                if call.left:
                    continue
                call.began = time.monotonic()
            try:
                call.result = call.function()
            except BaseException as error:  # noqa: BLE001  (recorded or raised by who waits for it)
                call.error = error
            with _lock:
                call.done = True
                if call.left:
                    _left_behind.discard(call.owner)
                    return
            self._returned.put(call)
