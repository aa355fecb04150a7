"""Environments for clients in other processes: a session each, with deadlines.

A client sends text and hears text, a reward and a status. The task stays here, and with it the gold answer; so does
what a broken environment says, which may quote it. :mod:`ovd_gym.bridges.openenv` puts sessions on the network.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from ovd_gym.calls import Calls, occupied
from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError, EpisodeOver, unknown
from ovd_gym.records import Record, Text, first_problem
from ovd_gym.worlds import family, tool_env

__all__ = ["Heard", "Session", "SessionLimits", "Status", "Stock"]

log = logging.getLogger(__name__)

Status = Literal["running", "terminated", "truncated", "failed"]
"""``terminated``: the student answered. ``truncated``: its turns or tokens ran out. ``failed``: something broke that it
has no power over."""


@dataclass(frozen=True)
class SessionLimits:
    """How many may play, and how long they may take."""

    sessions: int = 16
    """At a time."""
    step_timeout_s: float = 60.0
    """Of a reset or step; the episode of one that takes longer fails."""
    idle_timeout_s: float = 600.0
    """A session without a request for so long is closed."""

    def __post_init__(self) -> None:
        if self.sessions < 1:
            raise ConfigError(f"sessions must be at least 1, got {self.sessions}")
        if not 0 < self.step_timeout_s < self.idle_timeout_s < math.inf:
            raise ConfigError(
                "step_timeout_s must be above 0 and below idle_timeout_s, and that finite; "
                f"got {self.step_timeout_s:g} and {self.idle_timeout_s:g}"
            )


class Heard(NamedTuple):
    """What a client hears of its episode."""

    text: str
    """The question, then one observation per step; empty when the episode failed."""
    status: Status = "running"
    reward: float | None = 0.0
    """None when the episode failed, and only then: that is no reward, not one of 0."""
    reason: str = ""
    """What ran out, or what broke."""
    messages: tuple[dict[str, str], ...] = ()
    """After a reset: the conversation a student starts from, instructions and question."""


class Stock:
    """At most ``limits.sessions`` instances of one environment, made when they are needed and lent to one session each.

    Raises:
        ConfigError: an unknown environment, or options it does not take.
    """

    def __init__(self, env: str, options: Mapping[str, Any], limits: SessionLimits) -> None:
        first, more = family(env, options)
        self.limits = limits
        self._more: Callable[[], ToolEnv] = lambda: tool_env(more())
        self._all = [tool_env(first)]
        self._free = list(self._all)
        self._lock = threading.Lock()

    @property
    def first(self) -> ToolEnv:
        """One of them, to be asked what it is."""
        return self._all[0]

    def lend(self) -> ToolEnv | None:
        """One that nobody uses; None when all that could be lent hang in a call."""
        with self._lock:
            for world in self._free:
                if not occupied(world):
                    self._free.remove(world)
                    return world
            if len(self._all) == self.limits.sessions:
                return None
            self._all.append(self._more())
            return self._all[-1]

    def take_back(self, world: ToolEnv) -> None:
        """Let others have ``world``; one that hangs is not lent before its call has returned."""
        with self._lock:
            self._free.append(world)

    def close(self) -> None:
        """Close all of them."""
        for world in self._all:
            world.close()


class Session:
    """One client's episodes, one after the other. Its methods are called by one thread at a time."""

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._world: ToolEnv | None = None
        self._running = False
        self._closed = False

    def reset(self, options: Mapping[str, object]) -> Heard:
        """Begin an episode.

        Args:
            options: ``seed`` and ``task_index``, whole numbers; ``episode_id``, a text that is not read here.

        Raises:
            ConfigError: other options or values; EpisodeOver: the session is closed.
        """
        self._check_open()
        asked = _Beginning.of(options)
        count = len(self._stock.first.tasks)
        if asked.task_index is not None and asked.task_index >= count:
            raise ConfigError(f"task_index must be in 0..{count - 1}, got {asked.task_index}")
        try:
            self._world = self._world or self._stock.lend()
        except Exception as error:  # noqa: BLE001  (a plug-in may raise anything while it is made)
            return self._broke(error)
        if self._world is None:
            return self._fail("no environment is free, since they hang in calls that ran out of time: try again later")
        return self._play(partial(_reset, self._world, asked))

    def step(self, text: str, timeout_s: float | None = None) -> Heard:
        """Carry out the call in ``text``, within ``timeout_s`` if that is less than the limit.

        Raises EpisodeOver before the first episode, after the end of one, and when the session is closed.
        """
        self._check_open()
        if self._world is None or not self._running:
            raise EpisodeOver("no episode is under way: call reset() before step()")
        return self._play(partial(_step, self._world, text), timeout_s)

    def close(self) -> None:
        """Give the environment back; whoever still asks is told."""
        self._closed = True
        self._let_go()

    def _check_open(self) -> None:
        if self._closed:
            idle_s = self._stock.limits.idle_timeout_s
            raise EpisodeOver(f"the session is closed, as one is after {idle_s:g} s without a request: connect again")

    def _play(self, act: Callable[[], Heard], timeout_s: float | None = None) -> Heard:
        limit_s = min(timeout_s or math.inf, self._stock.limits.step_timeout_s)
        with closing(Calls(1)) as calls:  # what has not returned by then is left behind
            calls.start(0, self._world, act, limit_s)
            call = next(calls.finished(limit_s), None)
        if call is None:
            return self._fail(f"the environment took longer than {limit_s:g} s")
        if call.error is not None:
            return self._broke(call.error)
        heard: Heard = call.result
        self._running = heard.status == "running"
        return heard

    def _broke(self, error: BaseException) -> Heard:
        log.warning("an episode failed: %r", error, exc_info=error)
        return self._fail(f"the environment raised {type(error).__name__}: the log of the server says more")

    def _fail(self, reason: str) -> Heard:
        self._let_go()
        return Heard("", "failed", None, reason)

    def _let_go(self) -> None:
        self._running = False
        if self._world is not None:
            self._stock.take_back(self._world)
            self._world = None


class _Beginning(Record):
    """What a client may choose of an episode."""

    seed: Annotated[int, Field(ge=0)] | None = None
    task_index: Annotated[int, Field(ge=0)] | None = None
    episode_id: Annotated[Text, Field(max_length=255)] | None = None

    @classmethod
    def of(cls, options: Mapping[str, object]) -> _Beginning:
        for name in options:
            if name not in cls.model_fields:
                raise ConfigError(unknown("option of reset", name[:80], cls.model_fields))
        try:
            return cls.model_validate(options)
        except ValidationError as error:
            raise ConfigError(f"{first_problem(error)}, got {error.errors()[0]['input']!r:.80}") from None


def _reset(world: ToolEnv, asked: _Beginning) -> Heard:
    chosen = None if asked.task_index is None else {"task_index": asked.task_index}
    question, _ = world.reset(seed=asked.seed, options=chosen)
    return Heard(question, messages=tuple(message.model_dump() for message in world.opening()))


def _step(world: ToolEnv, text: str) -> Heard:
    observation, reward, terminated, truncated, info = world.step(text)
    status: Status = "terminated" if terminated else "truncated" if truncated else "running"
    return Heard(observation, status, float(reward), info["truncation"] or "")
