"""A local language model as a teacher that is not asked anything: how likely does it find what the agent wrote?"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from ovd_gym.errors import ConfigError, DataError
from ovd_gym.llm.choice import Usage
from ovd_gym.llm.local_reader import LocalReader
from ovd_gym.records import Record, Score, first_problem
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.teachers.sayings import Saying, SayingReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["LikelihoodTeacher", "Scale"]

_Nats = Annotated[float, Field(le=0)]
_Knots = Annotated[tuple[_Nats, ...], Field(min_length=10, max_length=10)]


class _Unit(NamedTuple):
    """How a value is read when there is no scale."""

    nats: float
    """Every so many nats a score falls to 1/e of what it was."""
    name: str


_UNIT = {"step": _Unit(1.0, "nats a token"), "trajectory": _Unit(10.0, "nats")}


class Scale(Record):
    """What log-likelihoods are worth: the digit a value gets is 9 times its rank among those of a calibration set."""

    model: str
    """The model whose values these are; they mean nothing for another."""
    results: bool
    """Whether answers were read after the tool results."""
    step: _Knots
    """[10] nats a token: the quantiles 0, 1/9, ... 1, which get 0, 1, ... 9."""
    trajectory: _Knots
    """[10] nats: the same for answers."""

    def mean(self, kind: Literal["step", "trajectory"], value: float) -> float:
        """The score of ``value`` (nats), in [0, 9]: linear between knots, constant beyond them."""
        return float(np.interp(value, getattr(self, kind), range(10)))

    @property
    def fingerprint(self) -> str:
        """8 hex digits that change with any knot."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        Path(path).write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Scale:
        """Read what :meth:`save` wrote. Raises DataError for any other file."""
        try:
            return cls.model_validate_json(Path(path).read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except ValidationError as error:
            raise DataError(f"{path}: not a scale of likelihoods: {first_problem(error)}") from None

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if any(np.diff(self.step) < 0) or any(np.diff(self.trajectory) < 0):
            raise ValueError("the knots must ascend")
        return self


class LikelihoodTeacher(Teacher):
    """Scores what the agent wrote by its log-likelihood under a local model.

    **A step**: the mean over the tokens of the step's text, after the question and all steps and results before it.
    **A trajectory**: the sum over the tokens of the final answer, after the question alone, or after question and tool
    results (``results``). The agent's own words are left out, or it could make its answer likely by saying it before.

    The sum after the question alone was chosen among 18 measures on 120 real search runs, with SmolLM2-135M-Instruct:
    AUC 0.79 [0.68, 0.88] there, against 0.66 for the sum after the results (wrong answers are copied from results, too)
    and 0.59 for the mean per token. On all 789 runs (``benchmarks/fit_teacher.py``) it has 0.745 [0.692, 0.791], which
    is 0.062 [0.010, 0.112] above having fewer tokens. On 81 solutions of GSM8K the sum, with or without the question,
    and fewer tokens all give about 0.67. Step scores on 113 attempts of ProcessBench have 0.548 [0.486, 0.608]. Where a
    model cannot know the answers, as in a fictional world, only ``results`` can tell.

    Without ``scale`` a score is 9 times the geometric mean of the probabilities of a step's tokens, or 9 times
    ``exp(nats / 10)`` for an answer. A calibrated one (:meth:`calibrate`) uses all digits evenly. An empty step or
    answer gets 0: nothing was said.

    Nothing is asked, so no text can talk the teacher into anything: it moves the score by being likely. That has a
    price of its own. What repeats earlier text is likely, and so is what is commonly said; a likelihood knows nothing
    of whether a step was useful. Beside rules, or fitted as a feature, it is worth more than alone.

    All views of an attempt share one pass of the model.

    Args:
        model: a name for :func:`~ovd_gym.llm.models.load_model`, or a (model, tokenizer) pair.
        results: read the tool results before the answer.
        scale: what :meth:`calibrate` gave, or the file it was saved to.
        max_tokens: longest text, in tokens; None takes the model's own context. Tool results are cut to fit.
        batch_tokens: tokens of one forward pass.
        dtype: of the weights, when ``model`` is a name.
        device: where to run, when ``model`` is a name.

    Raises:
        ConfigError: a model that cannot be loaded, or a scale of another one.
        DataError: a ``scale`` that cannot be read.
    """

    def __init__(
        self,
        model: str | tuple[PreTrainedModel, PreTrainedTokenizerBase],
        *,
        results: bool = False,
        scale: Scale | str | Path | None = None,
        max_tokens: int | None = None,
        batch_tokens: int = 4096,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        self._reader = LocalReader(model, max_tokens=max_tokens, batch_tokens=batch_tokens, dtype=dtype, device=device)
        self._sayings = SayingReader(self._reader, results)
        self._scale = Scale.load(scale) if isinstance(scale, str | Path) else scale
        if self._scale and (self._scale.model, self._scale.results) != (self._reader.name, results):
            raise ConfigError(
                f"the scale belongs to {self._scale.model} with results={self._scale.results}, not to "
                f"{self._reader.name} with results={results}: calibrate again"
            )
        how = ["after results"] * results + [f"scale {self._scale.fingerprint}" if self._scale else "unscaled"]
        settings = [self._reader.name, self._reader.dtype, f"{self._reader.max_tokens} tokens", *how]
        self.name = f"likelihood({', '.join(settings)})"

    def usage(self) -> Usage:
        """Texts and tokens read so far."""
        return self._reader.usage()

    def score(self, view: View) -> Score:
        """One score; see :meth:`score_batch`."""
        return self.score_batch([view])[0]

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``, the same as one by one up to rounding."""
        measured = self._measure(views)
        return [
            value if isinstance(value, Score) else self._score(view, *value)
            for view, value in zip(views, measured, strict=True)
        ]

    def calibrate(self, views: Sequence[View]) -> Scale:
        """The scale on which scores of such ``views`` are spread evenly over the digits; no labels are needed.

        Raises:
            DataError: no step, or no trajectory, with a likelihood among the views.
        """
        values: dict[str, list[float]] = {"step": [], "trajectory": []}
        for view, value in zip(views, self._measure(views), strict=True):
            if not isinstance(value, Score):
                values[view.kind].append(value[0])
        if absent := [kind for kind, found in values.items() if not found]:
            raise DataError(f"no {absent[0]} with a likelihood among {len(views)} views: give views of both kinds")
        knots = {kind: tuple(np.quantile(found, np.linspace(0, 1, 10)).tolist()) for kind, found in values.items()}
        return Scale(
            model=self._reader.name, results=self._sayings.results, step=knots["step"], trajectory=knots["trajectory"]
        )

    def _score(self, view: View, value: float, note: str) -> Score:
        unit = _UNIT[view.kind]
        mean = self._scale.mean(view.kind, value) if self._scale else 9 * math.exp(value / unit.nats)
        return Score.of(min(9.0, mean), f"{value:.2f} {unit.name}" + (f"; {note}" if note else ""))

    def _measure(self, views: Sequence[View]) -> list[tuple[float, str] | Score]:
        """(nats, note on what was cut) of each view, or the score of one that has no likelihood."""
        return [_result(view, saying) for view, saying in zip(views, self._sayings.read(views), strict=True)]


def _result(view: View, saying: Saying | None) -> tuple[float, str] | Score:
    if saying is None:
        return Score.invalid("over_budget", "too long for the model even with its tool results cut")
    if not len(saying.logprobs):
        return Score.of(0, "nothing was said")
    value = float(saying.logprobs.mean() if view.kind == "step" else saying.logprobs.sum())
    if not math.isfinite(value):
        return Score.invalid("error", f"the model gives the text a log-likelihood of {value}")
    return value, saying.note
