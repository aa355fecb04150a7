"""A folder from elsewhere that is written into: nothing outside of it is changed or deleted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ovd_gym.critique import CritiqueFolder
from ovd_gym.errors import DataError
from ovd_gym.folders import refuse_links
from ovd_gym.recorder import Recorder
from ovd_gym.training import train


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    """A folder of somebody else's, with a file whose last line has no end."""
    folder = tmp_path / "precious"
    folder.mkdir()
    (folder / "step-00009.jsonl").write_text("first\nlast")
    return folder


def untouched(precious: Path) -> bool:
    return [(file.name, file.read_text()) for file in precious.iterdir()] == [("step-00009.jsonl", "first\nlast")]


@pytest.mark.parametrize("name", ["trajectories", "checkpoints", "tensorboard", "metrics.jsonl", "critiques/a"])
def test_a_run_with_a_link_in_it_is_not_resumed(
    tmp_path: Path, precious: Path, run_folder: Callable[..., Recorder], name: str
) -> None:
    """Resuming deletes episodes of unfinished steps, prunes checkpoints and appends: all of that by name."""
    link = run_folder(tmp_path / "run").path / name
    if link.is_dir():
        link.rmdir()
    link.symlink_to(precious)
    with pytest.raises(DataError, match=f"{name} is a link to '.*precious': nothing is written"):
        train(resume=tmp_path / "run")
    assert untouched(precious)


def test_a_run_is_found_behind_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "latest").symlink_to("run")
    refuse_links(*(tmp_path / "latest").glob("*"))


@pytest.mark.parametrize("name", ["attempts.jsonl", "critiques", "batches.jsonl", "measurements.json", "critique.html"])
def test_critiques_are_not_written_through_a_link(tmp_path: Path, precious: Path, name: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).symlink_to(precious / "step-00009.jsonl")
    with pytest.raises(DataError, match="is a link"):
        CritiqueFolder(tmp_path / "out", [])
    assert untouched(precious)
