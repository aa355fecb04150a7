"""Code runs as printed, and configurations load.

A name of a model of the hub stands for a tiny one here, a file of data for a few attempts.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml
from shown import SECTIONS, STAND_INS, STUDENT, Block, blocks, make_env, make_known_teacher, read

from ovd_gym import load_config, make_teacher
from ovd_gym.bridges.sessions import Heard, Session, SessionLimits, Stock
from ovd_gym.build import merge_options
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.plugins import check_options, find_function


class Config(NamedTuple):
    """Stands in for TRL's; ``test_bridge_trl.py`` has its own trainer train."""

    max_steps: int


class Trainer:
    """Stands in for TRL's: plays one episode of each of two questions with what it was given."""

    def __init__(self, model: str, *, args: Config, train_dataset: Any, environment_factory: Any) -> None:
        self.rows, self.factory = [train_dataset[i] for i in range(2)], environment_factory

    def train(self) -> None:
        for row in self.rows:
            episode = self.factory()
            episode.reset(**row)
            episode.answer(text="?")
            assert episode.get_reward() is not None


class Client:
    """Stands in for OpenEnv's: a session without a server; ``test_bridge_openenv.py`` has both of its own."""

    def __init__(self, base_url: str) -> None:
        options = {"task_options": {"size": 2}, "action_format": "line"}
        self.stock = Stock("ovd_gym/Math-v0", options, SessionLimits(sessions=1))
        self.session = Session(self.stock)

    def sync(self) -> Client:
        return self

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()
        self.stock.close()

    def reset(self, **options: object) -> SimpleNamespace:
        return self._heard(self.session.reset(options))

    def step(self, action: dict[str, str]) -> SimpleNamespace:
        return self._heard(self.session.step(action["text"]))

    def _heard(self, heard: Heard) -> SimpleNamespace:
        observation = heard._asdict() | {"messages": list(heard.messages)}
        return SimpleNamespace(observation=observation, reward=heard.reward, done=heard.status != "running")


OTHERS: dict[str, dict[str, Any]] = {
    "trl": {"GRPOConfig": Config, "GRPOTrainer": Trainer},
    "openenv.core": {"GenericEnvClient": Client},
}
"""Packages that are trained and served with in environments of their own, as far as the pages use them."""
GIVEN: dict[str, Any] = {"student": lambda messages: "answer: 1"}
"""What a page says that its reader has."""


ABSENT = {"ovd_gym.bridges.verifiers": "verifiers", "ovd_gym.bridges.verl": "verl"}
"""Modules that need a package which cannot be installed beside the others: without it their names are looked up."""


def names_exist(block: Block, module: str) -> None:
    """What the block imports from ``module`` is defined there, and its functions have the arguments that it gives."""
    code, tree = ast.parse(block.text), ast.parse(read(f"{module.replace('.', '/')}.py"))
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    (imported,) = (node for node in ast.walk(code) if isinstance(node, ast.ImportFrom) and node.module == module)
    names = {alias.name for alias in imported.names}
    assert names <= set(defined), block.where
    for call in (node for node in ast.walk(code) if isinstance(node, ast.Call) and ast.unparse(node.func) in names):
        function = defined[ast.unparse(call.func)]
        assert isinstance(function, ast.FunctionDef), block.where
        known = {argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)}
        options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        make_env(ast.literal_eval(call.args[0]), {key: options[key] for key in options if key not in known})
        if "teacher" in options:
            make_teacher(options["teacher"])


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}))
@pytest.mark.usefixtures("here")
def test_python_runs_as_printed(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page one after another, as one script."""
    for name, members in OTHERS.items():
        for part in (name.partition(".")[0], name):
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
        vars(sys.modules[name]).update(members)
    script = ModuleType("__main__")
    vars(script).update(GIVEN)
    monkeypatch.setitem(sys.modules, "__main__", script)
    for block in blocks("python"):
        lacking = [name for name in ABSENT if f"from {name} " in block.text and find_spec(ABSENT[name]) is None]
        if block.page == page and lacking:
            names_exist(block, lacking[0])
        elif block.page == page:
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), vars(script))  # noqa: S102


# Configurations ------------------------------------------------------------------------------------------


def variants(block: Block) -> Iterator[dict[str, Any]]:
    """The block as it stands, then with each line or passage that is commented out in the place of the key it names."""
    lines = block.text.splitlines()
    yield yaml.safe_load(block.text)
    for number, line in enumerate(lines):
        if shown := re.match(r"( *)# (\w+):( |$)", line):
            indent, key = shown[1], shown[2]
            more = takewhile(re.compile(f"{indent}#   ").match, lines[number + 1 :])
            chosen = [text.replace("# ", "", 1) for text in (line, *more)]
            kept = [chosen if re.match(f"{indent}{key}:", text) else [text] for text in lines]
            assert chosen in kept, f"{block.where}: nothing gives way to {line!r}"
            yield yaml.safe_load("\n".join(text for part in kept for text in part))


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.where)
@pytest.mark.usefixtures("here")
def test_configurations_load(block: Block, roomy_folder: Path) -> None:
    for tree in variants(block):
        tree = json.loads(re.sub("|".join(STAND_INS), str(roomy_folder), json.dumps(tree)))
        if isinstance(tree, list):  # agent loops of verl
            for loop in tree:
                module, _, name = loop["_target_"].rpartition(".")
                assert f"class {name}(" in read(f"{module.replace('.', '/')}.py"), block.where
                make_env(loop["env"], loop["options"])
                make_teacher(loop["teacher"])
            continue
        if not set(tree) & set(SECTIONS):  # options of the search environment
            with_port_of_its_own(tree)
            SearchEnv(task_options={"count": 3, "size": 60}, **tree).close()
            continue
        config = load_config(STUDENT | tree)
        if "env" in tree:
            make_env(config.env.id, config.env.options)
        if config.evaluation is not None:
            make_env(config.env.id, merge_options(config.env.options, config.evaluation.options))
        if config.teacher is not None:
            make_known_teacher(config.teacher.name, config.teacher.options)
        if config.demonstrator is not None and config.demonstrator.policy is not None:
            factory = find_function("demonstrator.policy", config.demonstrator.policy)
            check_options("demonstrator", partial(factory, ()), config.demonstrator.options)


def with_port_of_its_own(tree: dict[str, Any]) -> None:
    """A port that is printed may be taken: any free one instead, and a small world."""
    if "port" in tree.get("backend", {}):
        tree["backend"] |= {"port": 0, "size": 60}
