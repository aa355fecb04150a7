"""What the documentation site makes from the code: configuration reference, list of benchmarks, plain docstrings."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import griffe

_ROLE = re.compile(r":[a-z]+:`~?(?:[\w.]*\.)?([\w]+(?:\(\))?)`")
_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_ROOMS = ("schedule", "config", "credit", "selection", "health", "placement", "llm.engine_config")
_SOURCES = tuple(f"ovd_gym.{room}" for room in _ROOMS)


class PlainRoles(griffe.Extension):
    """Turns ``:class:`~package.Name``` into ``Name``: Markdown knows no roles."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every object that is read."""
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Called for every page: puts what is made from the code in the place of its comment."""
    for name, make in (("configuration", reference), ("benchmarks", benchmarks)):
        if f"<!-- {name} -->" in markdown:
            markdown = markdown.replace(f"<!-- {name} -->", make())
    return markdown


def plain(text: str) -> str:
    """``text`` with Sphinx roles as code.

    >>> plain("see :class:`~ovd_gym.records.Score` or :func:`plain`")
    'see `Score` or `plain`'
    """
    return _ROLE.sub(r"`\1`", text)


def reference() -> str:
    """Every section of a configuration with its keys, defaults and meanings, read from the source."""
    loader = griffe.GriffeLoader()  # one for all: keys may be inherited from another module's class
    classes = {name: member for source in _SOURCES for name, member in loader.load(source).classes.items()}
    top = classes["TrainConfig"]
    sections = {key: re.search(r"\w+Config", str(a.annotation)) for key, a in top.attributes.items()}
    parts = [_section("Top level", top, skip={key for key, found in sections.items() if found})]
    parts += [_section(f"`{key}`", classes[found[0]]) for key, found in sections.items() if found]
    return "\n\n".join(parts)


def benchmarks() -> str:
    """Every script with the first sentence of its docstring."""
    rows = []
    for path in sorted(_BENCHMARKS.glob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "__main__" not in source:
            continue
        text = ast.get_docstring(ast.parse(source)) or ""
        rows.append(f"| `{path.name}` | {' '.join(text.partition('. ')[0].partition(chr(10) * 2)[0].split())} |")
    return "\n".join(["| script | what it measures |", "|---|---|", *rows])


def _section(title: str, config: Any, skip: set[str] | frozenset[str] = frozenset()) -> str:
    rows = [
        f"| `{name}` | `{_type(key.annotation)}` | {_default(key)} | {_meaning(key)} |"
        for name, key in config.attributes.items()
        if name not in skip | {"model_config"} and "property" not in key.labels
    ]
    lines = ["| key | takes | default | meaning |", "|---|---|---|---|", *rows]
    return f"## {title}\n\n{plain(config.docstring.value)}\n\n" + "\n".join(lines)


def _type(annotation: Any) -> str:
    """An annotation in a table's cell: ``Annotated[int, Field(ge=1)]`` is ``int, ge=1``."""
    text = re.sub(r"Annotated\[([^,\[\]]+), Field\(([^)]*)\)\]", r"\1, \2", str(annotation))
    return text.replace("|", "or").replace("Literal", "one of ")


def _default(key: Any) -> str:
    return "required" if key.value is None else f"`{key.value}`"


def _meaning(key: Any) -> str:
    return " ".join(plain(key.docstring.value).split()).replace("|", "\\|") if key.docstring else ""
