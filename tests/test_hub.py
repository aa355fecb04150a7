"""Data sets where the hub cannot be reached: said soon, and what was kept is still there."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovd_gym.envs import hub
from ovd_gym.envs.math_qa import hub_tasks, load_tasks
from ovd_gym.errors import DataError

datasets = pytest.importorskip("datasets")
constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No proxy, an empty cache."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of this machine where something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries may use the network; the hub is where nothing listens."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed_port()}")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.usefixtures("online")
def test_a_hub_that_cannot_be_reached_is_found_out_soon() -> None:
    began = time.monotonic()
    with pytest.raises(DataError) as caught:
        load_tasks("gsm8k")
    assert time.monotonic() - began < 10  # the hub's own attempts take 25 seconds
    told = str(caught.value)
    assert told.startswith(
        "cannot load data set 'openai/gsm8k' (config 'main', split 'test'): the hub at http://127.0."
    )
    assert "nothing was kept" in told
    assert "HF_ENDPOINT" in told
    assert "hub:FOLDER" in told
    assert datasets.config.HF_HUB_OFFLINE is False


def test_the_mode_without_network_is_named() -> None:
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set, and nothing was kept"):
        hub_tasks("someone/questions")


@pytest.mark.usefixtures("online")
def test_what_was_kept_is_taken_where_the_hub_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[bool] = []

    def load_dataset(*_: object, **__: object) -> list[dict[str, str]]:
        modes.append(datasets.config.HF_HUB_OFFLINE)
        return [{"question": "1 + 1?", "answer": "2"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert [task.question for task in hub_tasks("someone/questions")] == ["1 + 1?"]
    hub_tasks("json", data_files="https://example.org/questions.jsonl")  # not of the hub, which is not asked for
    assert modes == [True, False]


@pytest.mark.usefixtures("online")
def test_the_hub_is_asked_where_it_answers(monkeypatch: pytest.MonkeyPatch, listening: int) -> None:
    modes: list[bool] = []

    def load_dataset(*_: object, **__: object) -> list[dict[str, str]]:
        modes.append(datasets.config.HF_HUB_OFFLINE)
        return [{"question": "1 + 1?", "answer": "2"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening}")
    hub_tasks("someone/questions")
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
    for proxy in (f"http://127.0.0.1:{listening}", f"127.0.0.1:{listening}"):
        monkeypatch.setenv("https_proxy", proxy)
        hub_tasks("someone/questions")
    assert modes == [False] * 3


@pytest.mark.parametrize(
    ("variable", "proxy", "way"),
    [
        ("https_proxy", "", ("hub.invalid", 443)),
        ("https_proxy", "http://proxy.invalid", ("proxy.invalid", 80)),
        ("https_proxy", "user:word@proxy.invalid:3128", ("proxy.invalid", 3128)),
        ("all_proxy", "socks5h://proxy.invalid", ("proxy.invalid", 1080)),
        ("http_proxy", "http://proxy.invalid", ("hub.invalid", 443)),
    ],
)
def test_the_way_to_the_hub(variable: str, proxy: str, way: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, proxy)
    assert hub._way_to("https://hub.invalid/mirror") == way
    monkeypatch.setenv("no_proxy", "hub.invalid")
    assert hub._way_to("https://hub.invalid/mirror") == ("hub.invalid", 443)
