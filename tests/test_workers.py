"""Worker processes: what untrusted work prints, and what was interrupted, never becomes another call's reply."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ovd_gym.envs import processes
from ovd_gym.envs.processes import Worker, WorkerPool

ROLE = """
import os, re
def role():
    return {"say": say, "hang": hang}
def hang(path):
    open(path, "w").write(str(os.getpid()))
    re.match("(a*)*c", "a" * 64)  # holds the interpreter lock for years
def say(text):
    print('{"value": "printed"}', flush=True)
    os.write(1, b'{"value": "written"}\\n')
    return text
"""


@pytest.fixture
def role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "work_of_this_test.py").write_text(ROLE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "work_of_this_test:role"


def test_what_the_work_prints_is_no_reply(role: str) -> None:
    with closing(Worker(role)) as worker:
        assert [worker.call("say", text, timeout_s=20) for text in ("a", "b")] == ["a", "b"]


def test_a_call_that_was_interrupted_leaves_no_reply_behind(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(WorkerPool(role, 1)) as pool:
        assert pool.call("say", "first", timeout_s=20) == "first"
        with monkeypatch.context() as patched:
            patched.setattr(processes, "_read_line", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pool.call("say", "old", timeout_s=20)
        assert pool.call("say", "new", timeout_s=20) == "new"


def test_work_ends_also_when_its_caller_was_killed(role: str, tmp_path: Path) -> None:
    told = tmp_path / "pid"
    caller = f"from ovd_gym.envs.processes import Worker; Worker({role!r}).call('hang', {str(told)!r}, timeout_s=0.5)"
    process = subprocess.Popen(
        [sys.executable, "-c", caller], env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    waited(lambda: told.exists() and told.read_text() != "", 60)
    process.kill()
    process.wait()
    waited(lambda: not running(int(told.read_text())), 60)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"  # Z: it waits to be reaped
    except FileNotFoundError:
        return False


def waited(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def interrupted(fd: int, deadline: float) -> bytes:
    raise KeyboardInterrupt
