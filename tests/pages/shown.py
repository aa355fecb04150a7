"""What the pages show, taken out of them: blocks, spans of code, command lines; and how their parts are made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import pytest
import typer
from typer.testing import CliRunner

from ovd_gym import make_teacher
from ovd_gym.cli import app
from ovd_gym.config import TrainConfig
from ovd_gym.envs.hub import benchmark_rows
from ovd_gym.envs.math_qa.tasks import BENCHMARKS as MATH
from ovd_gym.errors import ConfigError
from ovd_gym.records import Task

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SECTIONS = TrainConfig.model_fields
STUDENT: dict[str, Any] = {"student": {"model": "m"}}
"""What a configuration must have; a part of one is laid over it."""
STAND_INS = ("SmolLM2-135M-Instruct", "Qwen/QwQ-32B")
"""Models of configurations and of the demo: a tiny one, with random weights, takes their place."""
DATA = (
    *("labels.jsonl", "labelled.jsonl.gz", "held_out.jsonl.gz", "mr_ben.jsonl.gz", "gsm8k_model_solutions.jsonl.gz"),
    *("search_trajectories_hotpotqa.jsonl.gz", "processbench_gsm8k_olympiad_omni.jsonl.gz"),
)
"""Files of attempts that the pages read: ten attempts take their place."""
OPTIONS_ELSEWHERE = ("--enable-scale-out",)
"""Options of programs of others."""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(*languages: str) -> list[Block]:
    found = []
    for page in PAGES:
        text = read(page)
        for match in FENCE.finditer(text):
            found.append(Block(page, text.count("\n", 0, match.start()) + 2, *match.groups()))
    return [block for block in found if not languages or block.language in languages]


def spans() -> Iterator[tuple[str, str]]:
    """Page and text of everything that is set as code within a line."""
    for page in PAGES:
        for text in re.findall(r"`([^`\n]+)`", FENCE.sub("", read(page))):
            yield page, text


def commands() -> list[tuple[str, list[str]]]:
    """Where, and the words of a command."""
    found = []
    for block in blocks("console", "bash"):
        for number, line in enumerate(block.text.replace("\\\n", "").splitlines(), start=block.line):
            assert line.startswith("$ ") == (block.language == "console"), f"{block.page}:{number}: {line}"
            for part in line.removeprefix("$ ").split(" && "):
                words = shlex.split(part, comments=True)
                while re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                found.append((f"{block.page}:{number}", words))
    return found


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def make_env(id: str, options: Mapping[str, Any]) -> None:
    """The environment; in the place of a benchmark of the hub two questions, and its options by name."""
    if (name := options.get("tasks")) in MATH:
        assert set(options.get("task_options", {})) <= set(signature(benchmark_rows).parameters), name
        tasks = [Task(id=str(n), question="?", answers=("1",)) for n in range(2)]
        options = {key: value for key, value in options.items() if key != "task_options"} | {"tasks": tasks}
    gymnasium.make(id, disable_env_checker=True, **options).close()


def make_known_teacher(name: str, options: Mapping[str, Any]) -> None:
    """The teacher; one on vLLM only as far as it can be made without."""
    model = options.get("model")
    if isinstance(model, Mapping) and model["engine"] == "vllm" and find_spec("vllm") is None:
        with pytest.raises(ConfigError, match=r"ovd-gym\[vllm\]"):
            make_teacher(name, **options)
    else:
        make_teacher(name, **options)


def words_of(command: Sequence[str]) -> tuple[Any, list[str]]:
    """The command of ``ovd-gym`` that the words name, and those that are left."""
    found: Any = typer.main.get_command(app)
    rest = list(command)
    while hasattr(found, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in found.commands, f"ovd-gym has no command {rest[0]!r}: {', '.join(found.commands)}"
        found = found.commands[rest.pop(0)]
    return found, rest


def check_script(words: Sequence[str]) -> None:
    """A script of this repository: it is there, and takes these options."""
    source = read(words[0])
    for option in words[1:]:
        assert not option.startswith("--") or f'"{option}"' in source, f"{words[0]} has no option {option}"
