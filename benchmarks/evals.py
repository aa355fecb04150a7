"""Whether ``ovd-gym eval`` gives the figures that are known: ``python benchmarks/evals.py [--out FOLDER]``.

On the closed sets in ``../shared/data/qa``, with the scripted searchers:

* right answers of one search and of somebody who knows the titles: those of ``benchmarks/scripted.py``, which plays
  without any of the machinery here;
* the share of questions whose answer stands in the first 5 passages of one search: that of ``benchmarks/search.py``,
  here read off the transcripts of an agent that opens all five;
* an evaluation that is killed after half of its batches and goes on: byte for byte that of one that was not.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ovd_gym.eval_results import Figures
from ovd_gym.records import load_jsonl

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "qa"
SETS = ("hotpotqa", "2wikimultihopqa", "musique", "nq_open")
ROOM = "ovd_gym/Search-v0 max_turns=20 max_tokens=100000"
AGENTS = {
    "question alone": ("follow_questions open_top=1", "em", " having=gold_titles"),
    "titles": ("follow_titles open_top=1", "em", " having=gold_titles"),
    "first 5 hold an answer": ("follow_questions top_k=5 open_top=5", "found", ""),
}
"""Searcher, what is read off, and which questions."""
KNOWN = {
    "question alone": (5.1, 0.0, 4.3, 11.3),
    "titles": (90.8, 83.3, 89.1, 98.1),
    "first 5 hold an answer": (67.4, 61.6, 30.4, 91.4),
}
"""Percent, in the order of ``SETS``; the last row is without questions answered by yes or no."""
TOLERANCE = {"em": 0.05, "found": 1.5}
"""Points. ``found`` compares whole words, ``benchmarks/search.py`` any part of a text."""


def main() -> None:
    """Run all of it; exit code 1 if a figure is another one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the evaluations here")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        parser.exit(2, f"no questions: {DATA.name} is not where it should be\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.out or Path(scratch)
        found = {name: measure(name, folder) for name in AGENTS}
        same = killed_and_resumed(folder)
    faults = show(found) + ([] if same else ["an evaluation that was killed ended with other figures"])
    for line in faults or ["all figures are the known ones, and a killed evaluation ends with the same"]:
        print(line)
    sys.exit(1 if faults else 0)


def command(name: str, out: Path) -> list[str]:
    """The command line of one agent on all sets."""
    agent, _, which = AGENTS[name]
    data = [("--data", f"closed:{part} data_folder={DATA}{which}") for part in SETS]
    start = [sys.executable, "-m", "ovd_gym", "eval", f"ovd_gym.agents.searchers:{agent}", "--env", ROOM]
    return [*start, *(word for pair in data for word in pair), "--out", str(out)]


def measure(name: str, folder: Path) -> list[float]:
    """Percent per set; of ``found`` without the questions that are answered by yes or no, which stand on no page."""
    out = folder / name.replace(" ", "-")
    subprocess.run(command(name, out), check=True, stdout=subprocess.DEVNULL)
    key = AGENTS[name][1]
    results = list(load_jsonl(out / "results.jsonl", Figures))
    if key == "em":
        return [100 * one.shares[key].value for one in results]
    return [100 * found_in(out / one.data) for one in results]


def found_in(path: Path) -> float:
    """Share of the questions not answered by yes or no whose answer stood in what was read."""
    from ovd_gym.evals import Episode
    from ovd_gym.records import Trajectory

    trajectories = load_jsonl(path / "trajectories.jsonl", Trajectory)
    closed = {t.task.id for t in trajectories if {a.casefold() for a in t.task.answers} <= {"yes", "no"}}
    values = [e.measures["found"] for e in load_jsonl(path / "episodes.jsonl", Episode) if e.question not in closed]
    return sum(values) / len(values)


def killed_and_resumed(folder: Path) -> bool:
    """Kill an evaluation when half of the last set's batches are there, go on, and compare with the whole one."""
    whole, torn = folder / "titles", folder / "killed"
    batches = torn / f"closed-{SETS[-1]}" / "batches.jsonl"
    half = len((whole / batches.relative_to(torn)).read_text().splitlines()) // 2
    with subprocess.Popen(command("titles", torn), stdout=subprocess.DEVNULL) as process:
        while not batches.exists() or len(batches.read_text().splitlines()) < half:
            assert process.poll() is None, "over before it could be killed"
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    subprocess.run(command("titles", torn), check=True, stdout=subprocess.DEVNULL)
    names = ["results.jsonl", "results.md", *(f"closed-{name}/trajectories.jsonl" for name in SETS)]
    return all((whole / name).read_bytes() == (torn / name).read_bytes() for name in names)


def show(found: dict[str, list[float]]) -> list[str]:
    """Print the figures beside the known ones; those that differ, in words."""
    table = Table("percent, here (known)", *SETS)
    faults = []
    for name, values in found.items():
        table.add_row(name, *(f"{value:.1f} ({known:.1f})" for value, known in zip(values, KNOWN[name], strict=True)))
        for part, value, known in zip(SETS, values, KNOWN[name], strict=True):
            if abs(value - known) > TOLERANCE[AGENTS[name][1]]:
                faults.append(f"{name}, {part}: {value:.1f}, known is {known:.1f}")
    Console(width=120).print(table)
    return faults


if __name__ == "__main__":
    main()
