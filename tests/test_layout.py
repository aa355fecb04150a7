"""The shape of the house: who may import whom, and what the tree looks like. Extend the tables, not the tests."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = ("envs", "agents", "teachers")

LAYERS = (
    # Top to bottom: a module imports from its own layer and from those below it, never from above.
    {"__main__", "cli", "cli_search", "cli_teachers", "cli_fit", "cli_report", "cli_eval", "cli_new", "cli_serve"},
    {"training", "critique", "findings", "fitting", "evals", "eval_results", "scaffold"},
    {"experience", "eval_setup", "pipeline", "scale"},
    {"build", "evaluate", "explain", "bridges"},
    {"demonstration", "players", "sampler", "rollout", "values"}
    | {"learner", "accumulation", "ranks", "recorder", "wrappers", "registry", "report", "progress", "worlds"},
    {"episode", "batch", "sharing", "forward", "losses", "value_head", "credit", "selection", "health"}
    | {"config", "config_files", "config_rules"},
    {"calls", "schedule", "placement"},
    {"llm", "actions", "sanitize", "statistics", "arithmetic", "usage"},
    {"plugins", "provenance", "trackers", "serving", "folders"},
    {"records", "errors"},
)
PLUGIN_USERS = {"", "__main__", "cli", "cli_search", "training", "build", "evaluate", "explain"} | {
    "cli_teachers",
    "cli_fit",
    "fitting",
    "values",
    "critique",
    "findings",
    "evals",
    "eval_setup",
    "experience",
    "pipeline",
    "scale",
    "players",
    "rollout",
    "episode",
    "demonstration",
    "wrappers",
    "worlds",
    "registry",
    "bridges",
}
"""The core modules ("" is the package itself) that may import from the plug-ins; all others are handed objects."""

PLUGIN_IMPORTS = {
    "envs": {"records", "errors", "plugins", "serving", "actions", "sanitize", "arithmetic"},
    "agents": {"records", "errors", "actions", "sanitize", "config", "llm"},
    "teachers": {"records", "errors", "plugins", "actions", "sanitize", "arithmetic", "statistics", "llm"},
}
"""What each plug-in folder sees of the core, besides itself. The three never import each other."""

TORCH = (
    "batch",
    "sharing",
    "forward",
    "accumulation",
    "losses",
    "value_head",
    "learner",
    "explain",
    "recorder",
    "usage",
    "llm.*",
    "ranks",
    "scale.*",
    "agents.student*",
)
"""Modules that import torch when they are imported; all others stay usable without it."""
TORCH_INSIDE_FUNCTIONS = ("training", "evaluate", "experience")

SLOW_TO_IMPORT = ("torch", "transformers", "sympy")
"""What ``import ovd_gym`` must not load."""


class Import(NamedTuple):
    """One import statement's target."""

    target: str
    line: int
    deferred: bool
    """Inside a function: it runs when that is called."""
    typing_only: bool
    """Under ``if TYPE_CHECKING``: it never runs."""


class Module(NamedTuple):
    """One source file, by the name it is imported under without the leading ``ovd_gym.``."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def room(self) -> str:
        """The first part of the name: what the tables speak of."""
        return self.name.partition(".")[0]

    def where(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


def imports_of(node: ast.AST, deferred: bool = False, typing_only: bool = False) -> Iterator[Import]:
    """Every import below ``node``; ``from a import b`` counts as ``a.b``, since ``b`` may be a module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, child.lineno, deferred, typing_only) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from (Import(f"{child.module}.{a.name}", child.lineno, deferred, typing_only) for a in child.names)
        else:
            in_function = deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            in_typing = typing_only or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            yield from imports_of(child, in_function, in_typing)


def read(path: Path, base: Path) -> Module:
    parts = path.relative_to(base).with_suffix("").parts
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return Module(".".join(p for p in parts if p != "__init__"), path, tree, tuple(imports_of(tree)))


def core_files() -> Iterator[Path]:
    """The files of ``ovd_gym`` itself, without what the three links lead to."""
    for entry in sorted((ROOT / "ovd_gym").iterdir()):
        if entry.name not in PLUGINS:
            yield from sorted(entry.rglob("*.py")) if entry.is_dir() else [entry] if entry.suffix == ".py" else []


CORE = [read(path, ROOT / "ovd_gym") for path in core_files()]
PLUGIN_MODULES = [read(path, ROOT) for folder in PLUGINS for path in sorted((ROOT / folder).rglob("*.py"))]
MODULES = CORE + PLUGIN_MODULES
SCRIPTS = [
    read(p, ROOT) for folder in ("tests", "examples", "benchmarks") for p in sorted((ROOT / folder).rglob("*.py"))
]


def rooms_used(module: Module) -> Iterator[tuple[str, Import]]:
    """The rooms of ``ovd_gym`` that ``module`` imports from, itself aside."""
    for item in module.imports:
        package, _, rest = item.target.partition(".")
        room = rest.partition(".")[0]
        if package == "ovd_gym" and room and not room.startswith("__") and room != module.room:
            yield room, item


def layer_of(room: str) -> int:
    """Height of a room; 0 is the ground."""
    for height, rooms in enumerate(reversed(LAYERS)):
        if room in rooms:
            return height
    raise AssertionError(f"ovd_gym/{room} stands in no layer: give it a place in LAYERS")


def expect_none(faults: Iterable[str]) -> None:
    """Fail with every fault at once, one a line."""
    assert not (found := sorted(set(faults))), "\n" + "\n".join(found)


def test_the_core_imports_downwards_only() -> None:
    expect_none(
        f"{module.where(item.line)}: {module.room} must not import {room}, which stands above it"
        for module in CORE
        if module.name
        for room, item in rooms_used(module)
        if room not in PLUGINS and layer_of(room) > layer_of(module.room)
    )


def test_only_the_upper_core_imports_plug_ins() -> None:
    expect_none(
        f"{module.where(item.line)}: {module.room} must not import from {room}"
        for module in CORE
        for room, item in rooms_used(module)
        if room in PLUGINS and module.room not in PLUGIN_USERS
    )


def test_plug_ins_see_only_the_ground_floor_and_never_each_other() -> None:
    expect_none(
        f"{module.where(item.line)}: {module.room} must not import {room}"
        for module in PLUGIN_MODULES
        for room, item in rooms_used(module)
        if room not in PLUGIN_IMPORTS[module.room]
    )


def test_no_two_modules_import_each_other() -> None:
    names = {module.name for module in MODULES}

    def target(item: Import) -> str | None:
        name = item.target.removeprefix("ovd_gym.")
        candidates = (name, name.rpartition(".")[0])
        return next((c for c in candidates if c in names and c), None)

    graph: Mapping[str, set[str]] = {
        m.name: {t for i in m.imports if not i.deferred and not i.typing_only and (t := target(i))} - {m.name}
        for m in MODULES
    }
    TopologicalSorter(graph).prepare()  # raises CycleError naming the circle
    assert graph["records"] == {"errors"}


def test_torch_is_imported_only_where_tensors_are() -> None:
    expect_none(
        f"{module.where(item.line)}: {module.name} must not import torch{'' if item.deferred else ' at the top'}"
        for module in MODULES
        for item in module.imports
        if item.target.partition(".")[0] == "torch" and not item.typing_only
        if not any(fnmatch(module.name, pattern) for pattern in TORCH)
        if not (item.deferred and module.name in TORCH_INSIDE_FUNCTIONS)
    )


def test_plug_ins_are_imported_by_their_full_name() -> None:
    expect_none(
        f"{module.where(item.line)}: import ovd_gym.{item.target}, other distributions own the bare name"
        for module in MODULES + SCRIPTS
        for item in module.imports
        if item.target.partition(".")[0] in PLUGINS
    )


def test_every_module_says_what_it_is() -> None:
    expect_none(f"{module.where(1)}: no docstring" for module in MODULES if not ast.get_docstring(module.tree))


def test_importing_the_package_is_light() -> None:
    code = f"import sys, ovd_gym; print(*sorted(sys.modules.keys() & set({SLOW_TO_IMPORT!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


@pytest.mark.parametrize("folder", PLUGINS)
def test_plug_in_folders_are_namespace_portions(folder: str) -> None:
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists(), "an __init__.py here would shadow other distributions"


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the links belong to a checkout; an sdist leaves them out")
@pytest.mark.parametrize("folder", PLUGINS)
def test_the_development_links_stand(folder: str) -> None:
    link = ROOT / "ovd_gym" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asks git which files are tracked")
def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    private = re.compile(r"(?<![\w.~$}/-])/(?:home|root|tmp|work|mnt|Users)/[\w.]")
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert ROOT / "pyproject.toml" in files
    expect_none(
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in files
        if path.is_file() and not path.is_symlink()
        for number, line in enumerate(path.read_bytes().decode("utf-8", "replace").splitlines(), start=1)
        if private.search(line)
    )
