"""A run on a Ray cluster: the numbers of one process, whatever is killed meanwhile; and nothing is left running."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from ovd_gym.build import Worlds
from ovd_gym.config_files import load_config
from ovd_gym.errors import ConfigError
from ovd_gym.progress import Display
from ovd_gym.records import Trajectory, load_jsonl
from ovd_gym.training import train

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'ovd-gym[ray]'")
from ray.cluster_utils import Cluster  # noqa: E402

pytestmark = pytest.mark.slow
DEMO = Path(__file__).parents[1] / "examples" / "demo.yaml"


class Saboteur(Display):
    """Does something once, in the middle of a rollout."""

    def __init__(self, deed: Callable[[], None] = lambda: None) -> None:
        super().__init__(2, Console(file=io.StringIO()))
        self.deed = deed
        self.done = False

    def phase(self, text: str) -> None:
        # Two workers may finish their first parts of four at the same moment.
        if text.startswith(("rollout: 4 ", "rollout: 8 ")) and not self.done:
            self.done = True
            self.deed()


def settings(model: Path, run_dir: Path, **more: Any) -> dict[str, Any]:
    """The math demo, with a tiny student and fewer episodes."""
    return {
        "student.model": str(model),
        "student.max_turn_tokens": 6,
        "rollout": {"tasks_per_step": 4, "group_size": 4},
        "evaluation.episodes": 4,
        "evaluation.options.task_options.size": 4,
        "learner.learning_rate": 0.01,
        "steps": 2,
        "run_dir": str(run_dir),
        **more,
    }


def episodes(run: Path) -> list[Trajectory]:
    return [t for file in sorted((run / "trajectories").iterdir()) for t in load_jsonl(file, Trajectory)]


def same(one: Path, other: Path) -> None:
    """Token by token the same episodes, and to five digits the same log-probabilities and metrics."""
    for a, b in zip(episodes(one), episodes(other), strict=True):
        assert a.model_copy(update={"logprobs": ()}) == b.model_copy(update={"logprobs": ()})
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    timing = {"seconds", "tokens_per_s", "peak_memory_gib"}
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        rows = [(run / name).read_text(encoding="utf-8").splitlines() for run in (one, other)]
        for a, b in zip(*rows, strict=True):
            left, right = (
                {k: v for k, v in json.loads(row).items() if k not in timing and v is not None} for row in (a, b)
            )
            assert left == pytest.approx(right, abs=1e-5)


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    path = tmp_path_factory.mktemp("runs") / "alone"
    return train(DEMO, settings=settings(tiny_folder, path), display=Saboteur()).path


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """After the test this process has no more children than before, and theirs are gone, too."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    seen: list[psutil.Process] = []
    yield
    seen = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    _, alive = psutil.wait_procs(seen, timeout=20)
    assert not alive, [process.cmdline()[:3] for process in alive]


def workers(kind: str) -> list[psutil.Process]:
    """Ray's processes that run this kind of actor."""
    return [p for p in psutil.process_iter(["cmdline"]) if f"ray::{kind}" in " ".join(p.info["cmdline"] or [])]


def test_workers_and_a_teacher_give_the_numbers_of_one_process(
    alone: Path, tiny_folder: Path, tmp_path: Path, nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker is killed in the middle: what it was playing is played again."""

    def kill() -> None:
        workers("PlayWorker")[0].kill()

    display = Saboteur(kill)
    scale = {"workers": 2, "teachers": 1, "episodes_per_part": 4}
    with caplog.at_level(logging.WARNING):
        spread = train(DEMO, settings=settings(tiny_folder, tmp_path / "ray", scale=scale), display=display)
    assert display.done
    assert "a worker was lost" in caplog.text
    assert spread.steps == 2
    same(alone, spread.path)


def test_a_node_killed_in_the_middle_costs_only_what_it_was_playing(
    alone: Path, tiny_folder: Path, tmp_path: Path, nothing_left: None, caplog: pytest.LogCaptureFixture
) -> None:
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len(ray.nodes()) == 2

        def kill() -> None:
            """A worker outlives its node for a moment, in which it might finish its part."""
            playing = workers("PlayWorker")
            cluster.remove_node(second, allow_graceful=False)
            deadline = time.monotonic() + 60
            while not psutil.wait_procs(playing, timeout=0.1)[0]:
                assert time.monotonic() < deadline, "no worker has ended with its node"

        display = Saboteur(kill)
        scale = {"workers": 2, "address": "auto", "episodes_per_part": 4}
        with caplog.at_level(logging.WARNING):
            spread = train(DEMO, settings=settings(tiny_folder, tmp_path / "ray", scale=scale), display=display)
        assert display.done
        assert "a worker was lost" in caplog.text
        assert not second.any_processes_alive()
        _, alive = psutil.wait_procs(workers("PlayWorker"), timeout=20)
        assert not alive, "all of the run's workers end with it"
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert spread.steps == 2
    same(alone, spread.path)


def test_what_a_worker_cannot_do_is_refused_before_the_run_exists(
    tiny_folder: Path, tmp_path: Path, nothing_left: None
) -> None:
    demonstrator = {"policy": "ovd_gym.agents.searchers:follow_plans"}
    more = {"demonstrator": demonstrator, "credit.arm": "ovd", "scale": {"workers": 1}}
    tree = settings(tiny_folder, tmp_path / "none", **more)
    assert Worlds.of(load_config(DEMO, tree)).tasks
    with pytest.raises(ConfigError, match="has no 'plan' in its metadata"):
        train(DEMO, settings=tree, display=Saboteur())
    assert not (tmp_path / "none").exists()
    assert not ray.is_initialized()


def test_no_cluster_at_the_address(tiny_folder: Path, tmp_path: Path) -> None:
    scale = {"workers": 1, "address": "127.0.0.1:1"}
    with pytest.raises(ConfigError, match=r"no Ray cluster at scale\.address '127.0.0.1:1'"):
        train(DEMO, settings=settings(tiny_folder, tmp_path / "none", scale=scale), display=Saboteur())
