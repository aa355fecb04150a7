"""Rounds in parts; a pool of Ray actors, in which lost ones are replaced and their jobs done again."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ovd_gym.agents.chat import PlainChat
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.config_files import load_config
from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError, TrainingStopped
from ovd_gym.placement import ScaleConfig
from ovd_gym.players import LocalPlayers, Round, Stage

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'ovd-gym[ray]'")

from ovd_gym.scale.cluster import connected  # noqa: E402
from ovd_gym.scale.pool import Lost, Pool  # noqa: E402

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import a test
slow = pytest.mark.slow  # Ray takes its time to start


class Worker:
    """Does what the test says; what it has done it writes down."""

    def prepare(self, word: str) -> str:
        if word == "never":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "refuses":
            raise ConfigError("no such world")
        return word

    def work(self, log: str, what: str) -> str:
        with Path(log).open("a", encoding="utf-8") as lines:
            lines.write(f"{what} {os.getpid()}\n")
        if what == "kill once" and Path(log).read_text(encoding="utf-8").count(what) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raise":
            raise TrainingStopped("the weights are broken")
        if what == "slow":
            time.sleep(30)
        return what.upper()


def pool_of(size: int, word: str = "ready", cpus: float = 1, timeout_s: float = 300) -> Pool:
    make = ray.remote(Worker).options(num_cpus=cpus)
    return Pool("worker", size, make.remote, lambda actor: actor.prepare.remote(word), timeout_s)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected(ScaleConfig(workers=2), weights=0):
        yield
    assert not ray.is_initialized()


@pytest.fixture
def pool(cluster: None) -> Iterator[Pool]:
    made = pool_of(2)
    yield made
    made.close()


@slow
def test_results_come_in_order_from_several_processes(pool: Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    seen: list[str] = []
    assert pool.run("work", [(log, word) for word in "abcdef"], seen.append) == list("ABCDEF")
    assert sorted(seen) == list("ABCDEF")
    assert len({line.split()[-1] for line in Path(log).read_text().splitlines()}) == 2


@slow
def test_a_killed_worker_is_replaced_and_its_job_done_again(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = str(tmp_path / "log")
    with caplog.at_level(logging.WARNING):
        assert pool.run("work", [(log, word) for word in ("a", "kill once", "b", "c")]) == ["A", "KILL ONCE", "B", "C"]
    done = [line.rsplit(" ", 1)[0] for line in Path(log).read_text().splitlines()]
    assert sorted(done) == ["a", "b", "c", "kill once", "kill once"]
    assert "a worker was lost" in caplog.text
    assert "done again" in caplog.text


@slow
def test_a_job_that_kills_every_worker_is_given_up(pool: Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    good, poison = pool.run("work", [(log, "good"), (log, "poison")])
    assert good == "GOOD"
    assert isinstance(poison, Lost)
    assert poison.reason.startswith("3 workers were lost at it")
    assert Path(log).read_text().count("poison") == 3


@slow
def test_what_a_job_raises_is_raised_and_the_pool_goes_on(pool: Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    with pytest.raises(TrainingStopped, match=r"^the weights are broken$"):
        pool.run("work", [(log, "raise")])
    assert pool.run("work", [(log, "a")]) == ["A"]


@slow
def test_a_run_can_be_left_and_what_was_under_way_is_not_taken_for_the_next(pool: Pool, tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    def leave() -> None:
        if Path(log).exists():
            raise InterruptedError

    with pytest.raises(InterruptedError):
        pool.run("work", [(log, "slow")], on_wait=leave)
    assert pool.run("work", [(log, "a"), (log, "b")]) == ["A", "B"]


@slow
def test_what_the_first_worker_refuses_is_refused(cluster: None) -> None:
    with pytest.raises(ConfigError, match=r"^no such world$"):
        pool_of(1, "refuses")


@slow
def test_workers_that_die_while_they_start_stop_the_run(cluster: None) -> None:
    with pytest.raises(TrainingStopped, match="3 workers in a row were lost while they started"):
        pool_of(1, "never")


@slow
def test_a_cluster_without_room_stops_the_run(cluster: None) -> None:
    with pytest.raises(TrainingStopped, match=r"no worker is ready after 1 s: the cluster has 2 CPUs and"):
        pool_of(1, cpus=8, timeout_s=1)


def test_parts_of_a_round_are_the_round(
    adders: Callable[[int], list[ToolEnv]], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Seeds and ids are those of the whole round, however it is cut."""
    students: list[Any] = []

    def student(messages: Any) -> str:
        students.append(messages)
        return "answer: 1"

    players = LocalPlayers(ScriptedAgent(student, PlainChat(tokenizer)), None, None, Stage(lambda: adders(1)[0]))
    asked = Round(tuple(adders(1)[0].tasks[:5]), (3, 1), "step-00001", 0, group_size=2)
    parts = list(asked.parts(5))
    assert [(part.first, len(part.tasks)) for part in parts] == [(0, 2), (2, 2), (4, 1)]
    assert [len(part.tasks) for part in asked.parts(1)] == [1] * 5
    assert [t for part in parts for t in players.play(part)] == players.play(asked)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"learners": 1}, "scale without workers, teachers or a second learner has no effect"),
        ({"teachers": 1, "gpus_per_worker": 1}, "scale.gpus_per_worker has no effect"),
        ({"learners": 2, "address": "auto"}, "scale.address has no effect"),
        ({"workers": 1, "cpus_per_teacher": 2}, "scale.cpus_per_teacher has no effect"),
        ({"teachers": 1, "workers": 2}, "scale.teachers judge with the teacher"),
    ],
)
def test_what_would_have_no_effect_is_refused(scale: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({"student": {"model": "m"}, "teacher": None, "credit": {"arm": "grpo"}, "scale": scale})
