"""A teacher that was trained: a logistic head on what can be checked of a view and on a local model's reading of it.

::

    FOLDER/teacher.json        what it was fitted to, how well it did on held-out questions, what it depends on
           heads.safetensors   for steps and for trajectories: mean, scale and weight of every feature, and a bias

``ovd-gym fit-teacher`` writes such a folder (:mod:`ovd_gym.teachers.fit`).
Shapes: ``N`` views, ``F`` features: the named ones, then the model's hidden state.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ovd_gym.errors import ConfigError, DataError
from ovd_gym.llm.choice import Usage
from ovd_gym.records import Record, Score, first_problem
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.teachers.calibration import Kind
from ovd_gym.teachers.heads import Floats, Head, Strength, probability
from ovd_gym.teachers.measure import Measurement
from ovd_gym.teachers.view_reader import Reads, ViewReader
from ovd_gym.teachers.words import addresses_grader

__all__ = ["FittedCard", "FittedTeacher", "Labels", "Source"]

Labels = Literal["labels", "continuations", "outcomes"]
"""What a head is fitted to: labels of people, values from the environment, or how the attempt as a whole came out."""
_CARD, _HEADS = "teacher.json", "heads.safetensors"
_REASONS = 3


class Source(Record):
    """One source of the attempts it was fitted to."""

    name: str
    attempts: int
    sha256: str
    """12 hex digits over the attempts' records, in order."""


class FittedCard(Record):
    """What a fitted teacher is; the file ``teacher.json``."""

    format: Literal[1] = 1
    model: str | None
    """The model it reads views with, by the name it is loaded by; None reads named features alone."""
    reads: Reads
    """What it reads off the model."""
    reader: str
    """The same with a fingerprint of its weights; empty without a model."""
    prompts: str
    """Hash of what the model reads besides the views; empty without a model."""
    nonce: str
    """Names the fences, always the same: a hidden state depends on it. It is escaped in what it fences."""
    features: tuple[str, ...]
    """Of :data:`~ovd_gym.teachers.features.FEATURES`."""
    labels: dict[Kind, Labels]
    """Of each head there is."""
    strength: dict[Kind, Strength]
    """Of each head's prior, chosen by cross-validation."""
    threshold: float | None
    """Mean score below which a step is best called wrong, chosen on what it was fitted to; None without labels."""
    sources: tuple[Source, ...]
    versions: dict[str, str]
    held_out: Measurement | None = None
    """On questions it was not fitted to; None if there were none."""
    heads: str = ""
    """SHA-256 of ``heads.safetensors``; empty before it is saved."""


class FittedTeacher(Teacher):
    """Gives nine times the fitted probability that a step, or an attempt, is right.

    The rationale names what spoke for and against it, in log-odds against an average view; ``model`` stands for the
    hidden state as a whole. What no data set shows is not left to the fit: a step, or an attempt, without a word in it
    or with words to the grader gets 0, and so does a step that was there before, word for word.

    Args:
        folder: what ``ovd-gym fit-teacher`` wrote.
        batch_tokens: tokens of one forward pass of the model.
        device: where the model runs; None takes the first GPU, or the CPU when there is none.

    Raises:
        DataError: no such folder, or a damaged one. ConfigError: it was fitted for other prompts or another model.
    """

    explains = True

    def __init__(self, folder: str | Path, *, batch_tokens: int = 4096, device: str | None = None) -> None:
        self._heads: dict[Kind, Head]
        self.card, self._heads = load_fitted(Path(folder))
        options = {"batch_tokens": batch_tokens, "device": device}
        card = self.card
        self._reader = ViewReader(card.model, card.features, card.nonce, card.reads, **options)
        for what in ("reader", "prompts"):
            mine, made_for = getattr(self._reader, what), getattr(self.card, what)
            if mine != made_for:
                raise ConfigError(
                    f"the teacher in {folder} was fitted to the {what} {made_for!r}, and this is {mine!r}: "
                    "fit it again with `ovd-gym fit-teacher`"
                )
        self.name = _name(self.card, self._heads)

    @classmethod
    def of(cls, card: FittedCard, heads: Mapping[Kind, Head], reader: ViewReader) -> Self:
        """The teacher made of these parts."""
        made = cls.__new__(cls)
        made.card, made._heads, made._reader = card, dict(heads), reader
        made.name = _name(card, heads)
        return made

    def save(self, folder: str | Path, held_out: Measurement | None = None) -> None:
        """Write a folder that the teacher can be made from, with what was measured on held-out questions.

        Raises:
            DataError: the folder holds something else, or cannot be written.
        """
        save_fitted(Path(folder), self.card.model_copy(update={"held_out": held_out}), self._heads)

    def usage(self) -> Usage:
        """What the model has read so far."""
        return self._reader.usage()

    def score(self, view: View) -> Score:
        """One score; see :meth:`score_batch`."""
        return self.score_batch([view])[0]

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``; the model reads what they share once."""
        judged = [view for view in views if view.kind in self._heads]
        try:
            rows = iter(self._reader.read(judged))
        except Exception as error:  # noqa: BLE001  (out of memory, a broken device: recorded, never a number)
            return [Score.invalid("error", f"{type(error).__name__}: {error}")] * len(views)
        return [self._score(view, next(rows)) if view.kind in self._heads else _headless(view) for view in views]

    def _score(self, view: View, row: Floats | None) -> Score:
        kind: Kind = view.kind
        if row is None:
            return Score.invalid("over_budget", "too long for the model even with its tool results cut")
        if fault := _fault(view):
            return Score.of(0, fault)
        head = self._heads[kind]
        return Score.of(9 * float(probability(head.log_odds(row[None]))[0]), self._reasons(head, row))

    def _reasons(self, head: Head, row: Floats) -> str:
        parts = head.contributions(row[None])[0]
        names = self._reader.names
        said = dict(zip(names, parts[: len(names)].tolist(), strict=True))
        if len(parts) > len(names):
            said["model"] = float(parts[len(names) :].sum())
        loudest = sorted(said, key=lambda name: -abs(said[name]))[:_REASONS]
        return ", ".join(f"{name} {said[name]:+.1f}" for name in loudest)


def _headless(view: View) -> Score:
    return Score.invalid("error", f"fitted without labels for a {view.kind}: it has no head for it")


def _fault(view: View) -> str:
    """Why the view is worth nothing whatever the fit says; empty if it may be worth something."""
    texts = [step.text for step in view.steps]
    judged = texts[-1:] if view.kind == "step" else texts
    if not any(re.search(r"\w", text) for text in judged):
        return "nothing in it"
    if view.kind == "step" and texts[-1].split() in [text.split() for text in texts[:-1]]:
        return "repeats an earlier step"
    if any(addresses_grader(text, view.question) for text in (*judged, view.answer or "")):
        return "addresses the grader"
    return ""


def save_fitted(folder: Path, card: FittedCard, heads: Mapping[Kind, Head]) -> None:
    """Write the folder that :class:`FittedTeacher` reads. Raises DataError if it holds something else."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if extra := sorted(path.name for path in folder.iterdir() if path.name not in (_CARD, _HEADS)):
            raise DataError(f"{folder} holds {extra[0]!r}: choose an empty folder for the teacher")
        tensors = {name: array for kind, head in heads.items() for name, array in head.tensors(kind).items()}
        save_file(tensors, folder / _HEADS)
        card = card.model_copy(update={"heads": _sha256(folder / _HEADS)})
        (folder / _CARD).write_text(card.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write the teacher to {folder}: {error.strerror}") from None


def load_fitted(folder: Path) -> tuple[FittedCard, dict[Kind, Head]]:
    """The card and the heads in ``folder``. Raises DataError for one that is missing or damaged."""
    try:
        card = FittedCard.model_validate_json((folder / _CARD).read_bytes())
        if _sha256(folder / _HEADS) != card.heads:
            raise DataError(f"the fitted teacher in {folder} is damaged (checksum of {_HEADS}): fit it again")
        tensors = load_file(folder / _HEADS)
        return card, {kind: Head.of(tensors, kind) for kind in card.labels}
    except ValidationError as error:
        raise DataError(f"{folder / _CARD} is no fitted teacher: {first_problem(error)}") from None
    except OSError as error:
        raise DataError(f"no fitted teacher in {folder}: {error.strerror} ({_CARD}, {_HEADS})") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise DataError(f"the fitted teacher in {folder} is damaged ({error}): fit it again") from None


def _name(card: FittedCard, heads: Mapping[Kind, Head]) -> str:
    """Model and 8 hex digits over all that the scores depend on."""
    digest = hashlib.sha256(f"{card.reader} {card.reads} {card.prompts} {card.nonce} {card.features}".encode())
    for kind, head in heads.items():
        for name, array in head.tensors(kind).items():
            digest.update(name.encode() + array.tobytes())
    return f"fitted({card.model or 'no model'}, {digest.hexdigest()[:8]})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
