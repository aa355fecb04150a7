"""Every block says what it is, and every option, file, module, key and extra that the pages speak of exists."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import gymnasium
import typer
import yaml
from shown import OPTIONS_ELSEWHERE, PAGES, ROOT, SECTIONS, blocks, check_script, read, spans, words_of

from ovd_gym.cli import app
from ovd_gym.records import Record


def test_every_block_says_what_it_is() -> None:
    for block in blocks():
        assert block.language in ("python", "yaml", "json", "jsonl", "console", "bash", ""), block.where
        if not block.language:
            assert not re.search(r"^(\$ |ovd-gym |python |pip )", block.text, re.MULTILINE), f"{block.where}: a command"
    for page in PAGES:
        assert read(page).count("```") == 2 * sum(block.page == page for block in blocks()), page


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
