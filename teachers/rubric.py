"""A teacher that answers a checklist: each item is a question with a yes or a no, the score is their weighted mean.

Single questions are easier for a model than one verdict on everything, and the record shows which of them failed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError

from ovd_gym.errors import ConfigError, unknown
from ovd_gym.llm.choice import ChoiceModel, Prompt, Reading, Usage
from ovd_gym.records import Record, Score, first_problem
from ovd_gym.teachers.asking import Examiner, attempts, share
from ovd_gym.teachers.base import Teacher, View

__all__ = ["Checklist", "Item", "RubricTeacher", "load_checklist"]

_BUILT_IN = Path(__file__).parent / "prompts" / "checklists.yaml"


class Item(Record):
    """One question to which yes is the good answer."""

    text: Annotated[str, Field(min_length=1)]
    weight: Annotated[float, Field(gt=0)] = 1.0


_Items = Annotated[
    tuple[Annotated[Item, BeforeValidator(lambda item: {"text": item} if isinstance(item, str) else item)], ...],
    Field(min_length=1),
]


class Checklist(Record):
    """What is asked about each step, and about the whole attempt."""

    step: _Items
    trajectory: _Items


class RubricTeacher(Teacher):
    """Scores 9 times the weighted mean of the items' probabilities of yes; 1 or 0 where only the answer is known.

    An item without an answer leaves no score, but that item's status: part of a checklist is another checklist.
    The rationale lists the items with their answers.

    Args:
        model: whatever :func:`~ovd_gym.llm.choice.make_choice_model` takes.
        items: see :func:`load_checklist`.
        privileged: show the gold answers to the model.
        prompts: a folder with a ``rubric.j2`` of one's own, see :class:`~ovd_gym.teachers.prompting.Prompts`.

    Raises:
        ConfigError: a model or a checklist that cannot be had.
    """

    explains = True

    def __init__(
        self,
        model: ChoiceModel | str | Mapping[str, Any] | tuple[Any, Any],
        *,
        items: str | Path | Checklist | Mapping[str, Any] = "math",
        privileged: bool = False,
        prompts: str | Path | None = None,
    ) -> None:
        self.items = load_checklist(items)
        self._examiner = Examiner(model, "rubric", ("yes", "no"), prompts)
        self.privileged = privileged
        digest = hashlib.sha256(self.items.model_dump_json().encode()).hexdigest()[:12]
        self.name = f"rubric({self._examiner.label}, items {digest}{', privileged' if privileged else ''})"

    def seed(self, seed: int) -> None:
        """Make the fences' nonce and the model's draws repeatable."""
        self._examiner.seed(seed)

    def usage(self) -> Usage:
        """What the model has been asked for."""
        return self._examiner.model.usage()

    def score(self, view: View) -> Score:
        """One score; see :meth:`score_batch`."""
        return self.score_batch([view])[0]

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``. All items of all views are asked together, so that a model can share what
        their prompts have in common."""
        drawn = [pair for run in attempts(views) for pair in self._draw(run)]
        readings = iter(self._examiner.read([prompt for prompts, _ in drawn for prompt in prompts]))
        return [
            self._total(self._asked(view), [next(readings) for _ in prompts], note)
            for view, (prompts, note) in zip(views, drawn, strict=True)
        ]

    def _asked(self, view: View) -> tuple[Item, ...]:
        return self.items.step if view.kind == "step" else self.items.trajectory

    def _draw(self, run: Sequence[View]) -> list[tuple[list[Prompt], str]]:
        """(a prompt an item, note on what was cut) for each view of an attempt; no prompts where they do not fit."""
        fitted = self._examiner.fit([(view,) for view in run], lambda shown: max(self._prompts(shown[0]), key=_length))
        return [(self._prompts(pair[0][0]), pair[1]) if pair else ([], "") for pair in fitted]

    def _prompts(self, view: View) -> list[Prompt]:
        return [self._examiner.prompt(view, item=item.text) for item in self._asked(view)]

    def _total(self, items: Sequence[Item], readings: Sequence[Reading], note: str) -> Score:
        if not readings:
            return Score.invalid("over_budget", "the prompt is too long even with its tool results cut")
        for item, reading in zip(items, readings, strict=True):
            if reading.status != "ok":
                return Score.invalid(reading.status, f"{item.text} {reading.text}")
        shares = [share(reading) for reading in readings]
        total = sum(item.weight * part for item, part in zip(items, shares, strict=True))
        lines = [f"{part:.2f} {item.text}" for item, part in zip(items, shares, strict=True)]
        mean = 9 * total / sum(item.weight for item in items)
        return Score.of(min(9.0, mean), "\n".join([*lines, note]).strip())


def load_checklist(items: str | Path | Checklist | Mapping[str, Any]) -> Checklist:
    """The checklist that ``items`` names.

    Args:
        items: a built-in one (``math`` or ``search``), a YAML file, or the lists: a mapping with ``step`` and
            ``trajectory``, each a list of questions or of mappings with ``text`` and ``weight``.

    Raises:
        ConfigError: an unknown name, no such file, or lists that are not of this form.

    >>> len(load_checklist({"step": ["Is it right?"], "trajectory": ["Is it all right?"]}).step)
    1
    """
    if isinstance(items, Checklist):
        return items
    if isinstance(items, Mapping):
        return _checked(items, "items")
    if str(items).endswith((".yaml", ".yml")):
        return _checked(_read_yaml(Path(items)), str(items))
    built_in = _read_yaml(_BUILT_IN)
    if items not in built_in:
        raise ConfigError(unknown("checklist", str(items), built_in) + ", or a .yaml file")
    return _checked(built_in[items], str(items))


def _length(prompt: Prompt) -> int:
    return len(prompt.user)


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001  (besides its own errors, what int(), date() and deep nesting raise)
        raise ConfigError(f"checklist {path}: {' '.join(str(error).split())}") from None


def _checked(tree: Any, where: str) -> Checklist:
    try:
        return Checklist.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"checklist {where}: {first_problem(error)}") from None
