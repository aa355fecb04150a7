"""What a number depends on besides its settings: versions of libraries, hashes of questions, texts and weights."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from ovd_gym.records import Task

__all__ = ["file_hash", "model_hash", "tasks_hash", "text_hash", "versions"]


def versions(*libraries: str) -> dict[str, str]:
    """Versions of Python and of those ``libraries`` that are installed."""
    found = {"python": platform.python_version()}
    for name in libraries:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def text_hash(text: str) -> str:
    """SHA-256 of a text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def tasks_hash(tasks: Iterable[Task]) -> str:
    """SHA-256 of ids, questions and gold answers in order: equal for the same questions, wherever they came from."""
    digest = hashlib.sha256()
    for task in tasks:
        digest.update(task.model_dump_json(include={"id", "question", "answers"}).encode() + b"\n")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_hash(folder: Path) -> str:
    """SHA-256 over the weights, configuration and tokenizer in a model's folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".jinja", ".model"))
    return text_hash("\n".join(f"{file.name} {file_hash(file)}" for file in files))
