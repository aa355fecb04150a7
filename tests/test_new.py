"""``ovd-gym new``: what it writes passes its own tests, is found by name, and nothing is ever overwritten."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ovd_gym.cli import app
from ovd_gym.errors import ConfigError
from ovd_gym.scaffold import write_package

ROOT = Path(__file__).resolve().parents[1]
NAMES = {"env": "my-shop", "teacher": "Strict_critic"}


def call(*arguments: str) -> Result:
    done = CliRunner().invoke(app, ["new", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.parametrize("kind", NAMES)
def test_a_package_passes_its_own_tests_and_the_linter(kind: str, tmp_path: Path) -> None:
    name = NAMES[kind]
    output = call(kind, name, "--folder", str(tmp_path)).output
    module = name.replace("-", "_").lower()
    package = tmp_path / name
    written = {
        f"{package / part}" for part in ("README.md", "pyproject.toml", f"{module}.py", f"tests/test_{module}.py")
    }
    assert set(output.splitlines()[:-1]) == written
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    tested = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"]
    done = subprocess.run(tested, cwd=package, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    linted = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I,UP,B,D1", "--ignore", "D107"]
    done = subprocess.run(
        [*linted, "--line-length", "120", "--no-cache", f"{module}.py"], cwd=package, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_a_teachers_entry_point_leads_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = write_package("teacher", NAMES["teacher"], tmp_path)
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == NAMES["teacher"]
    module, _, attribute = project["entry-points"]["ovd_gym.teachers"]["Strict_critic"].partition(":")
    monkeypatch.syspath_prepend(str(package))
    assert callable(getattr(importlib.import_module(module), attribute))
    sys.modules.pop(module)


def test_its_module_is_found_from_its_folder(tmp_path: Path) -> None:
    package = write_package("env", NAMES["env"], tmp_path)
    words = ["eval", "my_shop:play", "--env", "my_shop:MyShop-v0 action_format=line", "--out", str(tmp_path / "out")]
    safe = [sys.executable, "-P", "-m", "ovd_gym", *words]  # -P: as the installed command, which knows no folder
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(safe, cwd=package, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1.000" in done.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../up", "is no name for a package"),
        ("3d", "is no name for a package"),
        ("class", "is no name for a package"),
        ("a b", "is no name for a package"),
        ("json", "there is a module 'json' already"),
        ("ovd-gym", "there is a module 'ovd_gym' already"),
        ("taken", "taken exists already: nothing is overwritten"),
    ],
)
def test_names_that_cannot_be_are_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(ConfigError, match=message):
        write_package("env", name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot write"):
        write_package("env", "my-shop", tmp_path / "file")
