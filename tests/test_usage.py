"""What a process takes of its machine."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

KEPT = """
import os
from pathlib import Path
from ovd_gym.usage import give_memory_back

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

pieces = [bytearray(100_000) for _ in range(2_000)]
for piece in pieces:
    piece[::4096] = bytes(len(piece[::4096]))
del pieces[:-1]  # the last one keeps the others' pages from going back by themselves
before = resident_mb()
give_memory_back()
print(before - resident_mb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library keeps no pages of its own")
def test_freed_memory_goes_back_to_the_system() -> None:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", KEPT], capture_output=True, text=True, env=env)
    assert float(done.stdout) > 150, done.stderr  # MB, of 200
