"""Where training steps get their experience from: gathered when it is asked for, or ahead of the updates.

Ahead, one thread plays and judges the coming steps while the learner is at work (``rollout.staleness`` = k > 0). The
experience of step s begins once there have been s - k updates, with the newest weights; so there are never more than
k + 1 steps in stock, no sample is more than k updates old, and each trajectory says which weights it comes from. All
episodes of a step come from one version: weights change between rollouts only.

In exchange the numbers depend on timing. A run that is resumed goes on from its last checkpoint; what had been
gathered ahead of it is gathered again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from queue import Empty, Queue
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from ovd_gym.experience import Experience
from ovd_gym.players import OnTurn, Players

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Ahead", "InStep", "Source"]

Gather = Callable[[int, int, OnTurn], Experience]
"""From (training step, version of the weights) to the step's experience."""
_PATIENCE_S = 0.1


class Source(Protocol):
    """A context manager that gives one step's experience after the other."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop gathering, and wait until nothing moves any more."""

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """The learner's weights after ``version`` updates."""

    def paused(self, on_turn: OnTurn) -> AbstractContextManager[None]:
        """Within it nothing is gathered, and the players have the weights that were published last."""

    def take(self, step: int, on_turn: OnTurn) -> Experience:
        """The experience of ``step``; steps are asked for in order. Raises whatever gathering it raised."""


class InStep:
    """A step is gathered when it is asked for, with the weights of that moment: the numbers are the same every time."""

    def __init__(self, gather: Gather, players: Players) -> None:
        self._gather = gather
        self._players = players

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """See :class:`Source`."""

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """See :class:`Source`."""
        self._players.load_weights(weights, version)

    def paused(self, on_turn: OnTurn) -> AbstractContextManager[None]:
        """See :class:`Source`."""
        return nullcontext()

    def take(self, step: int, on_turn: OnTurn) -> Experience:
        """See :class:`Source`."""
        return self._gather(step, step, on_turn)


class Ahead:
    """Steps are gathered in a thread, up to ``staleness`` updates ahead.

    Args:
        gather: plays and judges one step.
        players: those whom it has play; they must not share trained weights with the learner.
        steps: those that are left.
        staleness: k.
    """

    def __init__(self, gather: Gather, players: Players, steps: range, staleness: int) -> None:
        self._gather = gather
        self._players = players
        self._steps = steps
        self._staleness = staleness
        self._found: Queue[Experience | BaseException] = Queue(maxsize=staleness + 2)  # full only by mistake
        self._changed = threading.Condition()
        self._newest: tuple[int, dict[str, Tensor]] = -1, {}
        self._loaded = -1
        self._playing = threading.Lock()
        self._progress = (0, 0)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="rollouts", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        """See :class:`Source`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def publish(self, weights: Mapping[str, Tensor], version: int) -> None:
        """See :class:`Source`. Takes a copy: the next update changes ``weights`` while others still sample."""
        with self._changed:
            self._newest = version, {name: weight.detach().clone() for name, weight in weights.items()}
            self._changed.notify_all()

    @contextmanager
    def paused(self, on_turn: OnTurn) -> Iterator[None]:
        """See :class:`Source`."""
        while not self._playing.acquire(timeout=_PATIENCE_S):
            on_turn(*self._progress)
        try:
            self._load()
            yield
        finally:
            self._playing.release()

    def take(self, step: int, on_turn: OnTurn) -> Experience:
        """See :class:`Source`."""
        if step == self._steps.start:
            self._thread.start()
        while True:
            try:
                found = self._found.get(timeout=_PATIENCE_S)
            except Empty:
                on_turn(*self._progress)
                continue
            if isinstance(found, BaseException):
                raise found
            return found

    def _run(self) -> None:
        try:
            for step in self._steps:
                self._await(step - self._staleness)
                with self._playing:
                    version = self._load()
                    found = self._gather(step, version, self._note)
                found.row["staleness"] = step - version
                self._found.put(found)
        except _Closed:
            pass
        except BaseException as error:  # noqa: BLE001  (raised again by who takes the step)
            self._found.put(error)

    def _await(self, version: int) -> None:
        """Wait until there have been ``version`` updates."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._newest[0] >= version)
        self._note(0, 0)

    def _load(self) -> int:
        """Give the players what was published last; its version."""
        with self._changed:
            version, weights = self._newest
        if version != self._loaded:
            self._players.load_weights(weights, version)
            self._loaded = version
        return version

    def _note(self, finished: int, tokens: int) -> None:
        self._progress = finished, tokens
        if self._closed:
            raise _Closed


class _Closed(Exception):
    """Nobody wants the experience any more."""
