"""The README shows the examples as they are, and they run as they are."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ovd_gym import train
from ovd_gym.config_files import load_config

ROOT = Path(__file__).resolve().parents[1]
SEARCH = ROOT / "examples" / "search"
BLOCK = re.compile(r"<!-- (examples/\w+\.py) -->\n```python\n(.*?)```", re.DOTALL)


def run(example: str, tmp_path: Path, *arguments: str) -> str:
    """Run an example from a copy of the tree's top, so that nothing is written into the tree."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run([sys.executable, example, *arguments], cwd=tmp_path, capture_output=True, text=True)
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
    assert (folder / "report.html").is_file()


def test_a_searcher_is_made_warmed_up_and_trained(tmp_path: Path) -> None:
    few = ("--copying", "2", "--reading", "2", "--recall", "2", "--pages", "60")
    run("examples/search/tiny_searcher.py", tmp_path, "model", *few)
    model = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert (model.get("bos_token_id"), model["eos_token_id"], model.get("pad_token_id")) == (None, 0, None)
    world = {"env.options.task_options.size": 200, "env.options.task_options.count": 20, "checkpoint_every": 1}
    held_out = {"evaluation.episodes": 4, "evaluation.options.task_options.size": 200, "evaluation.every": 0}
    few_questions = {"evaluation.options.task_options.count": 4}
    less = {**world, **held_out, **few_questions, "steps": 1, "learner.warmup_steps": 0}
    imitated = train(
        SEARCH / "warm_start.yaml",
        student=str(tmp_path / "model"),
        settings={**less, "rollout.tasks_per_step": 16, "run_dir": str(tmp_path / "warm")},
    )
    assert imitated.steps == 1
    done = train(
        SEARCH / "train.yaml",
        student=str(tmp_path / "warm" / "model"),
        settings={**less, "rollout.tasks_per_step": 2, "rollout.group_size": 2, "run_dir": str(tmp_path / "train")},
    )
    (row,) = (json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines())
    assert row["invalid_share"] == 0.0
    assert len(done.evaluations) == 2


def test_the_searcher_trains_and_is_tested_in_worlds_that_its_model_was_not_made_from() -> None:
    made = runpy.run_path(str(SEARCH / "tiny_searcher.py"))["WORLDS"]
    configs = [load_config(SEARCH / name, {"student.model": "any"}) for name in ("warm_start.yaml", "train.yaml")]
    tested: set[object] = set()
    trained: set[object] = set()
    for config in configs:
        assert config.evaluation is not None
        for found, options in ((trained, config.env.options), (tested, config.evaluation.options)):
            world = options["task_options"]
            assert isinstance(world, dict)
            found.add(world["world_seed"])
    assert len(tested) == 1
    assert not tested & (trained | set(made))
    assert not trained & set(made)
