"""Trackers: what they are told, that they cannot stop a run or hold it up, and the real packages where installed."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovd_gym import train
from ovd_gym.config_files import load_config
from ovd_gym.errors import ConfigError
from ovd_gym.trackers import PACKAGES, TrackedRun, Trackers

FAKES = {
    "wandb": """
import json, os
def say(*what):
    with open(os.environ["TOLD"], "a") as file:
        print(json.dumps(what), file=file)
def init(*, project, id, name, config, resume, reinit):
    say("wandb", project, id, name, config["steps"], resume)
    return Run()
class Run:
    def log(self, metrics, step): say("wandb", metrics, step)
    def finish(self): say("wandb", "finish")
""",
    "trackio": """
import wandb
def init(project, *, name, config, resume, embed):
    wandb.say("trackio", project, name, resume, embed)
    return Run()
class Run:
    def log(self, metrics, step): raise OSError("https://me:secret@host refused\\n the connection")
""",
    "mlflow": """
import time
def __getattr__(name):
    time.sleep(30)
""",
}
RUN = TrackedRun("abc123def456", "demo", {"steps": 3, "env": {"id": "x"}})


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Packages with the calls that are used, and the file in which they note what they are told."""
    for name, source in FAKES.items():
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("TOLD", str(tmp_path / "told.jsonl"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    yield tmp_path / "told.jsonl"
    for name in FAKES:
        sys.modules.pop(name, None)


def test_figures_are_passed_on_in_order(fakes: Path) -> None:
    trackers = Trackers(["wandb"], RUN)
    for step in range(3):
        trackers.log({"step/reward": step / 2}, step)
    trackers.close()
    told = [json.loads(line) for line in fakes.read_text().splitlines()]
    assert told[0] == ["wandb", "ovd-gym", "abc123def456", "demo", 3, "allow"]
    assert told[1:] == [["wandb", {"step/reward": n / 2}, n] for n in range(3)] + [["wandb", "finish"]]


def test_one_that_fails_is_named_once_without_its_password(fakes: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        trackers = Trackers(["trackio", "wandb"], RUN)
        for step in range(3):
            trackers.log({"x": 1.0}, step)
        trackers.close()
    why = "OSError: https://***@host refused the connection"
    assert caplog.messages == [f"tracker trackio failed and gets nothing more, the run goes on: {why}"]
    assert '["wandb", "finish"]' in fakes.read_text()


def test_one_that_hangs_holds_nobody_up(
    fakes: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ovd_gym.trackers._PATIENCE_S", 0.2)
    began = time.monotonic()
    trackers = Trackers(["mlflow"], RUN)
    for step in range(1000):
        trackers.log({"x": 1.0}, step)
    trackers.close()
    assert time.monotonic() - began < 10
    assert caplog.messages == ["tracker mlflow is still sending: its last figures may be missing"]


def test_a_missing_package_and_a_name_twice_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"tracker 'mlflow' needs a package: pip install mlflow-skinny"):
        Trackers(["mlflow"], RUN)
    with pytest.raises(ConfigError, match="name one twice"):
        load_config({"student": {"model": "m"}, "trackers": ["wandb", "wandb"]})
    with pytest.raises(ConfigError, match=r"trackers\.0: Input should be 'wandb', 'mlflow' or 'trackio'"):
        load_config({"student": {"model": "m"}, "trackers": ["tensorboard"]})


def test_a_run_and_its_continuation_are_tracked_as_one(tiny_folder: Path, tmp_path: Path, fakes: Path) -> None:
    config = {
        "student": {"model": str(tiny_folder), "chat": "plain", "max_turn_tokens": 4},
        "env": {"options": {"action_format": "line", "max_turns": 1, "task_options": {"size": 8}}},
        "rollout": {"tasks_per_step": 1, "group_size": 2},
        "steps": 2,
        "trackers": ["wandb"],
        "run_dir": str(tmp_path / "run"),
    }
    train(config)
    train(resume=tmp_path / "run")
    told = [json.loads(line) for line in fakes.read_text().splitlines()]
    begun = [line[2] for line in told if line[1] == "ovd-gym"]
    assert begun == [(tmp_path / "run" / "tracking_id").read_text()] * 2
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in told if isinstance(line[1], dict)]
    assert [(line[1]["step/reward"], line[2]) for line in logged] == [(row["reward"], row["step"]) for row in rows]


@pytest.mark.parametrize("name", PACKAGES)
def test_the_real_package_offline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip(name, reason="one of the extra trackers")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for _ in range(2):  # a run and its continuation
        trackers = Trackers([name], RUN)
        trackers.log({"step/reward": 0.5}, 1)
        trackers.close()
    assert caplog.messages == []
    wandb, mlflow = "wandb/offline-run-*/*.wandb", "mlruns/*/*/metrics/step/reward"
    pattern = {"wandb": wandb, "mlflow": mlflow, "trackio": "trackio/*.db"}
    assert len(list(tmp_path.glob(pattern[name]))) == (2 if name == "wandb" else 1)
