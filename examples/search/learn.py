"""A student made from scratch is to learn to search: a model, a warm start, reinforcement. Nothing is downloaded.

Example: python examples/search/learn.py runs/searcher
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ovd_gym import train

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the model, let it imitate, then let it try by itself."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where model and runs go; must not exist yet")
    folder: Path = parser.parse_args(arguments).folder
    folder.mkdir(parents=True)
    model, warm = folder / "tiny-searcher", folder / "warm-start"
    subprocess.run([sys.executable, str(HERE / "tiny_searcher.py"), str(model)], check=True)
    train(HERE / "warm_start.yaml", student=str(model), settings={"run_dir": str(warm)})
    run = train(HERE / "train.yaml", student=str(warm / "model"), settings={"run_dir": str(folder / "train")})
    for row in run.evaluations:
        print(f"after {row['step']:>3} steps: {row['accuracy']:.2f} [{row['low']:.2f}, {row['high']:.2f}] held out")
    print(run.path, *run.outputs, sep="\n")


if __name__ == "__main__":
    main()
