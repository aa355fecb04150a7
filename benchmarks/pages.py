"""How much of real pages is read, and how fast: ``python benchmarks/pages.py [DATA] [--json PATH]``.

DATA is a file of annotated pages (JSON lines, gzip; fields ``html``, ``encoding``, and ``with`` and ``without`` or
``expected_text``). Pages go through the same worker process as in training, one after the other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from ovd_gym.envs.web_search.base import Page
from ovd_gym.envs.web_search.extract import ExtractLimits, extract
from ovd_gym.envs.web_search.fetch import Fetched

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "html" / "pages_cc.jsonl.gz"


class Reading(NamedTuple):
    """One page, as annotated and as read."""

    row: dict[str, Any]
    page: Page
    seconds: float


def main() -> None:
    """Read all pages and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", type=Path, default=DATA, help="annotated pages")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    if not arguments.data.is_file():
        parser.error(f"{arguments.data}: no such file; name one with annotated pages")
    with gzip.open(arguments.data, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    read(rows[0])  # the first call starts the worker process
    results = measure([read(row) for row in rows])
    show(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def read(row: dict[str, Any]) -> Reading:
    """The page in ``row``, through the worker process."""
    body = row["html"].encode(row["encoding"])
    started = time.perf_counter()
    page = extract(
        Fetched(row.get("url") or "https://example.org/", "text/html", row["encoding"], body), ExtractLimits()
    )
    return Reading(row, page, time.perf_counter() - started)


def measure(readings: list[Reading]) -> dict[str, Any]:
    """Rates over all segments, words over the pages with an expected text, times over all pages."""
    kept = [plain(s) in plain(r.page.text) for r in readings for s in r.row.get("with") or []]
    dropped = [plain(s) not in plain(r.page.text) for r in readings for s in r.row.get("without") or []]
    words = [
        (set(r.row["expected_text"].split()), set(r.page.text.split())) for r in readings if r.row.get("expected_text")
    ]
    milliseconds = [1000 * r.seconds for r in readings]
    return {
        "pages": len(readings),
        "wanted segments kept": f"{sum(kept)}/{len(kept)} = {np.mean(kept):.1%}",
        "unwanted segments dropped": f"{sum(dropped)}/{len(dropped)} = {np.mean(dropped):.1%}",
        "expected words kept, mean": f"{np.mean([len(e & got) / len(e) for e, got in words]):.1%}",
        "words that are expected, mean": f"{np.mean([len(e & got) / len(got) for e, got in words]):.1%}",
        "ms a page, median / max": f"{np.median(milliseconds):.1f} / {max(milliseconds):.1f}",
        "trafilatura": version("trafilatura"),
    }


def plain(text: str) -> str:
    """``text`` with single blanks."""
    return " ".join(text.split())


def show(results: dict[str, Any]) -> None:
    """Print ``results`` as a table."""
    table = Table("what", "measured")
    for name, value in results.items():
        table.add_row(name, str(value))
    Console().print(table)


if __name__ == "__main__":
    main()
