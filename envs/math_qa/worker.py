"""The worker process: ``python -m ovd_gym.envs.math_qa.worker ROLE`` answers calls read from standard input.

One request a line, ``[function, arguments]``; one reply a line, ``{"value": ...}`` or ``{"error": "Type: text"}``.
The first reply, before any request, says whether the process is ready.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ovd_gym.envs.math_qa.processes import pack, unpack
from ovd_gym.errors import ToolError

__all__ = ["main"]

MEMORY_BYTES = 1 << 30
"""Address space the algebra worker may add to what its imports took."""


def main(role: str) -> None:
    """Serve until standard input ends."""
    # What student text makes a library print must not reach the protocol.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    functions: Mapping[str, Callable[..., Any]] = {}

    def handle(work: Callable[[], Any]) -> None:
        try:
            reply = json.dumps({"value": pack(work())})
        except ToolError as error:
            reply = json.dumps({"error": str(error)})
        except Exception as error:  # noqa: BLE001  (SymPy raises anything; the caller is told type and text)
            reply = json.dumps({"error": f"{type(error).__name__}: {str(error)[:500]}"})
        replies.write(reply.encode() + b"\n")

    def start() -> bool:
        nonlocal functions
        functions = _algebra() if role == "algebra" else _sandbox()
        return True

    handle(start)
    for line in sys.stdin.buffer:
        function, arguments = json.loads(line)
        handle(partial(functions[function], *unpack(arguments)))


def _algebra() -> Mapping[str, Callable[..., Any]]:
    from ovd_gym.envs.math_qa import algebra, grading

    _confine()
    return {"names": algebra.names, "sympy": algebra.call, "verify": grading.verify}


def _sandbox() -> Mapping[str, Callable[..., Any]]:
    from ovd_gym.envs.math_qa.sandbox import Sandbox, SandboxLimits

    session = Sandbox()

    def open_session(limits: dict[str, Any]) -> None:
        nonlocal session
        session = Sandbox(SandboxLimits(**limits))

    def run(code: str) -> list[str]:
        try:
            return ["ok", session.run(code)]
        except ToolError as error:
            return ["refused", str(error)]

    return {"open": open_session, "run": run}


def _confine() -> None:
    """No files written, no processes started, no core dumps, bounded memory: the worker only computes."""
    if sys.platform == "linux":
        with open("/proc/self/statm", encoding="ascii") as statm:
            used = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(limit, (0, 0))


if __name__ == "__main__":
    main(sys.argv[1])
