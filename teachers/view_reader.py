"""What a fitted teacher reads of a view, as numbers: named features, then what a local model makes of it.

The model's part is either its **hidden** state where it is about to grade the view, or the **likelihood** of what the
agent wrote. Shapes: ``N`` views, ``F`` features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np

from ovd_gym.errors import ConfigError, unknown
from ovd_gym.llm.choice import Usage
from ovd_gym.llm.local_reader import LocalReader
from ovd_gym.teachers.base import View
from ovd_gym.teachers.features import check_names, describe
from ovd_gym.teachers.heads import Floats
from ovd_gym.teachers.prompting import PREFILL, Prompts, shorten
from ovd_gym.teachers.sayings import SayingReader

__all__ = ["READINGS", "Reads", "ViewReader"]

Reads = Literal["hidden", "likelihood"]
_OBSERVATION_LIMITS = (4000, 2000, 1000, 500, 250, 120)
"""Characters a tool result may keep; the next one is tried when a prompt is too long."""
_NOTHING = np.asarray([-40.0, -10.0, -10.0])
"""Nats of what was not said: no better than four words drawn at random."""
_EXAMPLES = [View.model_validate({"kind": kind, "question": "q", "steps": ()}) for kind in ("step", "trajectory")]


class _Reading(Protocol):
    """A model's part."""

    names: tuple[str, ...]
    """Of its numbers; none where they can only be taken as a whole."""
    prompts: str
    """Hash of what the model reads besides the views; empty if that is fixed."""

    def read(self, views: Sequence[View]) -> list[Floats | None]:
        """[N] of numbers; None for a view that does not fit the model's context even with its tool results cut."""


class _Likelihoods:
    """How likely the model finds the step or the answer. Of a step nothing counts that grows with its length."""

    names: tuple[str, ...] = ("likelihood of the answer", "likelihood a token", "likelihood of the oddest tenth")
    prompts = ""

    def __init__(self, reader: LocalReader, nonce: str) -> None:
        self._sayings = SayingReader(reader)

    def read(self, views: Sequence[View]) -> list[Floats | None]:
        """[N] of [3] nats."""
        return [
            None if saying is None else self._numbers(view, saying.logprobs)
            for view, saying in zip(views, self._sayings.read(views), strict=True)
        ]

    def _numbers(self, view: View, logprobs: Floats) -> Floats:
        if not len(logprobs):
            return _NOTHING
        oddest = np.sort(logprobs)[: math.ceil(len(logprobs) / 10)]
        whole = logprobs.sum() if view.kind == "trajectory" else 0.0
        return np.asarray([whole, logprobs.mean(), oddest.mean()])


class _Hidden:
    """The state of the model where it is about to write its verdict, as prompted for ``digits``."""

    names: tuple[str, ...] = ()

    def __init__(self, reader: LocalReader, nonce: str) -> None:
        self._reader = reader
        self._nonce = nonce
        self._prompts = Prompts()
        # Over all that is read besides the views; templates of other teachers do not matter.
        self.prompts = hashlib.sha256("\0".join(map(self._text, _EXAMPLES)).encode()).hexdigest()[:12]

    def read(self, views: Sequence[View]) -> list[Floats | None]:
        """[N] of [width of the model]."""
        ids = {i: tokens for i, view in enumerate(views) if (tokens := self._ids(view))}
        states = self._reader.last_hidden(list(ids.values())).double().numpy() if ids else ()
        rows = dict(zip(ids, states, strict=True))
        return [rows.get(i) for i in range(len(views))]

    def _ids(self, view: View) -> list[int]:
        """Token ids of the prompt for ``view``; none if it does not fit."""
        for shown in (view, *(shorten(view, limit)[0] for limit in _OBSERVATION_LIMITS)):
            ids = self._reader.encode(self._text(shown))
            if len(ids) <= self._reader.max_tokens:
                return ids
        return []

    def _text(self, view: View) -> str:
        prompt = self._prompts.render(view, "grade", nonce=self._nonce, reserved=self._reader.reserved)
        return self._reader.chat(prompt.system, prompt.user) + PREFILL


READINGS: dict[Reads, Callable[[LocalReader, str], _Reading]] = {"hidden": _Hidden, "likelihood": _Likelihoods}
"""What may be read off a model."""


class ViewReader:
    """Features of views.

    Args:
        model: a name for :func:`~ovd_gym.llm.models.load_model`, a (model, tokenizer) pair, or None for named
            features alone.
        features: of :data:`~ovd_gym.teachers.features.FEATURES`.
        nonce: names the fences around untrusted text.
        reads: what is read off the model.
        options: of :class:`~ovd_gym.llm.local_reader.LocalReader`.

    Raises:
        ConfigError: an unknown feature or reading, no feature at all, or a model that cannot be loaded.
    """

    def __init__(
        self,
        model: str | tuple[Any, Any] | None,
        features: Sequence[str],
        nonce: str,
        reads: Reads = "hidden",
        **options: Any,
    ) -> None:
        if reads not in READINGS:
            raise ConfigError(unknown("reading", reads, READINGS))
        self.features = check_names(features)
        self.nonce = nonce
        self.reads = reads
        self.model = model if isinstance(model, str) else None
        if model is None and not self.features:
            raise ConfigError("a fitted teacher needs a model, or at least one named feature")
        self._reader = None if model is None else LocalReader(model, **options)
        self._reading = READINGS[reads](self._reader, nonce) if self._reader else None
        self.names = (*self.features, *(self._reading.names if self._reading else ()))
        """Of the numbers that have one; they come first."""
        self.reader = self._reader.name if self._reader else ""
        self.prompts = self._reading.prompts if self._reading else ""

    def usage(self) -> Usage:
        """What the model has read so far."""
        return self._reader.usage() if self._reader else Usage()

    def read(self, views: Sequence[View]) -> list[Floats | None]:
        """[N] of [F]; None for a view that does not fit the model's context even with its tool results cut."""
        named = [np.asarray(describe(view, self.features), dtype=np.float64) for view in views]
        if self._reading is None:
            return list(named)
        return [
            None if more is None else np.concatenate([row, more])
            for row, more in zip(named, self._reading.read(views), strict=True)
        ]
