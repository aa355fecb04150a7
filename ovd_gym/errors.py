"""The exception tree: every error a user can meet says what came, what was allowed and what to do.

::

    OvdGymError
    ├── ConfigError            a configuration or argument that cannot work
    ├── DataError              a task file, record file or checkpoint that cannot be read
    ├── InvalidCall            the student's text holds no valid tool call    (becomes an observation)
    ├── ToolError              a tool refused its input                       (becomes an observation)
    ├── EpisodeOver            ``step`` after the end, or before ``reset``
    ├── ReplayMismatch         a restored episode did not unfold as it was recorded
    ├── InfrastructureError    something outside the student's power broke    (no reward at all, never 0)
    ├── TeacherError           a teacher could not score                      (becomes a status, never a number)
    └── TrainingStopped        an update was refused: too many invalid scores, nothing to train on, NaN
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "DataError",
    "EpisodeOver",
    "InfrastructureError",
    "InvalidCall",
    "OvdGymError",
    "ReplayMismatch",
    "TeacherError",
    "ToolError",
    "TrainingStopped",
    "unknown",
]


class OvdGymError(Exception):
    """Root of the tree; the command line prints it as one line and exits with code 1."""


class ConfigError(OvdGymError):
    """A configuration key, value or combination that cannot work."""


class DataError(OvdGymError):
    """A file that cannot be read as what it should be; names the file and, where it applies, the line."""


class InvalidCall(OvdGymError):
    """The student's text holds no valid tool call; the environment answers with this message."""


class ToolError(OvdGymError):
    """A tool refused its input or reached a limit; the environment answers with this message."""


class EpisodeOver(OvdGymError):
    """``step`` was called after the episode's end, or before ``reset``."""


class ReplayMismatch(OvdGymError):
    """Replaying a snapshot gave another observation than the one recorded: a tool is not deterministic."""


class InfrastructureError(OvdGymError):
    """A service the environment depends on broke. The episode gets no reward: an outage is not a zero."""


class TeacherError(OvdGymError):
    """A teacher could not give a score. ``status`` is the :class:`~ovd_gym.records.Score` status to record."""

    def __init__(self, message: str, status: str = "error") -> None:
        super().__init__(message)
        self.status = status


class TrainingStopped(OvdGymError):
    """The learner refuses to go on; the last checkpoint stays valid."""


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Return the one-line message for a name that is not among ``allowed``, with a suggestion if one is close.

    >>> unknown("arm", "grop", ["grpo", "score-reward"])
    "unknown arm 'grop': did you mean 'grpo'? Allowed: grpo, score-reward"
    """
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? Allowed" if close else "allowed"
    return f"unknown {kind} {name!r}: {hint}: {', '.join(names) or 'none'}"
