"""The command line of searching: results, one-line errors, nothing half-written."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import requests
from typer.testing import CliRunner

from ovd_gym.cli_search import app
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.errors import OvdGymError

ROWS = [
    {"id": "r", "title": "Wilhelm Röntgen", "text": "He discovered X-rays."},
    {"id": "c", "title": "Marie Curie", "text": "She discovered [bold]polonium[/bold].\x1b[31m"},
]
COMMAND = [sys.executable, "-c", "from ovd_gym.cli_search import app; app()"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("corpus.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    return tmp_path


def call(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_build_query_add_info(folder: Path) -> None:
    assert call("index", "build", "wiki", "corpus.jsonl") == "wiki: 2 passages\n"
    shown = call("index", "query", "wiki", "polonium")
    assert shown.startswith("1. Marie Curie  [c]  ")
    assert "She discovered [bold]polonium[/bold]. [31m" in shown
    (hit,) = map(json.loads, call("index", "query", "wiki", "x-rays", "--json").splitlines())
    assert (hit["id"], hit["url"]) == ("r", "doc:r")
    assert call("index", "query", "wiki", "zeppelin") == "nothing matched\n"
    assert len(call("index", "query", "wiki", "discovered", "-k", "1").splitlines()) == 2

    Path("more.jsonl").write_text(
        '{"id": "c", "title": "Curie", "text": "radium"}\n{"id": "z", "title": "Z", "text": ""}'
    )
    assert call("index", "add", "wiki", "more.jsonl") == "wiki: 3 passages, 2 before\n"
    assert "radium" in call("index", "query", "wiki", "curie")

    shown = call("index", "info", "wiki")
    with LocalIndex.open("wiki") as opened:
        assert str(opened.describe()["corpus_hash"]) in shown
    assert "intact        yes" in shown
    assert json.loads(call("index", "info", "wiki", "--json"))["documents"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "build", "new", "missing.jsonl"], "missing.jsonl: no such file or folder"),
        (["index", "build", "new", "bad.jsonl"], "bad.jsonl:1: title: Field required"),
        (["index", "build", "wiki", "corpus.jsonl"], "exists already"),
        (["index", "build", "pictures", "corpus.jsonl", "--overwrite"], "something else than an index"),
        (["index", "add", "new", "corpus.jsonl"], "no such index"),
        (["index", "add", "wiki", "bad.jsonl"], "bad.jsonl:1"),
        (["index", "query", "wiki", "  "], "the query is empty"),
        (["index", "query", "pictures", "x"], "not an index"),
        (["index", "info", "pictures"], "not an index"),
        (["serve-retriever", "pictures"], "not an index"),
    ],
)
def test_errors_are_one_line_and_change_nothing(folder: Path, arguments: list[str], message: str) -> None:
    call("index", "build", "wiki", "corpus.jsonl")
    Path("bad.jsonl").write_text('{"id": "x"}')
    Path("pictures").mkdir()
    Path("pictures", "cat.png").touch()
    with pytest.raises(OvdGymError) as caught:
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir()) == ["bad.jsonl", "corpus.jsonl", "pictures", "wiki"]
    assert os.listdir("pictures") == ["cat.png"]
    assert json.loads(call("index", "info", "wiki", "--json"))["documents"] == 2


def test_help_has_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in (["index", "build"], ["index", "add"], ["index", "query"], ["index", "info"], ["serve-retriever"]):
        assert f"Example: ovd-gym {' '.join(arguments)} wiki" in call(*arguments, "--help")


def test_ctrl_c_leaves_nothing_half_written(folder: Path) -> None:
    os.mkfifo("endless.jsonl")
    command = [*COMMAND, "index", "build", "new", "endless.jsonl"]
    heeding = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores Ctrl-C
    started = subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=heeding)
    # Opening the pipe waits until the build reads from it.
    with started as build, open("endless.jsonl", "w") as corpus:
        for i in range(2000):
            corpus.write(json.dumps({"id": str(i), "title": "T", "text": "x " * 50}) + "\n")
        corpus.flush()
        build.send_signal(signal.SIGINT)
        assert build.wait(timeout=20) == 130
    assert sorted(os.listdir()) == ["corpus.jsonl", "endless.jsonl"]


def test_the_server_says_where_it_is_and_stops_when_told(folder: Path) -> None:
    call("index", "build", "wiki", "corpus.jsonl")
    command = [*COMMAND, "serve-retriever", "wiki", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert line.startswith("2 passages at http://127.0.0.1:")
        address = line.split()[3].removesuffix(";")
        answer = requests.post(address, json={"queries": ["x-rays"]}, timeout=10).json()
        assert answer["result"][0][0]["id"] == "r"
        server.send_signal(signal.SIGTERM)
        _, err = server.communicate(timeout=20)
    assert (server.returncode, err) == (0, "")


def test_an_address_that_is_taken_is_an_error_in_one_line(folder: Path) -> None:
    call("index", "build", "wiki", "corpus.jsonl")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        with pytest.raises(OvdGymError, match="cannot listen on"):
            CliRunner().invoke(app, ["serve-retriever", "wiki", "--port", port], catch_exceptions=False)
