"""Arms side by side: the same configuration, seeds and held-out questions, one run per arm and seed.

Prints held-out accuracy per run, and per arm the mean over seeds with a bootstrap interval; the difference to the
first arm is paired by seed.

Example: python benchmarks/arms.py examples/demo.yaml --arms grpo score-reward --seeds 0 1 2 --out runs/arms
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from rich.console import Console
from rich.table import Table

from ovd_gym import train
from ovd_gym.config import load_config
from ovd_gym.statistics import bootstrap_interval

Result = dict[str, Any]


def run(config: Path, arm: str, seed: int, out: Path, settings: dict[str, Any]) -> Result:
    """One run, or its stored result if it has been made before."""
    folder = out / f"{arm}-{seed}"
    laid = {**settings, "credit": {"arm": arm}, "seed": seed, "run_dir": str(folder)}
    finished = (folder / "model").exists()
    result = train(resume=folder) if folder.exists() and not finished else None
    if not folder.exists():
        result = train(config, settings=laid)
    rows = result.evaluations if result else _rows(folder / "evaluations.jsonl")
    steps = _rows(folder / "metrics.jsonl")
    return {
        "arm": arm,
        "seed": seed,
        "before": rows[0]["accuracy"],
        "after": rows[-1]["accuracy"],
        "reward": float(np.mean([row["reward"] for row in steps])),
        "seconds": sum(row["seconds"] for row in steps),
        "trained_tokens": sum(row["trained_tokens"] for row in steps),
    }


def summarize(results: Sequence[Result], arms: Sequence[str]) -> Table:
    """One row per arm: means over seeds with 95 % intervals, and the paired difference to the first arm."""
    table = Table("arm", "seeds", "held out before", "held out after", "reward while training", f"after - {arms[0]}")
    by = {arm: [r for r in results if r["arm"] == arm] for arm in arms}
    for arm, rows in by.items():
        paired = [a["after"] - b["after"] for a, b in zip(rows, by[arms[0]], strict=True)]
        cells = [_interval([r[key] for r in rows]) for key in ("before", "after", "reward")]
        table.add_row(arm, str(len(rows)), *cells, "" if arm == arms[0] else _interval(paired))
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--arms", nargs="+", default=["grpo", "score-reward"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/arms"))
    parser.add_argument("--set", nargs="*", default=[], help="key=value laid over the configuration of every run")
    chosen = parser.parse_args(arguments)
    settings = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in chosen.set)}
    load_config(chosen.config, settings)
    results = [run(chosen.config, arm, seed, chosen.out, settings) for seed in chosen.seeds for arm in chosen.arms]
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    report = {"command": " ".join(sys.argv), "machine": machine, "results": results}
    (chosen.out / "arms.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    console = Console()
    for r in results:
        console.print(f"{r['arm']:>14} seed {r['seed']}: {r['before']:.3f} -> {r['after']:.3f} in {r['seconds']:.0f} s")
    console.print(summarize(results, chosen.arms))


def _interval(values: Sequence[float]) -> str:
    low, high = bootstrap_interval(values)
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


def _rows(path: Path) -> list[Result]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
