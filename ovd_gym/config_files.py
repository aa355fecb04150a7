"""Configurations from YAML files and ``key=value`` settings; an unknown key is refused with a suggestion."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ovd_gym.config import TrainConfig
from ovd_gym.errors import ConfigError, unknown

__all__ = ["load_config", "parse_setting", "parse_spec"]

MAX_VALUES = 100_000
"""Keys and values of a configuration file."""


def load_config(source: str | Path | Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> TrainConfig:
    """A configuration from a YAML file or a mapping, with dotted ``settings`` laid over it.

    Raises :class:`ConfigError` in one line: a missing file, bad YAML, an unknown or ineffective key, a bad value.
    """
    tree = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    for name, value in (settings or {}).items():
        tree = _laid_over(tree, name.split("."), value)
    try:
        return TrainConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def parse_setting(text: str) -> tuple[str, Any]:
    """``"a.b=c"`` as its dotted key and its value, read as YAML."""
    name, equals, value = text.partition("=")
    if not equals or not all(name.split(".")):
        raise ConfigError(f"setting {text!r}: expected key=value, such as learner.learning_rate=1e-4")
    try:
        return name, yaml.safe_load(value)
    except Exception:  # noqa: BLE001  (besides its own errors, what int(), date() and deep nesting raise)
        raise ConfigError(f"setting {text!r}: its value is not valid YAML") from None


def parse_spec(text: str, what: str) -> tuple[str, dict[str, Any]]:
    """``"name key=value other='a b'"``, quoted as in a shell, as the name and its options; ``what`` it names.

    >>> parse_spec("digits model=tiny samples=3", "teacher")
    ('digits', {'model': 'tiny', 'samples': 3})
    """
    try:
        name, *options = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{what} {text!r}: {error}; expected a name and key=value options after it") from None
    return name, dict(map(parse_setting, options))


class _PlainYaml(yaml.SafeLoader):
    """YAML that refuses a key given twice (which of the two was meant?) and a few lines that stand for millions."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and (size := _size(node, {})) > MAX_VALUES:
            raise yaml.YAMLError(f"it holds {size:g} values, aliases written out; at most {MAX_VALUES:,} are read")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"{node.start_mark}: {min(map(str, twice))!r} is given twice")
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_PlainYaml)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {str(path)!r}: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001  (besides its own errors, what int(), date() and deep nesting raise)
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, got {type(tree).__name__}")
    return tree


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Number of values in ``node`` with its aliases written out; infinite for one that holds itself."""
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = (part for item in parts for part in (item if isinstance(item, tuple) else (item,)))
        known[id(node)] = 1 + sum(_size(part, known) for part in inner)
    return known[id(node)]


def _laid_over(tree: Mapping[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    if len(path) == 1:
        return {**tree, path[0]: value}
    branch = tree.get(path[0])
    if branch is not None and not isinstance(branch, Mapping):
        raise ConfigError(f"setting {'.'.join(path)}: {path[0]} is {branch!r}, not a section")
    return {**tree, path[0]: _laid_over(branch or {}, path[1:], value)}


def _explain(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        section = _section(problem["loc"][:-1])
        return unknown("configuration key", where, [".".join([*map(str, problem["loc"][:-1]), n]) for n in section])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"configuration: {where} is required"
    got = "" if isinstance(problem["input"], dict | BaseModel) else f", got {problem['input']!r}"
    return f"configuration: {where + ': ' if where else ''}{message}{got}"


def _section(location: tuple[int | str, ...]) -> list[str]:
    """The keys of the section at ``location``."""
    model: type[BaseModel] = TrainConfig
    for name in location:
        annotation = model.model_fields[str(name)].annotation
        kinds = [annotation, *getattr(annotation, "__args__", ())]
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
