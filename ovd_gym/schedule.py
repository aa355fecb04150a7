"""How the episodes of one rollout wait for each other, how many there are at a time, and how long each may take."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ovd_gym.records import Record

__all__ = ["FREE_RUNNING", "LOCK_STEP", "Schedule"]


class Schedule(Record):
    """Tools of different episodes always run side by side, and while the agent speaks to others."""

    schedule: Literal["lock-step", "free-running"] = "lock-step"
    """``lock-step``: the agent is given the observations of all episodes under way at once, and the numbers are the
    same every time. ``free-running``: nobody waits for a slow tool, but what is batched together then depends on
    timing, and with it the last bits of the log-probabilities."""
    max_rows: Annotated[int, Field(ge=1)] = 256
    """Episodes under way at a time: others begin when these end. Each holds its environment and its cache."""
    tool_threads: Annotated[int, Field(ge=1)] = 32
    """Environment calls that run side by side."""
    tool_timeout_s: Annotated[float, Field(gt=0)] | None = 600.0
    """For one environment call: a tool with the grading, or a reset. None: no deadline."""
    turn_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """For one turn of the agent, waiting for room in the batch included. None: no deadline."""
    episode_timeout_s: Annotated[float, Field(gt=0)] | None = None
    """For one episode, from its reset on. None: no deadline."""


LOCK_STEP = Schedule()
FREE_RUNNING = Schedule(schedule="free-running")
