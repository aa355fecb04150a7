"""Training runs side by side, one thread each; what is there already is not run again."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ovd_gym import train


@dataclass(frozen=True)
class Run:
    """One training run: a configuration, its folder, and what is laid over the configuration."""

    config: Path | Mapping[str, Any]
    path: Path
    settings: Mapping[str, Any]


def carry_out(run: Run) -> None:
    """Do ``run``, or what is left of it. What it says goes to a file beside its folder."""
    if (run.path / "model").exists():
        return
    run.path.parent.mkdir(parents=True, exist_ok=True)
    with run.path.with_name(f"{run.path.name}.log").open("a", encoding="utf-8") as log, redirect_stdout(log):
        if run.path.exists():
            train(resume=run.path)
        else:
            train(run.config, settings={**run.settings, "run_dir": str(run.path)})


def machine() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "processor": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def side_by_side(workers: int, *folders: Path) -> ProcessPoolExecutor:
    """A pool of processes of one thread each, which find modules in ``folders``."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, initializer=_one_thread, initargs=folders)


def _one_thread(*folders: Path) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path[:0] = map(str, folders)
