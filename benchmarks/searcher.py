"""Held-out exact match of a student that learns to search: a warm start per seed, then both arms from the same one.

The student of ``examples/search`` is made once; each seed gives a warm start, and each arm goes on from there
with as many episodes. The warm start has a bad habit, by design (:func:`~ovd_gym.agents.searchers.mixed_searcher`).
Held-out questions are about a world of which nobody has seen a name. What is there already is not run again, so seeds
can be run in several processes and summed up in the end.

Example: python benchmarks/searcher.py --json docs/figures/searcher.json --figure docs/figures/searcher.png
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ovd_gym import ScriptedAgent, train
from ovd_gym.agents.scripted import Policy
from ovd_gym.agents.searchers import follow_titles, single_search
from ovd_gym.build import make_envs
from ovd_gym.config_files import load_config
from ovd_gym.envs.base import ToolEnv
from ovd_gym.records import Trajectory, load_jsonl
from ovd_gym.rollout import rollout
from ovd_gym.statistics import bootstrap_interval, wilson_interval

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "search"
ARMS = ("score-reward", "grpo")
WORLD = "evaluation.options.task_options.world_seed"
COLOURS = {"score-reward": "#d55e00", "grpo": "#0072b2", "single search": "#000000", "told the titles": "#009e73"}

Rewards = NDArray[np.float64]
"""[Q] one per held-out question, 0 or 1, in their order."""
Curve = dict[int, Rewards]
"""By training step; the warm start is step 0."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then print and store the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/searcher"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--figure", type=Path, help="draw the learning curves to this file")
    parser.add_argument("--world", type=int, default=3, help="seed of the held-out world; 2 is the one to tune on")
    parser.add_argument("--set", nargs="*", default=[], help="key=value laid over the configuration of the arms")
    chosen = parser.parse_args(arguments)
    settings = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in chosen.set)}
    settings[WORLD] = chosen.world
    model = made_model(chosen.out / "tiny-searcher")
    curves: dict[str, list[Curve]] = {arm: [] for arm in ARMS}
    for seed in chosen.seeds:
        start = warm_start(model, seed, chosen.out, chosen.world)
        for arm in ARMS:
            curves[arm].append(learn(start, arm, seed, chosen.out, settings))
    hops, scripted = baselines(settings)
    asked = {arm: queries([chosen.out / f"{arm}-{seed}" for seed in chosen.seeds]) for arm in ARMS}
    report = {
        "command": " ".join(sys.argv),
        "machine": machine(),
        "seconds": seconds(chosen.out, chosen.seeds),
        "questions": {f"{n} hops": int((hops == n).sum()) for n in sorted(set(hops.tolist()))},
        "baselines": {name: shares(rewards, hops) for name, rewards in scripted.items()},
        "arms": {arm: summary(by_seed, hops) for arm, by_seed in curves.items()},
        "first queries": asked,
        "differences": differences(curves, scripted["single search"]),
    }
    if chosen.json:
        chosen.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if chosen.figure:
        draw(chosen.figure, curves, scripted, asked)
    show(report)


# Runs ---------------------------------------------------------------------------------------------------


def made_model(folder: Path) -> Path:
    """The model, made now if it is not there."""
    if not folder.exists():
        subprocess.run([sys.executable, str(EXAMPLE / "tiny_searcher.py"), str(folder)], check=True)
    return folder


def warm_start(model: Path, seed: int, out: Path, world: int) -> Path:
    """The folder of the student that imitated with ``seed``."""
    run = out / f"warm-{seed}"
    if not run.exists():
        settings = {WORLD: world, "seed": seed, "run_dir": str(run)}
        train(EXAMPLE / "warm_start.yaml", student=str(model), settings=settings)
    return run / "model"


def learn(start: Path, arm: str, seed: int, out: Path, settings: Mapping[str, Any]) -> Curve:
    """Held-out rewards of one run, from ``start`` on."""
    run = out / f"{arm}-{seed}"
    if not run.exists():
        other = {} if arm == ARMS[0] else {"credit": {"arm": arm}}
        laid = {**settings, **other, "seed": seed, "run_dir": str(run)}
        train(EXAMPLE / "train.yaml", student=str(start), settings=laid)
    return {step: rewards_of(trajectories) for step, trajectories in held_out(run).items()}


def held_out(run: Path) -> dict[int, list[Trajectory]]:
    """The held-out episodes of a run, by training step."""
    files = sorted((run / "trajectories").glob("eval-*.jsonl"))
    return {int(file.stem.removeprefix("eval-")): list(load_jsonl(file, Trajectory)) for file in files}


def baselines(settings: Mapping[str, Any]) -> tuple[NDArray[np.int64], dict[str, Rewards]]:
    """[Q] hops of the held-out questions, and the rewards of searchers without a model, in the student's environment.

    ``single search, opened`` may also open the first result, which the student cannot.
    """
    config = load_config(EXAMPLE / "train.yaml", settings)
    assert config.evaluation is not None

    def play(policy: Any, **options: Any) -> Rewards:
        assert config.evaluation is not None
        envs = make_envs(config.env, config.evaluation.episodes, {**config.evaluation.options, **options})
        first = envs[0].unwrapped
        assert isinstance(first, ToolEnv)
        tasks = [first.tasks[i] for i in range(config.evaluation.episodes)]
        hops[:] = [int(str(task.metadata["hops"])) for task in tasks]
        chosen: Policy = policy(tasks)
        return rewards_of(rollout(tasks, envs, ScriptedAgent(chosen)))

    hops: list[int] = []
    everything = {"tools": None, "max_observation_chars": 4000}
    rewards = {
        "single search": play(lambda _: single_search(action_format="line")),
        "single search, opened": play(lambda _: single_search(action_format="line", open_top=1, top_k=1), **everything),
        "told the titles": play(lambda tasks: follow_titles(tasks, action_format="line")),
    }
    return np.array(hops), rewards


def rewards_of(trajectories: Sequence[Trajectory]) -> Rewards:
    """Rewards in order. Raises ValueError if an episode failed: the questions would not be the same ones."""
    if failed := [t for t in trajectories if t.reward is None]:
        raise ValueError(f"{len(failed)} held-out episodes failed: {failed[0].reason}")
    return np.array([t.reward for t in trajectories])


# Figures ------------------------------------------------------------------------------------------------


def shares(rewards: Rewards, hops: NDArray[np.int64]) -> dict[str, list[float]]:
    """Share of right answers with its 95 % Wilson interval, over all questions and by number of hops."""
    parts = {"all": rewards, **{f"{n} hops": rewards[hops == n] for n in sorted(set(hops.tolist()))}}
    return {name: rounded(part.mean(), *wilson_interval(int(part.sum()), len(part))) for name, part in parts.items()}


def summary(by_seed: Sequence[Curve], hops: NDArray[np.int64]) -> dict[str, Any]:
    """Before and after: the mean over seeds, with a bootstrap interval over questions; and every seed's curve."""
    parts = {"all": hops > 0, **{f"{n} hops": hops == n for n in sorted(set(hops.tolist()))}}
    return {
        "before": {name: over_questions([first(c)[part] for c in by_seed]) for name, part in parts.items()},
        "after": {name: over_questions([last(c)[part] for c in by_seed]) for name, part in parts.items()},
        "seeds": [{str(step): round(float(r.mean()), 4) for step, r in curve.items()} for curve in by_seed],
    }


def differences(curves: Mapping[str, Sequence[Curve]], single: Rewards) -> dict[str, list[float]]:
    """Paired by question (and seed): mean and 95 % bootstrap interval over questions."""
    found: dict[str, list[float]] = {}
    for arm, by_seed in curves.items():
        found[f"{arm}: after - before"] = over_questions([last(c) - first(c) for c in by_seed])
        found[f"{arm}: after - single search"] = over_questions([last(c) - single for c in by_seed])
    pairs = zip(*(curves[arm] for arm in ARMS), strict=True)
    found[f"{ARMS[0]} - {ARMS[1]}"] = over_questions([last(one) - last(other) for one, other in pairs])
    return found


def over_questions(by_seed: Sequence[Rewards]) -> list[float]:
    """Mean over seeds and questions, and its bootstrap interval over questions."""
    per_question = np.mean(by_seed, axis=0)
    return rounded(per_question.mean(), *bootstrap_interval(per_question.tolist()))


def queries(runs: Sequence[Path]) -> dict[str, dict[str, float]]:
    """By training step: what was searched for first, where the title has several words; shares over all ``runs``."""
    played = [held_out(run) for run in runs]
    shares_of: dict[str, dict[str, float]] = {}
    for step in sorted(played[0]):
        kinds = Counter(kind for run in played for t in run[step] if (kind := query_kind(t)) is not None)
        shares_of[str(step)] = {kind: round(count / kinds.total(), 3) for kind, count in sorted(kinds.items())}
    return shares_of


def query_kind(trajectory: Trajectory) -> str | None:
    """``title``, its ``first word``, or ``other``; None where a title of one word leaves no difference."""
    titles = trajectory.task.metadata["gold_titles"]
    assert isinstance(titles, list)
    title, call = str(titles[0]), trajectory.steps[0].call
    if " " not in title:
        return None
    query = call.arguments.get("query") if call else None
    return {title: "title", title.split()[0]: "first word"}.get(str(query), "other")


def first(curve: Curve) -> Rewards:
    """Of the warm start."""
    return curve[min(curve)]


def last(curve: Curve) -> Rewards:
    """After the last training step."""
    return curve[max(curve)]


def rounded(*values: float) -> list[float]:
    """To four digits."""
    return [round(float(value), 4) for value in values]


def seconds(out: Path, seeds: Sequence[int]) -> dict[str, list[float]]:
    """Wall-clock time of training by run, evaluations left out."""
    runs = ["warm", *ARMS]
    return {run: [_seconds(out / f"{run}-{seed}" / "metrics.jsonl") for seed in seeds] for run in runs}


def _seconds(path: Path) -> float:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return round(sum(float(row["seconds"]) for row in rows), 1)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


# Showing ------------------------------------------------------------------------------------------------


def draw(
    path: Path,
    curves: Mapping[str, Sequence[Curve]],
    scripted: Mapping[str, Rewards],
    asked: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> None:
    """Held-out accuracy over training steps, beside what was searched for."""
    figure = Figure(figsize=(11, 5), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_accuracy(left, curves, scripted)
    for arm, steps in asked.items():
        for kind, style in (("title", "o-"), ("first word", "s--")):
            shares_by_step = [steps[step].get(kind, 0.0) for step in steps]
            right.plot([int(s) for s in steps], shares_by_step, style, color=COLOURS[arm], label=f"{kind}, {arm}")
    right.set_title("First query, where the title has several words", loc="left", fontweight="bold")
    right.set(ylabel="share of the held-out questions")
    for axes in (left, right):
        axes.set(xlabel="training step", ylim=(0, 1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(loc="best", frameon=False)
    figure.savefig(path, format="png")


def draw_accuracy(axes: Axes, curves: Mapping[str, Sequence[Curve]], scripted: Mapping[str, Rewards]) -> None:
    """Thin lines are seeds, a band is the 95 % interval over questions."""
    for arm, by_seed in curves.items():
        steps = sorted(by_seed[0])
        for curve in by_seed:
            axes.plot(steps, [curve[step].mean() for step in steps], color=COLOURS[arm], alpha=0.3, linewidth=1)
        means, lows, highs = zip(*(over_questions([curve[s] for curve in by_seed]) for s in steps), strict=True)
        axes.plot(steps, means, "o-", color=COLOURS[arm], label=f"{arm}, mean of {len(by_seed)} seeds")
        axes.fill_between(steps, lows, highs, color=COLOURS[arm], alpha=0.15)
    for name in ("single search", "told the titles"):
        axes.axhline(scripted[name].mean(), color=COLOURS[name], linestyle="--", linewidth=1.2, label=name)
    axes.set(ylabel="held-out exact match")
    axes.set_title("Searching, by a student of 0.8 million parameters", loc="left", fontweight="bold")


def show(report: Mapping[str, Any]) -> None:
    """Print the comparison."""
    parts = ["all", *report["questions"]]
    table = Table("who", *parts, title="held-out exact match, 95 % interval")
    for name, row in report["baselines"].items():
        table.add_row(name, *(_interval(row[part]) for part in parts))
    for arm, row in report["arms"].items():
        for when in ("before", "after"):
            table.add_row(f"{arm}, {when}", *(_interval(row[when][part]) for part in parts))
    console = Console()
    console.print(table)
    for arm, steps in report["first queries"].items():
        console.print(f"{arm}, first query before: {steps[min(steps, key=int)]}, after: {steps[max(steps, key=int)]}")
    for name, values in report["differences"].items():
        console.print(f"{name}: {_interval(values)}", highlight=False)


def _interval(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
