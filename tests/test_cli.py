"""The command line: one-line errors, exit codes, help with examples."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import ovd_gym
from ovd_gym.progress import Display


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "ovd_gym", *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def test_help_and_version() -> None:
    assert command("--version").stdout.strip() == ovd_gym.__version__
    shown = command("train", "--help").stdout
    assert "Example: ovd-gym train" in shown
    assert "--resume" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "missing.yaml"], "cannot read the configuration"),
        (["train"], "give either a configuration file or --resume"),
        (["train", "config.yaml", "--set", "lerner.x=1"], "did you mean 'learner'"),
        (["train", "config.yaml", "--set", "nonsense"], "expected key=value"),
        (["train", "config.yaml"], "no-such-model"),
        (["train", "--resume", "runs"], "not a run folder"),
    ],
)
def test_errors_are_one_line_and_write_nothing(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "config.yaml").write_text("student: {model: ./no-such-model}\n")
    result = command(*arguments, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


ACTING = "\x1b[2J\x9b31m\u202e\x07"
"""Clears the screen, colours it, turns the text round, rings."""


def test_no_error_acts_on_the_terminal(tmp_path: Path) -> None:
    result = command("train", "--resume", f"runs{ACTING}", cwd=tmp_path)
    assert result.stderr == "error: runs\\x1b[2J\\x9b31m\\u202e\\x07 is not a run folder (no config.yaml in it)\n"


def test_nothing_that_is_logged_acts_on_the_terminal() -> None:
    code = f"import logging; logging.warning('a page says %s', {ACTING!r}); logging.exception({ACTING!r})"
    start = f"import ovd_gym.cli as cli; cli.app = lambda: exec({code!r}); cli.main()"
    result = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True)
    assert result.stderr.splitlines()[0] == "a page says \\x1b[2J\\x9b31m\\u202e\\x07"
    assert not set(ACTING) & set(result.stderr) - set("[2Jm31")


def test_what_a_run_says_does_not_act_on_the_terminal() -> None:
    screen = io.StringIO()
    Display(1, Console(file=screen, force_terminal=True, width=200)).say(f"teacher {ACTING} [red]x[/red]")
    assert screen.getvalue() == "teacher \\x1b[2J\\x9b31m\\u202e\\x07 [red]x[/red]\n"


def test_a_run_prints_its_results_and_paths_last(tiny_folder: Path, tmp_path: Path) -> None:
    config = {
        "student": {"model": str(tiny_folder), "chat": "plain", "max_turn_tokens": 6},
        "env": {"options": {"action_format": "line", "max_turns": 2}},
        "evaluation": {"episodes": 3, "options": {"task_options": {"seed": 5, "size": 3}}},
        "rollout": {"tasks_per_step": 1, "group_size": 2},
        "steps": 1,
        "run_dir": "out",
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    result = command("train", "config.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *_, before, after, folder, model, curve, page = result.stdout.splitlines()
    assert before.startswith("accuracy after   0 steps: 0.000 [0.000, 0.5")
    assert after.startswith("accuracy after   1 steps")
    assert (folder, model, curve, page) == ("out", "out/model", "out/curve.png", "out/report.html")
    assert (tmp_path / page).is_file()


def test_importing_is_light_and_complete() -> None:
    probe = "import sys, ovd_gym; print([m for m in ('torch', 'transformers', 'sympy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.strip() == "[]"
    assert all(getattr(ovd_gym, name) is not None for name in ovd_gym.__all__)
    with pytest.raises(AttributeError, match="no attribute 'tarin'"):
        ovd_gym.tarin  # noqa: B018
