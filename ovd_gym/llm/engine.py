"""What an engine is to the rest of the house: a language model with weights of its own, which it is sent anew."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ovd_gym.errors import TrainingStopped
from ovd_gym.llm.base import LanguageModel

__all__ = ["Engine", "Written"]


@dataclass(frozen=True)
class Written:
    """Weights in a folder: a transformers checkpoint, or LoRA adapters as peft writes them."""

    folder: Path
    version: int
    """Number of updates they have seen."""
    sums: Mapping[str, str]
    """SHA-256 of each file, by name."""

    @classmethod
    def at(cls, folder: Path, version: int) -> Written:
        """What has just been written to ``folder``."""
        return cls(folder, version, _sums(folder))

    def check(self) -> None:
        """Raise TrainingStopped unless the folder holds what was written."""
        now = _sums(self.folder) if self.folder.is_dir() else {}
        if now != self.sums:
            changed = sorted(name for name in now.keys() | self.sums.keys() if now.get(name) != self.sums.get(name))
            raise TrainingStopped(
                f"weights of version {self.version} are not as they were written (SHA-256 of {', '.join(changed)} in "
                f"{self.folder}): give engine.exchange a folder that nothing else writes to, and resume"
            )


class Engine(LanguageModel, Protocol):
    """A sampler apart from the learner."""

    def load(self, weights: Written) -> None:
        """Take ``weights``, and forget what was computed with others.

        No turn may be under way. Raises TrainingStopped, with the cause, if the engine does not take them in time.
        """

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """[n - 1] log-probabilities of ``ids[1:]``, each after the ids before it, under the weights it has now."""

    def close(self) -> None:
        """Let go of what it holds."""


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
