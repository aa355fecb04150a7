"""The student's Python: a session that keeps its variables, on the Monty interpreter, within limits.

Monty runs in worker processes without files, network, processes or a real clock; its random generator starts from
a fixed seed, so the same code gives the same output (:meth:`~ovd_gym.envs.base.ToolEnv.restore` relies on it).
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, Self

from ovd_gym.envs.math_qa import processes
from ovd_gym.envs.math_qa.shell import Printed, describe, show_last_value, show_returned
from ovd_gym.errors import ConfigError, InfrastructureError, ToolError

if TYPE_CHECKING:
    from pydantic_monty import ExternalModule, Monty, MontySession

__all__ = ["Sandbox", "SandboxLimits"]

MAX_SESSIONS = 4096
"""Sessions open at the same time in one process; each is a Monty process of about 8 MB."""
CHECKOUT_TIMEOUT_S = 30.0
GRACE_S = 1.0
"""What Monty gets, beyond the time limit, to stop by itself before its process is killed."""
LOST = "The session was restarted: all variables and imports are lost."


@dataclasses.dataclass(frozen=True)
class SandboxLimits:
    """Limits on each call. Raises :class:`~ovd_gym.errors.ConfigError` unless all are positive."""

    time_s: float = 2.0
    """Seconds of wall time, host calls into ``sympy`` included."""
    memory_mb: int = 128
    output_chars: int = 4000
    """Printed text and the value shown; what is beyond is cut."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ConfigError(f"sandbox limit {name} must be positive, got {value}")


class Sandbox:
    """A stateful Python session; its process is taken from a pool at the first :meth:`run`.

    >>> with Sandbox() as sandbox:
    ...     sandbox.run("x = 38")
    ...     sandbox.run("x * 74")
    '(no output)'
    '2812'
    """

    def __init__(self, limits: SandboxLimits | None = None) -> None:
        self.limits = limits or SandboxLimits()
        self._session: _Session | None = None
        self._pid = 0

    def run(self, code: str) -> str:
        """What ``code`` printed, then the value of its last expression (unless None), as an interactive shell shows it.

        Raises:
            ToolError: ``code`` is wrong, raised, or reached a limit. The session goes on; if its variables were
                lost, the message says so.
            InfrastructureError: the sandbox itself is broken.
        """
        if self._session is not None and self._pid != os.getpid():
            raise InfrastructureError("this sandbox session belongs to the parent process: open a new one after a fork")
        if self._session is None:
            self._session, self._pid = _open_session(self.limits), os.getpid()
        try:
            return self._session.run(code)
        except _SessionLost as error:
            self.close()
            raise ToolError(f"{error} {LOST}") from None

    def close(self) -> None:
        """Give the process back, forgetting all variables; the next :meth:`run` starts afresh. Idempotent."""
        session, self._session = self._session, None
        if session is None:
            return
        if self._pid == os.getpid():
            session.close()
        else:
            _INHERITED.append(session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"limits": self.limits, "_session": None, "_pid": 0}


class _Session(Protocol):
    def run(self, code: str) -> str: ...

    def close(self) -> None: ...


class _SessionLost(Exception):
    """The session cannot go on; the message says why."""


# Monty in this process ------------------------------------------------------------------------------------

_pool: Monty | None = None
_pool_pid = 0
_LOCK = threading.Lock()
_INHERITED: list[object] = []
"""Sessions of the parent process: dropping one would end it over the pipe both processes share."""


def _open_session(limits: SandboxLimits) -> _Session:
    if _pool is not None and _pool_pid != os.getpid():
        # Monty's threads do not survive a fork, so a child of a process that used it needs a process to run it in.
        return _RemoteSession(limits)
    return _MontySession(limits)


def _shared_pool() -> Monty:
    global _pool, _pool_pid
    from pydantic_monty import Monty

    with _LOCK:
        if _pool is None:
            try:
                pool = Monty(
                    min_processes=0,
                    max_processes=MAX_SESSIONS,
                    checkout_timeout=CHECKOUT_TIMEOUT_S,
                    max_checkouts_per_worker=64,
                    feed_duration_limit_grace=GRACE_S,
                    turn_duration_limit_grace=GRACE_S,
                )
                _pool, _pool_pid = pool.__enter__(), os.getpid()
            except (RuntimeError, OSError) as error:
                raise InfrastructureError(f"the Monty sandbox did not start: {error}") from error
        return _pool


class _MontySession:
    """One checked-out Monty process. Code that can no longer be trusted to run raises :class:`_SessionLost`."""

    def __init__(self, limits: SandboxLimits) -> None:
        self._limits = limits
        self._deadline = 0.0
        self._broken: InfrastructureError | None = None
        try:
            self._session: MontySession = _shared_pool().checkout(
                limits={
                    "max_feed_duration_secs": limits.time_s,
                    "max_memory": limits.memory_mb * 1_000_000,
                    "max_recursion_depth": 500,
                    "max_suspensions": 100_000,
                },
                os_policy={
                    "datetime": datetime(2025, 1, 1),
                    "timezone": "utc",
                    "sleep": "zero",
                    "random_start": {"seed": 0},
                },
                external_modules={"sympy": self._sympy},
            )
            self._session.__enter__()
        except (RuntimeError, TimeoutError, OSError) as error:
            raise InfrastructureError(f"no sandbox session: {error}") from error

    def run(self, code: str) -> str:
        from pydantic_monty import MontyCrashedError, MontyRuntimeError, MontySyntaxError

        source = show_last_value(code, self._limits.output_chars)
        printed = Printed(self._limits.output_chars)
        self._deadline = time.monotonic() + self._limits.time_s
        self._credited = False
        try:
            value = self._drive(source, printed)
        except MontyCrashedError:
            raise _SessionLost(f"the code crashed the sandbox or ran longer than {self._limits.time_s} s.") from None
        except MontySyntaxError as error:
            raise ToolError(error.display("type-msg")) from None
        except MontyRuntimeError as error:
            if self._broken is not None:
                raise self._broken from None
            if isinstance(error.exception(), TimeoutError) and not error.traceback():
                raise self._overtime(printed) from None
            raise ToolError(printed.before(describe(error, code))) from None
        return printed.before(value) or "(no output)"

    def close(self) -> None:
        self._session.__exit__(None, None, None)

    def _drive(self, source: str, printed: Printed) -> str:
        """Run to the end, or to the deadline: Monty's own clock stands still during host calls."""
        from pydantic_monty import MontyComplete

        snapshot = self._session.feed_start(source, print_callback=printed.add)
        while not isinstance(snapshot, MontyComplete):
            if time.monotonic() > self._deadline:
                raise self._overtime(printed)
            snapshot = snapshot.resume_auto()
        return show_returned(snapshot.output, self._limits.output_chars)

    def _overtime(self, printed: Printed) -> _SessionLost:
        return _SessionLost(printed.before(f"TimeoutError: the code ran longer than {self._limits.time_s} s."))

    def _sympy(self) -> ExternalModule:
        """The ``sympy`` module of this session, made when its code first imports it."""
        from pydantic_monty import ExternalModule

        def host_function(name: str) -> Callable[..., Any]:
            return lambda *arguments: self._host_call("sympy", name, *arguments)

        constants = {"pi": "pi", "E": "E", "I": "I", "oo": "oo"}
        return ExternalModule(constants | {name: host_function(name) for name in self._host_call("names")})

    def _host_call(self, function: str, *arguments: Any) -> Any:
        """Compute in the worker process within what is left of the call's time; runs on behalf of sandboxed code."""
        try:
            arguments = processes.unpack(processes.pack(arguments))  # what a worker could not read would end it
            started = time.monotonic()
            if started > self._deadline:
                raise processes.WorkTimeout
            processes.warm()
            if not self._credited:  # starting a process is not the student's time, unless they keep ending it
                self._credited = True
                self._deadline += time.monotonic() - started
            return processes.call(function, *arguments, timeout_s=max(0.0, self._deadline - time.monotonic()))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"sympy: {type(error).__name__}: unfit arguments ({str(error)[:200]})") from None
        except processes.WorkTimeout:
            raise TimeoutError("sympy did not finish in time") from None
        except processes.WorkFailed as error:
            raise ValueError(f"sympy: {error}") from None
        except InfrastructureError as error:
            self._broken = error
            raise RuntimeError("sympy is not available") from None


class _RemoteSession:
    """The same session in a process of its own."""

    def __init__(self, limits: SandboxLimits) -> None:
        self._limits = limits
        self._worker = processes.Worker(processes.SANDBOX)
        self._worker.call("open", dataclasses.asdict(limits), timeout_s=processes.START_TIMEOUT_S)

    def run(self, code: str) -> str:
        # The first use of sympy starts yet another process, which is not the student's fault.
        backstop = 2 * self._limits.time_s + GRACE_S + processes.START_TIMEOUT_S
        try:
            kind, text = self._worker.call("run", code, timeout_s=backstop)
        except processes.WorkTimeout:
            raise _SessionLost(f"TimeoutError: the code ran longer than {self._limits.time_s} s.") from None
        except processes.WorkFailed as error:
            raise InfrastructureError(f"the sandbox process failed: {error}") from error
        if kind == "refused":
            raise ToolError(text)
        return str(text)

    def close(self) -> None:
        self._worker.close()
