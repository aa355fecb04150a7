"""Putting questions about attempts to a choice model: fences, and cuts where a prompt is too long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import ChoiceModel, Prompt, Reading, make_choice_model
from ovd_gym.teachers.base import View
from ovd_gym.teachers.prompting import Prompts, draw_nonce, shorten

__all__ = ["Examiner", "Fitted", "attempts", "fit", "share"]

_OBSERVATION_LIMITS = (None, 4000, 2000, 1000, 500, 250, 120)
"""Characters a tool result may keep; the next one is tried when a prompt is still too long."""

Fitted = tuple[tuple[View, ...], str]
"""What is shown in one prompt, and a note on what was cut out of it."""


class Examiner:
    """A model, and how it is asked: one template, always the same choices.

    Args:
        model: whatever :func:`~ovd_gym.llm.choice.make_choice_model` takes.
        template: name of the template, without ``.j2``.
        choices: what the model may reply.
        prompts: a folder with templates of one's own.
        prefill: what the line of the verdict starts with.
        nonce: names the fences; None draws one, for all prompts alike, because small models read a view differently
            when only the nonce changes. A given one makes two runs read the same prompts.

    Raises:
        ConfigError: a model that cannot be had or cannot tell the choices apart, or templates that do not work.
    """

    def __init__(
        self,
        model: ChoiceModel | str | Mapping[str, Any] | tuple[Any, Any],
        template: str,
        choices: Sequence[str],
        prompts: str | Path | None = None,
        *,
        prefill: str = "VERDICT: ",
        nonce: str | None = None,
    ) -> None:
        self._prompts = Prompts(prompts)
        self.model = make_choice_model(model)
        self.model.check(prefill, choices)
        self.label = f"{self.model.name}, prompts {self._prompts.hash}"
        """What the readings depend on, but for the seed."""
        self._template, self._choices, self._prefill = template, tuple(choices), prefill
        self._nonce, self._own_nonce = nonce or draw_nonce(), nonce is None

    def seed(self, seed: int) -> None:
        """Derive the fences' nonce from ``seed``, unless one was given: the student never sees it either way."""
        if self._own_nonce:
            self._nonce = draw_nonce(seed)
        self.model.seed(seed)

    def prompt(self, view: View, **more: Any) -> Prompt:
        """The question about ``view``; ``more`` are further variables of the template."""
        reserved = (*self.model.reserved, self._prefill.strip())
        return self._prompts.render(
            view, self._template, prefill=self._prefill, nonce=self._nonce, reserved=reserved, **more
        )

    def fit(self, shown: Sequence[tuple[View, ...]], draw: Callable[[tuple[View, ...]], Prompt]) -> list[Fitted | None]:
        """What can be shown instead of each of ``shown``, so that the model can read what ``draw`` makes of it.

        See :func:`fit`.
        """
        return fit(shown, lambda views: self.model.fits(draw(views)))

    def read(self, prompts: Sequence[Prompt]) -> list[Reading]:
        """Readings aligned with ``prompts``; those of a model that raises are ``error``."""
        try:
            readings = self.model.read(prompts, self._choices) if prompts else []
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  (a model of one's own may raise anything; it is recorded)
            return [Reading.missing("error", f"{type(error).__name__}: {error}")] * len(prompts)
        if len(readings) != len(prompts):
            return [Reading.missing("error", f"{len(readings)} readings for {len(prompts)} prompts")] * len(prompts)
        return readings


def fit(shown: Sequence[tuple[View, ...]], fits: Callable[[tuple[View, ...]], bool]) -> list[Fitted | None]:
    """What can be shown instead of each of ``shown``, so that ``fits`` says yes; None where nothing can.

    Tool results lose their middle, in steps and visibly, and in all of ``shown`` alike, so that what they have in
    common stays common.
    """
    fitting = [False] * len(shown)
    for limit in _OBSERVATION_LIMITS if shown else ():
        cut = [_cut(views, limit) for views in shown]
        fitting = [fits(views) for views, _ in cut]
        if all(fitting):
            return [*cut]
    rest = iter(fit([views for views, yes in zip(shown, fitting, strict=True) if yes], fits) if any(fitting) else ())
    return [next(rest) if yes else None for yes in fitting]


def attempts(views: Sequence[View]) -> Iterator[list[View]]:
    """Runs of views, each of which has the steps of the one before it and perhaps more: the views of one attempt."""
    run: list[View] = []
    for view in views:
        if run and (view.question != run[-1].question or view.steps[: len(run[-1].steps)] != run[-1].steps):
            yield run
            run = []
        run.append(view)
    if run:
        yield run


def share(reading: Reading) -> float:
    """Probability of the first choice in a valid reading: 0 or 1 where only the choice is known."""
    return float(reading.choice == 0) if reading.probs is None else min(1.0, reading.probs[0])


def _cut(views: tuple[View, ...], limit: int | None) -> Fitted:
    if limit is None:
        return views, ""
    shorter, cut = zip(*(shorten(view, limit) for view in views), strict=True)
    return shorter, f"cut {sum(cut)} characters out of tool results to fit the context" if sum(cut) else ""
