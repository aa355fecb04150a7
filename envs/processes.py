"""Processes that can be killed: work on untrusted text runs in one of these, never in the caller's.

A worker is ``python -m ovd_gym.envs.worker ROLE``; it speaks JSON lines over its pipes. It is a plain child process
because a ``multiprocessing`` pool would either fork a threaded trainer or import its ``__main__`` again. A role is
``package.module:function``, where the function prepares the process and returns what it can be asked, by name.
"""

from __future__ import annotations

import atexit
import base64
import json
import os
import resource
import select
import subprocess
import sys
import threading
import time
from typing import Any

from ovd_gym.errors import InfrastructureError

__all__ = ["START_TIMEOUT_S", "WorkFailed", "WorkTimeout", "Worker", "WorkerPool", "confine", "pack", "unpack"]

START_TIMEOUT_S = 60.0
"""Generous: the first import of a large library on a busy machine with a cold disk."""


class WorkFailed(Exception):
    """The work raised (the message is ``Type: text``), or the process died of it (``died``)."""

    def __init__(self, message: str, died: bool = False) -> None:
        super().__init__(message)
        self.died = died


class WorkTimeout(Exception):
    """The work did not end before its deadline; its process was killed."""


class Worker:
    """One worker process. Not thread-safe: one call at a time.

    Raises :class:`~ovd_gym.errors.InfrastructureError` when the process cannot be started.
    """

    def __init__(self, role: str) -> None:
        command = [sys.executable, "-m", "ovd_gym.envs.worker", role]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env=_environment(),
                start_new_session=True,  # Ctrl-C goes to the caller, which decides what becomes of its workers
            )
            hello = self._exchange(b"", START_TIMEOUT_S)
        except (OSError, WorkFailed, WorkTimeout) as error:
            raise InfrastructureError(f"the worker process ({' '.join(command[1:])}) did not start: {error}") from error
        if "value" not in hello:
            raise InfrastructureError(f"the worker process ({' '.join(command[1:])}) did not start: {hello['error']}")

    def call(self, function: str, *arguments: Any, timeout_s: float) -> Any:
        """The result of ``function(*arguments)``; arguments and result are what :func:`pack` can carry.

        Raises :class:`WorkFailed` or :class:`WorkTimeout`; after a timeout or a death the worker is gone.
        """
        try:
            request = json.dumps([function, pack(arguments), timeout_s]).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise WorkFailed(f"TypeError: arguments must be texts, bytes, numbers or lists of them ({error})") from None
        reply = self._exchange(request + b"\n", timeout_s)
        if "error" in reply:
            raise WorkFailed(reply["error"])
        return unpack(reply["value"])

    def close(self) -> None:
        """Kill the process; idempotent."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _exchange(self, request: bytes, timeout_s: float) -> dict[str, Any]:
        """Write ``request`` and read one line, all before the deadline."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        deadline = time.monotonic() + timeout_s
        try:
            _write(stdin.fileno(), request, deadline)
            reply = _read_line(stdout.fileno(), deadline)
        except (WorkTimeout, OSError, EOFError) as error:
            self.close()
            if isinstance(error, WorkTimeout):
                raise
            raise WorkFailed("the process died (out of memory or a crash)", died=True) from None
        result: dict[str, Any] = json.loads(reply)
        return result


class WorkerPool:
    """At most ``size`` workers, started when first needed and kept for the next call. Thread- and fork-safe."""

    def __init__(self, role: str, size: int) -> None:
        self._role = role
        self._size = size
        self._inherited: list[Worker] = []
        self._start()
        atexit.register(self.close)

    def warm(self) -> None:
        """Start a worker unless one is idle or none may be added, so that the next call need not wait for it."""
        self._leave_parent()
        if not self._idle and self._free.acquire(blocking=False):
            try:
                self._idle.append(Worker(self._role))
            finally:
                self._free.release()

    def call(self, function: str, *arguments: Any, timeout_s: float) -> Any:
        """As :meth:`Worker.call`, on a free worker; waiting for one, or for its start, is not counted."""
        self._leave_parent()
        with self._free:
            worker = self._idle.pop() if self._idle else Worker(self._role)
            try:
                result = worker.call(function, *arguments, timeout_s=timeout_s)
            except WorkTimeout:
                raise
            except WorkFailed as error:
                if error.died or error.args[0].startswith("MemoryError"):
                    worker.close()
                else:
                    self._idle.append(worker)
                raise
            except BaseException:
                worker.close()  # interrupted half-way: its next reply would belong to this call
                raise
            self._idle.append(worker)
            return result

    def close(self) -> None:
        """Kill the idle workers of this process."""
        if self._pid == os.getpid():
            while self._idle:
                self._idle.pop().close()

    def _leave_parent(self) -> None:
        if self._pid != os.getpid():
            # A forked child must neither use nor collect its parent's processes.
            self._inherited += self._idle
            self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._idle: list[Worker] = []
        self._free = threading.BoundedSemaphore(self._size)


def confine(memory_bytes: int) -> None:
    """No files written, no processes started, no core dumps, bounded memory: from here on the process only computes.

    ``memory_bytes`` is the address space it may add to what its imports took.
    """
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory_bytes, used + memory_bytes))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


def pack(value: Any) -> Any:
    """``value`` as JSON data.

    A dict becomes ``{"dict": pairs}``, since its keys may be numbers; bytes ``{"bytes": base64}``; a tuple a list.
    """
    if isinstance(value, dict):
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode("ascii")}
    return [pack(item) for item in value] if isinstance(value, list | tuple) else value


def unpack(value: Any) -> Any:
    """The inverse of :func:`pack`, up to tuples."""
    if isinstance(value, dict) and "bytes" in value:
        return base64.b64decode(value["bytes"])
    if isinstance(value, dict):
        return {unpack(key): unpack(item) for key, item in value["dict"]}
    return [unpack(item) for item in value] if isinstance(value, list) else value


def _write(fd: int, data: bytes, deadline: float) -> None:
    """All of ``data``: a large request does not fit into the pipe and waits for the reader."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    view = memoryview(data)
    while view:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise WorkTimeout
        view = view[os.write(fd, view[: select.PIPE_BUF]) :]  # a ready pipe takes this much without blocking


def _read_line(fd: int, deadline: float) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    line = bytearray()
    while not line.endswith(b"\n"):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise WorkTimeout
        chunk = os.read(fd, 65536)
        if not chunk:
            raise EOFError
        line += chunk
    return bytes(line)


def _environment() -> dict[str, str]:
    """No secrets of the caller's, its import path, and one hash seed: SymPy's order of terms must not vary."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "MONTY_BIN") if name in os.environ}
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return kept | {"PYTHONPATH": path, "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
