"""A page of 5,000 trajectories: ``python benchmarks/report.py [--episodes N] [--keep FOLDER]``.

Writes a made-up run of search-like episodes (five steps, 1,800 tokens, words drawn from 20,000 by Zipf's law, which
compresses worse than language), builds its report and opens it in Chromium: how large is it, how long does it take to
build, when is something on the screen, when can every episode be read, how long does a search through all of them take?
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import tempfile
import time
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import sync_playwright
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ovd_gym.config_files import load_config
from ovd_gym.credit import Credit
from ovd_gym.recorder import Recorder
from ovd_gym.records import Critique, Score, Step, Task, ToolCall, Trajectory
from ovd_gym.report.run import report_on

WORDS = 20_000
GROUP = 4
TURNS = 5
SAID, HEARD, ASKED = 60, 250, 250
"""Tokens of a turn, of what comes back, and of the prompt."""
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync")
TARGETS = {"megabytes": 40.0, "first_paint_s": 3.0}


def main() -> None:
    """Make the run, build the page, open it, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=5000)
    parser.add_argument("--keep", type=Path, help="write run and page to this folder and keep them")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        recorder = made_up(folder / "run", arguments.episodes)
        page, began = folder / "report.html", time.perf_counter()
        report_on({"run": recorder}, page, arguments.episodes)
        built = time.perf_counter() - began
        results: dict[str, Any] = {"episodes": arguments.episodes, "build_s": built, **opened(page)}
        results["megabytes"] = page.stat().st_size / 1e6
    results |= {"python": platform.python_version(), "machine": platform.machine(), "numpy": version("numpy")}
    for name, value in results.items():
        said = f"{value:.2f}" if isinstance(value, float) else str(value)
        print(f"{name:16} {said}" + (f"   (target: below {TARGETS[name]:g})" if name in TARGETS else ""))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def made_up(path: Path, episodes: int) -> Recorder:
    """A run folder with a fifth of its ``episodes`` held out, the others in a hundred training steps."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghijklmnoprstuvwy"), size=n)) for n in rng.integers(2, 10, size=WORDS)]
    words = list(dict.fromkeys(words))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    recorder = Recorder.create(
        path,
        load_config({"student": {"model": "made-up"}, "steps": 100}),
        PreTrainedTokenizerFast(tokenizer_object=tokenizer),  # type: ignore[no-untyped-call]
    )
    share = 1 / np.arange(1, len(words) + 1)
    writer = Writer(rng, words, list(accumulate(share / share.sum())))
    held_out, per_step = episodes // 10, episodes * 8 // 1000
    for step in range(101):
        if step in (0, 100):
            row = {"step": step, "accuracy": 0.2 + step / 200, "low": 0.1 + step / 200, "high": 0.3 + step / 200}
            recorder.record("eval", {**row, "episodes": held_out}, *writer.episodes(f"eval-{step}", held_out, 1)[:2])
        if step:
            row = {"step": step, "reward": step / 120, "score": 3 + step / 25, "entropy": 2 - step / 80, "seconds": 9.0}
            recorder.record("step", row, *writer.episodes(f"step-{step}", per_step, GROUP))
    recorder.close()
    return recorder


class Writer:
    """Writes episodes of random words."""

    def __init__(self, rng: np.random.Generator, words: list[str], cumulated: list[float]) -> None:
        self.rng, self.words, self.cumulated = rng, words, np.asarray(cumulated)

    def ids(self, count: int) -> list[int]:
        """Token ids of ``count`` words."""
        found = np.searchsorted(self.cumulated, self.rng.random(count)).clip(max=len(self.words) - 1)
        return [int(i) for i in found]

    def text(self, ids: list[int]) -> str:
        """The words of ``ids``."""
        return " ".join(self.words[i] for i in ids)

    def episodes(self, label: str, count: int, group: int) -> tuple[list[Trajectory], list[Critique], list[Credit]]:
        """``count`` episodes in groups, each with critique and credit."""
        made = []
        for n in range(count):
            if n % group == 0:
                prompt = self.ids(ASKED)
            made.append(self.episode(f"{label}/{n // group}/{n % group}", f"{label}/{n // group}", prompt))
        critiques = [
            Critique(
                trajectory_id=trajectory.id,
                teacher="made-up",
                steps=tuple(self.score() for _ in trajectory.steps),
                trajectory=self.score(),
            )
            for trajectory in made
        ]
        credits = [Credit(trajectory_id=t.id, advantages=tuple(self.rng.normal(size=TURNS).tolist())) for t in made]
        return made, critiques, credits

    def episode(self, name: str, group: str, prompt: list[int]) -> Trajectory:
        """One episode of five turns."""
        ids, logprobs, steps = list(prompt), [0.0] * len(prompt), []
        for _ in range(TURNS):
            said, heard = self.ids(SAID), self.ids(HEARD)
            text = self.text(said)
            call = ToolCall(name="search", arguments={"query": text[:80]})
            steps.append(Step(text=text, start=len(ids), end=len(ids) + SAID, call=call, observation=self.text(heard)))
            ids += [*said, *heard]
            logprobs += [*(-self.rng.exponential(0.4, size=SAID)).tolist(), *[0.0] * HEARD]
        question = self.text(prompt[:20])
        return Trajectory(
            id=name,
            group_id=group,
            task=Task(id=group, question=question, answers=(self.text(prompt[:2]),)),
            steps=tuple(steps),
            token_ids=tuple(ids),
            logprobs=tuple(logprobs),
            reward=float(self.rng.random() < 0.5),
            answer=self.text(prompt[:2]),
            status="terminated",
        )

    def score(self) -> Score:
        """A digit with a distribution and a reason; one in fifty is missing."""
        if self.rng.random() < 0.02:
            return Score.invalid("timeout", "no reply in 30 s")
        probs = self.rng.dirichlet(np.full(10, 0.5)).tolist()
        mean = min(9.0, sum(digit * p for digit, p in enumerate(probs)))
        rationale = self.text(self.ids(25))
        return Score(value=round(mean), mean=mean, probs=probs, digit_mass=0.99, rationale=rationale)


def opened(page: Path) -> dict[str, Any]:
    """Seconds from the start of loading, in a fresh Chromium, and of a search through all episodes."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no chromium on this machine: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        tab = browser.new_page()
        tab.goto(page.as_uri(), wait_until="commit")
        tab.wait_for_selector("#curves svg")
        curves = tab.evaluate("performance.now()")
        tab.wait_for_selector("html[data-ready]", state="attached")
        ready = tab.evaluate("performance.now()")
        paint = tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        began = time.perf_counter()
        tab.get_by_label("Search").fill("no such words")
        tab.locator(".count", has_text=re.compile("^0 of")).wait_for(timeout=120_000)
        searched = time.perf_counter() - began
        found = {"chromium": browser.version, "first_paint_s": paint / 1000, "curves_s": curves / 1000}
        browser.close()
    return {**found, "ready_s": ready / 1000, "search_s": searched}


if __name__ == "__main__":
    main()
