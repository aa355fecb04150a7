"""How fast and how safe the math world's tools are: ``python benchmarks/tools.py [--json PATH]``.

Measures Python tool calls on one core beside a fresh ``python -c`` per call, environment steps of 64 concurrent
episodes, and hostile calls with the session's state after each.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ovd_gym.actions import get_format
from ovd_gym.envs.math_qa import MathEnv, Sandbox, SandboxLimits, reasoning_gym_tasks
from ovd_gym.errors import ToolError
from ovd_gym.records import ToolCall

HOSTILE = {
    "infinite loop": "while True: pass",
    "endless output": "while True: print('spam')",
    "10 GB allocation": "'a' * 10**10",
    "huge power": "10 ** 10**9",
    "fork": "import os; os.fork()",
    "file read": "open('/etc/passwd').read()",
    "network": "import socket; socket.create_connection(('example.com', 80))",
    "endless sympy": "import sympy; sympy.factorint((10**44 + 31) * (10**46 + 121) * (10**41 + 109))",
}


def main() -> None:
    """Run all measurements and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=5000, help="Python tool calls to time")
    parser.add_argument("--episodes", type=int, default=64, help="concurrent environments")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    with one_core():
        calls = {name: time_calls(code, arguments.calls) for name, code in CALLS.items()}
        calls["38 * 74, fresh python -c"] = time_subprocesses(20)
    results = {
        "machine": machine(),
        "calls": calls,
        "environment": time_environments(arguments.episodes, turns=20),
        "hostile": {name: time_hostile(code) for name, code in HOSTILE.items()},
    }
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


CALLS = {
    "38 * 74": "38 * 74",
    "loop of 100 with print": "total = 0\nfor i in range(100):\n    total += i * i\nprint(total)",
    "sympy.gcd(12, 18)": "import sympy\nsympy.gcd(12, 18)",
}


def time_calls(code: str, count: int) -> dict[str, float]:
    """Rate and latency of one session running ``code`` again and again."""
    with Sandbox() as sandbox:
        sandbox.run(code)
        return statistics(lambda: sandbox.run(code), count)


def time_subprocesses(count: int) -> dict[str, float]:
    """The baseline: an interpreter per call, without any limits."""
    command = [sys.executable, "-I", "-c", "print(38 * 74)"]
    return statistics(lambda: subprocess.run(command, capture_output=True, check=True), count)


def statistics(work: Callable[[], Any], count: int) -> dict[str, float]:
    """calls_per_s, p50_ms and p99_ms of ``count`` runs of ``work``."""
    seconds = np.empty(count)
    for k in range(count):
        started = time.perf_counter()
        work()
        seconds[k] = time.perf_counter() - started
    return {
        "calls_per_s": count / float(seconds.sum()),
        "p50_ms": 1e3 * float(np.quantile(seconds, 0.5)),
        "p99_ms": 1e3 * float(np.quantile(seconds, 0.99)),
    }


def time_environments(episodes: int, turns: int) -> dict[str, float]:
    """Steps a second of ``episodes`` environments taking turns in one process; first steps and resets included."""
    tasks = reasoning_gym_tasks("chain_sum", size=1000)
    envs = [MathEnv(tasks, max_turns=turns + 1) for _ in range(episodes)]
    action = get_format("hermes").render(ToolCall(name="python", arguments={"code": "38 * 74"}))
    started = time.perf_counter()
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    for _ in range(turns):
        for env in envs:
            env.step(action)
    for env in envs:
        answer = ToolCall(name="answer", arguments={"text": env.task.answers[0]})
        assert env.step(env.action_format.render(answer))[1] == 1.0
    seconds = time.perf_counter() - started
    for env in envs:
        env.close()
    return {"episodes": episodes, "steps_per_s": episodes * (turns + 1) / seconds}


def time_hostile(code: str) -> dict[str, Any]:
    """Seconds until the call was refused, whether the session works after it, and whether its variables are kept."""
    with Sandbox(SandboxLimits(time_s=1.0)) as sandbox:
        sandbox.run("import sympy; sympy.gcd(2, 4); kept = 7")
        started = time.perf_counter()
        try:
            outcome = f"returned {sandbox.run(code)[:60]!r}"
        except ToolError as error:
            outcome = str(error).splitlines()[-1][:100]
        seconds = time.perf_counter() - started
        with contextlib.suppress(ToolError):
            return {"seconds": seconds, "outcome": outcome, "alive": True, "kept": sandbox.run("kept") == "7"}
        return {"seconds": seconds, "outcome": outcome, "alive": sandbox.run("1 + 1") == "2", "kept": False}


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Pin this process, and those it starts, to one core where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    packages = ("ovd-gym", "gymnasium", "pydantic-monty", "math-verify", "sympy", "reasoning-gym")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def show(results: dict[str, Any]) -> None:
    """Print ``results`` as tables."""
    console = Console()
    console.print("  ".join(f"{key} {value}" for key, value in results["machine"].items()))
    table = Table("one core", "calls/s", "p50 ms", "p99 ms")
    for name, row in results["calls"].items():
        table.add_row(name, f"{row['calls_per_s']:,.0f}", f"{row['p50_ms']:.3f}", f"{row['p99_ms']:.3f}")
    console.print(table)
    environment = results["environment"]
    console.print(f"{environment['episodes']} concurrent episodes: {environment['steps_per_s']:,.0f} steps/s")
    table = Table("hostile call (limit 1 s)", "seconds", "session alive", "variables kept", "outcome")
    for name, row in results["hostile"].items():
        table.add_row(name, f"{row['seconds']:.2f}", str(row["alive"]), str(row["kept"]), row["outcome"])
    console.print(table)


if __name__ == "__main__":
    main()
