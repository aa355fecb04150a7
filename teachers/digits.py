"""A language model as a teacher: which of the ten digits it puts after ``SCORE: ``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import ChoiceModel, Prompt, Reading, Usage
from ovd_gym.records import Score
from ovd_gym.teachers.asking import Examiner, attempts
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.teachers.prompting import PREFILL

__all__ = ["DigitTeacher"]

_DIGITS = tuple("0123456789")


class DigitTeacher(Teacher):
    """Asks a language model for one digit per view, wherever that model runs.

    A model whose probabilities are known gives the distribution over the digits (``probs``; before renormalising they
    add up to ``digit_mass``): ``mean`` is its expectation, ``value`` its mode. Of any other only the digit is known.

    A prompt that is too long loses the middle of its tool results, in steps and visibly; what was cut stands in the
    rationale. Views of one attempt that come together are cut alike, so that what they share stays shared. A view
    that is too long even then has no score, with status ``over_budget``.

    Args:
        model: a name for :func:`~ovd_gym.llm.models.load_model`, a (model, tokenizer) pair, or a mapping with
            ``engine`` and its options: whatever :func:`~ovd_gym.llm.choice.make_choice_model` takes.
        privileged: show the gold answers to the teacher.
        explain: ask for reasons before the digit. They become the rationale; only a model that writes has any.
        prompts: a folder with a template ``grade.j2`` of one's own, see :class:`~ovd_gym.teachers.prompting.Prompts`.
        nonce: names the fences around untrusted text. None draws one for this teacher: one for all views, because
            small models score a view differently by several digits when only the nonce changes. A given one makes
            two runs read the same prompts; it is escaped in what it fences like every other marker.

    Raises:
        ConfigError: a model that cannot be had, that cannot tell the digits apart, or that cannot ``explain``.
    """

    def __init__(
        self,
        model: ChoiceModel | str | Mapping[str, Any] | tuple[Any, Any],
        *,
        privileged: bool = False,
        explain: bool = False,
        prompts: str | Path | None = None,
        nonce: str | None = None,
    ) -> None:
        self._examiner = Examiner(model, "grade", _DIGITS, prompts, prefill=PREFILL, nonce=nonce)
        if explain and self._examiner.model.reads_logits:
            name = self._examiner.model.name
            raise ConfigError(f"explain: {name} is read from its logits and writes no reasons; leave it out")
        self.privileged = privileged
        self.explains = explain
        settings = ["explained"] * explain + ["privileged"] * privileged
        self.name = f"digits({', '.join([self._examiner.label, *settings])})"

    def seed(self, seed: int) -> None:
        """Derive the nonce from ``seed`` (unless one was given), and seed the model."""
        self._examiner.seed(seed)

    def usage(self) -> Usage:
        """What the model was asked for."""
        return self._examiner.model.usage()

    def score(self, view: View) -> Score:
        """One score; see :meth:`score_batch`."""
        return self.score_batch([view])[0]

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``."""
        fitted = [
            fit
            for attempt in attempts(views)
            for fit in self._examiner.fit([(view,) for view in attempt], lambda shown: self._prompt(shown[0]))
        ]
        readings = iter(self._examiner.read([self._prompt(fit[0][0]) for fit in fitted if fit]))
        too_long = Score.invalid("over_budget", "too long for the model even with its tool results cut")
        return [_score(next(readings), fit[1]) if fit else too_long for fit in fitted]

    def _prompt(self, view: View) -> Prompt:
        return self._examiner.prompt(view, explained=self.explains)


def _score(reading: Reading, note: str) -> Score:
    rationale = "\n".join(part for part in (reading.text, note) if part)
    if reading.choice is None:
        return Score(
            value=None, status=reading.status, probs=reading.probs, digit_mass=reading.mass, rationale=rationale
        )
    if reading.probs is None:
        return Score.of(reading.choice, rationale)
    mean = min(9.0, sum(digit * p for digit, p in enumerate(reading.probs)))
    return Score(value=reading.choice, mean=mean, probs=reading.probs, digit_mass=reading.mass, rationale=rationale)
