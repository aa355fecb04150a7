"""How likely a local language model finds what the agent wrote, token by token.

A step's text is read after the question and all steps and results before it; an answer after the question alone, or
after question and tool results. The agent's own words are left out there, or it could make its answer likely by saying
it before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ovd_gym.llm.local_reader import LocalReader
from ovd_gym.teachers.asking import attempts, fit
from ovd_gym.teachers.base import View

__all__ = ["Saying", "SayingReader"]


class Saying(NamedTuple):
    """What a view is about, as a model read it."""

    logprobs: NDArray[np.float64]
    """[M] nats, one for each token of the step or of the answer; none where nothing was said."""
    note: str
    """What was cut out of tool results, if anything."""


class SayingReader:
    """Reads steps and answers; views of one attempt share one pass of the model.

    Args:
        reader: the model.
        results: read the tool results before an answer.
    """

    def __init__(self, reader: LocalReader, results: bool = False) -> None:
        self._reader = reader
        self.results = results

    def read(self, views: Sequence[View]) -> list[Saying | None]:
        """Aligned with ``views``; None for one that is too long even with its tool results cut."""
        fitted = [found for attempt in attempts(views) for found in fit([(view,) for view in attempt], self._fits)]
        texts = {i: self._ids(found[0][0]) for i, found in enumerate(fitted) if found}
        said = {i: (ids, start) for i, (ids, start) in texts.items() if start < len(ids)}
        read = self._reader.token_logprobs(*zip(*said.values(), strict=True)) if said else []
        logprobs = {i: each.double().numpy() for i, each in zip(said, read, strict=True)}
        return [Saying(logprobs.get(i, np.empty(0)), found[1]) if found else None for i, found in enumerate(fitted)]

    def _fits(self, shown: tuple[View, ...]) -> bool:
        return len(self._ids(shown[0])[0]) <= self._reader.max_tokens

    def _ids(self, view: View) -> tuple[list[int], int]:
        """(token ids, where the judged text starts in them). Views of one attempt begin alike."""
        past = view.steps[:-1]  # the result of an answer is the environment's echo of it
        ids = self._reader.beginning() + self._pieces(f"Question: {view.question}")
        if view.kind == "trajectory":
            ids += self._pieces(*(step.observation for step in past if self.results))
            ids += self._reader.encode_inert("Answer:")
            judged = f" {answer}" if (answer := (view.answer or "").strip()) else ""
        else:
            ids += self._pieces(*(text for step in past for text in (step.text, step.observation)))
            judged = view.steps[-1].text.strip() if view.steps else ""
        return ids + self._reader.encode_inert(judged), len(ids)

    def _pieces(self, *texts: str) -> list[int]:
        """Token ids of ``texts``, one a line. Each is encoded by itself, so that a text has the same ids everywhere."""
        end = self._reader.encode_inert("\n")
        return [token for text in texts if text.strip() for token in self._reader.encode_inert(text.strip()) + end]
