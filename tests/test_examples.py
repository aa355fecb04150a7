"""The README shows the examples as they are, and they run as they are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- (examples/\w+\.py) -->\n```python\n(.*?)```", re.DOTALL)


def run(example: str, tmp_path: Path) -> str:
    """Run an example from a copy of the tree's top, so that nothing is written into the tree."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_shows_every_python_example_verbatim() -> None:
    shown = dict(BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    files = {f"examples/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "examples").glob("*.py")}
    assert shown == files


def test_a_new_environment(tmp_path: Path) -> None:
    assert run("examples/new_environment.py", tmp_path).splitlines() == [
        "How many bolts are there?",
        "'count: screws' -> 'Error: no screws here, only bolts, nuts', reward 0.0",
        "'count: bolts' -> '120', reward 0.0",
        "'answer: 120' -> '120', reward 1.0",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("example", ["train_math", "custom_teacher"])
def test_training_examples(example: str, tmp_path: Path) -> None:
    out = run(f"examples/{example}.py", tmp_path)
    folder = tmp_path / next(line for line in out.splitlines() if line.startswith("runs/"))
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert (folder / "transcripts.html").is_file()
