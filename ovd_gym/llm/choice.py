"""What a teacher asks of a language model: which of a few choices comes next, and with what probability.

A digit, a yes or no, the better one of two: every verdict of a model teacher is one choice out of a short list. How it
is had - from the logits of a local model, from a server's log-probabilities, or from the words of a reply - is the
model's business and is the same for all teachers.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from ovd_gym.errors import ConfigError, OvdGymError, unknown
from ovd_gym.plugins import check_options
from ovd_gym.records import Probability, Record, ScoreStatus, Text

__all__ = ["ENGINES", "ChoiceModel", "Prompt", "Reading", "Usage", "make_choice_model"]

ENGINES = {
    "local": "ovd_gym.llm.choice_local:LocalChoices",
    "openai": "ovd_gym.llm.choice_served:ServedChoices",
    "vllm": "ovd_gym.llm.choice_vllm:VllmChoices",
}
"""Where a model runs: in this process on transformers, behind an OpenAI-compatible server, in this process on vLLM."""


class Prompt(Record):
    """One question to a model. The choice comes right after ``prefill``, on the last line of the reply."""

    system: str
    user: str
    prefill: str
    """What the verdict's line starts with, such as ``"SCORE: "``."""
    explained: bool = False
    """Whether the reply may hold reasons before that line. A model whose logits are read never writes any."""


class Reading(Record):
    """What a model chose, or the reason why there is no choice."""

    choice: Annotated[int, Field(ge=0)] | None
    """Index into the choices; the most probable one when there is a distribution."""
    status: ScoreStatus = "ok"
    probs: tuple[Probability, ...] | None = None
    """[C] over the choices, renormalised; None when only the choice is known."""
    mass: Probability | None = None
    """Probability of all choices together, before renormalising."""
    text: Text = ""
    """Reasons given before the verdict; with another status than ``ok``, what went wrong."""

    @classmethod
    def missing(cls, status: ScoreStatus, why: str) -> Reading:
        """No choice, and why."""
        return cls(choice=None, status=status, text=why)


class Usage(Record):
    """What a model has been asked for so far."""

    requests: int = 0
    prompt_tokens: int = 0
    """Read by the model, shared prefixes once."""
    completion_tokens: int = 0
    cost: float = 0.0
    """In the currency of the prices that were given; 0 without prices."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.model_fields})

    def __sub__(self, other: Usage) -> Usage:
        return Usage(**{name: getattr(self, name) - getattr(other, name) for name in Usage.model_fields})


class ChoiceModel(ABC):
    """A language model that answers prompts with one of a few choices."""

    name: str
    """Recorded with every score: what the answers depend on."""
    reads_logits: bool
    """Whether readings carry the model's probabilities."""
    reserved: tuple[str, ...] = ()
    """Literals that the model would take for control tokens; they are escaped in untrusted text."""

    @abstractmethod
    def read(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[Reading]:
        """Readings aligned with ``prompts``. A failure of one is that one's status; nothing is raised for it.

        Raises:
            ConfigError: the model cannot tell the choices apart (two begin with the same token).
        """

    def check(self, prefill: str, choices: Sequence[str]) -> None:  # noqa: B027  (a hook, not a duty)
        """Raise ConfigError if the model cannot tell ``choices`` apart after ``prefill``; for teachers to ask early."""

    def fits(self, prompt: Prompt) -> bool:
        """Whether ``prompt`` fits the model's context."""
        return True

    def seed(self, seed: int) -> None:  # noqa: B027  (a hook, not a duty)
        """Make the model's own random draws repeatable."""

    def usage(self) -> Usage:
        """What has been asked for since the model was made."""
        return Usage()


def make_choice_model(spec: ChoiceModel | str | Mapping[str, Any] | tuple[Any, Any]) -> ChoiceModel:
    """The model that ``spec`` names.

    Args:
        spec: a name for :func:`~ovd_gym.llm.models.load_model` or a (model, tokenizer) pair, to run on transformers;
            a mapping with ``engine`` (one of :data:`ENGINES`, ``local`` when absent) and that engine's options; or a
            ChoiceModel, returned as it is.

    Raises:
        ConfigError: an unknown engine, an unknown or missing option, or a model that cannot be loaded.
    """
    if isinstance(spec, ChoiceModel):
        return spec
    options = dict(spec) if isinstance(spec, Mapping) else {"model": spec}
    engine = options.pop("engine", "local")
    if engine not in ENGINES:
        raise ConfigError(unknown("engine", str(engine), ENGINES))
    module, _, attribute = ENGINES[engine].partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f"engine {engine!r} needs a package that is not installed: {error}") from None
    check_options(f"engine {engine!r}", factory, options)
    try:
        model: ChoiceModel = factory(**options)
    except OvdGymError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"engine {engine!r}: {error}") from None
    return model
