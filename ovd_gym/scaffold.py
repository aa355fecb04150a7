"""A package of one's own, written whole: ``ovd-gym new env NAME``, ``ovd-gym new teacher NAME``."""

from __future__ import annotations

import importlib.util
import keyword
import re
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Literal

from jinja2 import Environment, StrictUndefined

import ovd_gym
from ovd_gym.errors import ConfigError

__all__ = ["Kind", "write_package"]

Kind = Literal["env", "teacher"]
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*")


def write_package(kind: Kind, name: str, parent: Path) -> Path:
    """Write a package called ``name`` into a new folder of that name in ``parent``; the folder.

    It holds a module with a world or a teacher to be changed, and a test that passes.

    Raises:
        ConfigError: a name that is no name or taken by a module, a folder that exists or cannot be written.
    """
    module = _module(name)
    target = parent / name
    if target.exists():
        raise ConfigError(f"{target} exists already: nothing is overwritten; choose another name or --folder")
    words = {
        "name": name,
        "module": module,
        "class_name": "".join(part.title() for part in module.split("_")),
        "version": ovd_gym.__version__,
    }
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}-") as scratch:
            staged = Path(scratch) / name
            _render(kind, staged, words)
            staged.rename(target)
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None
    return target


def _module(name: str) -> str:
    module = name.replace("-", "_").lower()
    if not _NAME.fullmatch(name) or keyword.iskeyword(module):
        raise ConfigError(f"{name!r} is no name for a package: letters, digits, '-' and '_', a letter first")
    if importlib.util.find_spec(module) is not None:
        raise ConfigError(f"there is a module {module!r} already, which the new one would hide: choose another name")
    return module


def _render(kind: Kind, folder: Path, words: dict[str, str]) -> None:
    """Write every template of ``kind``; ``MODULE`` in a file's name is the module's."""
    # Names are checked and the output is Python and TOML: there is no HTML to be escaped.
    jinja = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    for source in sorted(files("ovd_gym").joinpath("skeletons", kind).iterdir(), key=lambda file: file.name):
        path = folder / source.name.removesuffix(".j2").replace("MODULE", words["module"]).replace("+", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(jinja.from_string(source.read_text(encoding="utf-8")).render(words), encoding="utf-8")
