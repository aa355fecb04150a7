"""The worker process: ``python -m ovd_gym.envs.worker ROLE`` answers calls read from standard input.

One request a line, ``[function, arguments, seconds]``; one reply a line, ``{"value": ...}`` or ``{"error": "Type:
text"}``. The first reply, before any request, says whether the process is ready. A role is ``package.module:function``;
the function is called once and returns the functions that can be asked for, by name.

The caller kills a process whose work takes longer than ``seconds``. If the caller itself was killed, nobody is left to
do so: the process then ends by itself, :data:`GRACE_S` later.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ovd_gym.envs.processes import pack, unpack
from ovd_gym.errors import ToolError

__all__ = ["GRACE_S", "main"]

GRACE_S = 2.0


def main(role: str) -> None:
    """Serve until standard input ends."""
    # What untrusted text makes a library print must not reach the protocol.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    functions: Mapping[str, Callable[..., Any]] = {}

    def handle(work: Callable[[], Any]) -> None:
        try:
            reply = json.dumps({"value": pack(work())})
        except ToolError as error:
            reply = json.dumps({"error": str(error)})
        except Exception as error:  # noqa: BLE001  (libraries raise anything; the caller is told type and text)
            reply = json.dumps({"error": f"{type(error).__name__}: {str(error)[:500]}"})
        replies.write(reply.encode() + b"\n")
        replies.flush()

    def start() -> bool:
        nonlocal functions
        module, _, factory = role.partition(":")
        functions = getattr(importlib.import_module(module), factory)()
        return True

    handle(start)
    for line in sys.stdin.buffer:
        function, arguments, seconds = json.loads(line)
        # A thread that needs no interpreter lock: it ends the process also within a call of C that never returns.
        faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True)
        handle(partial(functions[function], *unpack(arguments)))
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(sys.argv[1])
