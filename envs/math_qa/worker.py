"""What the worker processes of the math world can be asked: the roles of :mod:`ovd_gym.envs.worker`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ovd_gym.envs.processes import confine
from ovd_gym.errors import ToolError

__all__ = ["algebra", "sandbox"]

MEMORY_BYTES = 1 << 30


def algebra() -> Mapping[str, Callable[..., Any]]:
    """SymPy functions and the symbolic grader, in a process that only computes."""
    from ovd_gym.envs.math_qa import algebra, grading

    confine(MEMORY_BYTES)
    return {"names": algebra.names, "sympy": algebra.call, "verify": grading.verify}


def sandbox() -> Mapping[str, Callable[..., Any]]:
    """One Python session: ``open`` with its limits, then ``run``."""
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
