"""A pool of Ray actors that do jobs. An actor that is lost is replaced, and its job goes to another one."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from ovd_gym.errors import TrainingStopped

__all__ = ["Lost", "Pool"]

log = logging.getLogger(__name__)

MAX_LOSSES = 3
"""A job that has cost so many actors is given up: it may be what kills them."""
_TICK_S = 0.1


class Lost(NamedTuple):
    """In place of a result: the job was given up."""

    reason: str


class _Task(NamedTuple):
    """What an actor is at."""

    actor: Any
    run: int
    """The call of :meth:`Pool.run` it belongs to; 0: getting ready."""
    job: int = 0


class Pool:
    """``size`` actors of one kind.

    An actor gets ready before it is given a job, and so does the one that replaces it, on whichever node has room: at
    once, or when a node comes back. Meanwhile the others go on.

    Args:
        kind: what to call an actor in messages.
        make: makes an actor that is not restarted by Ray itself.
        prepare: asks an actor to get ready.
        timeout_s: how long the pool may be without any actor that is ready.

    Raises:
        OvdGymError: what the first actor to get ready raised; TrainingStopped after ``timeout_s``.
    """

    def __init__(
        self, kind: str, size: int, make: Callable[[], Any], prepare: Callable[[Any], Any], timeout_s: float
    ) -> None:
        self._kind = kind
        self._make = make
        self._prepare = prepare
        self._timeout_s = timeout_s
        self._busy: dict[Any, _Task] = {}
        self._idle: list[Any] = []
        self._runs = 0
        self._failed_starts = 0
        self._last_ready = time.monotonic()
        self.prepared: Any = None
        """What an actor that got ready said."""
        try:
            for _ in range(size):
                self._hire()
            while not self._idle:
                list(self._arrivals())
        except BaseException:
            self.close()
            raise

    def settle(self) -> None:
        """Wait until every actor is ready, so that what follows is not slowed by those that start."""
        while any(task.run == 0 for task in self._busy.values()):
            list(self._arrivals())

    def run(
        self,
        method: str,
        jobs: Sequence[tuple[Any, ...]],
        on_result: Callable[[Any], None] = lambda value: None,
        on_wait: Callable[[], None] = lambda: None,
    ) -> list[Any]:
        """Call ``method`` once with each of ``jobs``; the results in order, :class:`Lost` for those given up.

        Args:
            on_result: told each result when it comes.
            on_wait: called many times a second; may raise to leave. What is under way is then done for nothing.

        Raises:
            OvdGymError: what a job raised. TrainingStopped: there is no actor any more, and none comes.
        """
        self._runs += 1
        todo = deque(range(len(jobs)))
        losses: Counter[int] = Counter()
        results: dict[int, Any] = {}
        while len(results) < len(jobs):
            while todo and self._idle:
                job, actor = todo.popleft(), self._idle.pop(0)
                self._busy[getattr(actor, method).remote(*jobs[job])] = _Task(actor, self._runs, job)
            for task, outcome in self._arrivals():
                if task.run != self._runs:
                    continue
                losses[task.job] += isinstance(outcome, Lost)
                if isinstance(outcome, Lost) and losses[task.job] < MAX_LOSSES:
                    todo.appendleft(task.job)
                    continue
                results[task.job] = outcome
                on_result(outcome)
            on_wait()
        return [results[job] for job in range(len(jobs))]

    def close(self) -> None:
        """End all actors, whatever they are at."""
        for actor in (*self._idle, *(task.actor for task in self._busy.values())):
            _end(actor)
        self._idle, self._busy = [], {}

    def _arrivals(self) -> Iterator[tuple[_Task, Any]]:
        """Wait a little; what has been done, and the outcomes."""
        try:
            arrived, _ = ray.wait(list(self._busy), num_returns=len(self._busy), timeout=_TICK_S)
        except RayError as error:
            raise TrainingStopped(f"the Ray cluster does not answer any more: {_line(error)}") from error
        for ref in arrived:
            task = self._busy.pop(ref)
            yield task, self._outcome(ref, task)
        self._check()

    def _outcome(self, ref: Any, task: _Task) -> Any:
        try:
            value = ray.get(ref)
        except RayTaskError as error:  # the actor lives: its code raised
            self._idle.append(task.actor)
            if task.run not in (0, self._runs):  # of a run that has been left
                return None
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError as error:
            self._replace(task, error)
            return Lost(f"{MAX_LOSSES} {self._kind}s were lost at it, the last one: {_line(error)}")
        if task.run == 0:
            self.prepared = value
            self._failed_starts = 0
        self._idle.append(task.actor)
        return value

    def _replace(self, task: _Task, error: RayError) -> None:
        _end(task.actor)
        log.warning(
            "a %s was lost (%s): another one takes its place%s",
            self._kind, _line(error), ", and what it was doing is done again" if task.run else "",
        )  # fmt: skip
        self._failed_starts += task.run == 0
        if self._failed_starts >= MAX_LOSSES:
            raise TrainingStopped(
                f"{self._failed_starts} {self._kind}s in a row were lost while they started: {_line(error)}"
            )
        self._hire()

    def _hire(self) -> None:
        actor = self._make()
        self._busy[self._prepare(actor)] = _Task(actor, 0)

    def _check(self) -> None:
        """Raise TrainingStopped if nobody has been ready for too long."""
        if self._idle or any(task.run for task in self._busy.values()):
            self._last_ready = time.monotonic()
        elif time.monotonic() - self._last_ready > self._timeout_s:
            raise TrainingStopped(
                f"no {self._kind} is ready after {self._timeout_s:g} s: the cluster has {_resources()}; ask for "
                "less per worker, add nodes, or raise scale.start_timeout_s"
            )


def _end(actor: Any) -> None:
    ray.kill(actor, no_restart=True)


def _resources() -> str:
    known: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray is partly typed
    return f"{known.get('CPU', 0):g} CPUs and {known.get('GPU', 0):g} GPUs"


def _line(error: BaseException) -> str:
    """The first line of an error, and its kind."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
