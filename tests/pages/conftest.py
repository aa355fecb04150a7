"""A place to run what the pages show: what they speak of is there, small."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from shown import DATA, blocks, invoke, read

from ovd_gym import train


@pytest.fixture(scope="session")
def stored(roomy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: the demo with a tiny student, runs, evaluations, attempts, a model that writes pages."""
    home = tmp_path_factory.mktemp("reader")
    (home / "examples").mkdir()
    demo = read("examples/demo.yaml").replace("SmolLM2-135M-Instruct", str(roomy_folder))
    (home / "examples" / "demo.yaml").write_text(demo)
    attempts = "".join(f"{json.dumps(attempt)}\n" for attempt in labelled())
    for name in DATA:
        (home / name).write_bytes(gzip.compress(attempts.encode()) if name.endswith(".gz") else attempts.encode())
    (home / "my_model.py").write_text("def write(messages):\n    return ''\n")
    few = {"steps": 2, "rollout.tasks_per_step": 2, "evaluation.episodes": 4, "run_dir": "runs/demo"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train("examples/demo.yaml", settings=few)
        for run in ("a", "b", "score-reward", "grpo"):
            shutil.copytree("runs/demo", f"runs/{run}")
        for folder in ("a", "b", "before", "after"):
            told = "ovd_gym.agents.searchers:follow_titles"
            invoke("eval", told, "--data", "world count=4 size=60", "--out", f"evals/{folder}")
        invoke("critique", "held_out.jsonl.gz", "--teacher", "math-rules", "--calibrate", "math-rules.json")
        shutil.rmtree("critique")
        patch.syspath_prepend(str(home))
        with forgotten():
            shop(home, roomy_folder)
    return home


def shop(home: Path, model: Path) -> None:
    """The world, tasks, configuration, runs and evaluations of the page that takes a task set to a trained student."""
    (tasks,) = blocks("jsonl")
    world, config = (next(b for b in blocks(kind) if b.page == tasks.page) for kind in ("python", "yaml"))
    (home / "shop.py").write_text(world.text)
    small = config.text.replace("SmolLM2-135M-Instruct", str(model)).replace("episodes: 64", "episodes: 1")
    (home / "run.yaml").write_text(small)
    (home / "train.jsonl").write_text(tasks.text)
    (home / "test.jsonl").write_text('{"question": "How many nails are there?", "answers": ["300"]}\n')
    for name in ("shop", "shop-grpo"):
        train("run.yaml", settings={"steps": 1, "rollout.group_size": 2, "run_dir": f"runs/{name}"})
        invoke("eval", f"runs/{name}", "--out", f"evals/{name}")


@contextmanager
def forgotten() -> Iterator[None]:
    """What is imported from a working folder and registered is forgotten afterwards."""
    ids = set(gymnasium.registry)
    yield
    for module in ("my_model", "shop"):
        sys.modules.pop(module, None)
    for id in set(gymnasium.registry) - ids:
        del gymnasium.registry[id]


def labelled() -> Iterator[dict[str, Any]]:
    """The line that a page shows, with other numbers: right and wrong attempts at five questions."""
    (block,) = blocks("json")
    for number in range(5):
        for answer, first_error in ((str(number + 1), -1), ("7", 0)):
            yield json.loads(block.text) | {
                "id": f"{number}-{answer}",
                "question": f"{number} + 1?",
                "steps": [{"text": f"{number} + 1 = {answer}", "observation": ""}],
                "answer": answer,
                "correct": first_error < 0,
                "first_error": first_error,
                "source": "processbench/gsm8k",
            }


@pytest.fixture
def here(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of it as the working folder."""
    shutil.copytree(stored, tmp_path / "here", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TEACHER_KEY", "a key")
    with forgotten():
        yield


@pytest.fixture
def beside(stored: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same as the working folder of what only reads."""
    monkeypatch.chdir(stored)
    monkeypatch.syspath_prepend(str(stored))
    with forgotten():
        yield
