"""Worker processes: what untrusted work prints, and what was interrupted, never becomes another call's reply."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from ovd_gym.envs import processes
from ovd_gym.envs.processes import Worker, WorkerPool

ROLE = """
import os
def role():
    return {"say": say}
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


def interrupted(fd: int, deadline: float) -> bytes:
    raise KeyboardInterrupt
