"""How a served model is asked: every option of an agent's or a teacher's model behind a server, checked."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, JsonValue, ValidationError, model_validator

from ovd_gym.errors import ConfigError
from ovd_gym.llm.endpoint import Endpoint
from ovd_gym.llm.reliability import Limits, Prices
from ovd_gym.records import Probability, first_problem

__all__ = ["ChatOptions", "ServedOptions"]

_OURS = {
    "model", "messages", "n", "temperature", "seed", "stop", "stream", "max_tokens", "max_completion_tokens",
    "logprobs", "top_logprobs", "structured_outputs", "continue_final_message", "add_generation_prompt",
}  # fmt: skip
"""Fields of a request that have options of their own, or none."""
_IN_NAME = ("continues", "top_logprobs", "min_mass", "samples", "temperature", "max_tokens", "max_prompt_chars")


class ChatOptions(Endpoint, Limits):
    """A chat model behind a server; the options of :class:`~ovd_gym.llm.endpoint.Endpoint` and
    :class:`~ovd_gym.llm.reliability.Limits` are among them.

    Raises:
        ConfigError: an option that has no effect beside the others, an address or a variable that is not safe.
        pydantic.ValidationError: a value out of range; :meth:`checked` makes a ConfigError of it.
    """

    own: ClassVar = frozenset(_OURS)
    """What ``extra_body`` must not set."""

    model: Annotated[str, Field(min_length=1)]
    """As the server calls it."""
    extra_body: dict[str, JsonValue] = {}
    """Further fields of each request, such as ``{"chat_template_kwargs": {"enable_thinking": False}}``."""
    prices: Prices | None = None
    """For a million tokens."""

    @classmethod
    def checked(cls, **options: Any) -> Self:
        """The options. Raises ConfigError, in one line and without the value, for one that cannot work."""
        try:
            return cls(**options)
        except ValidationError as error:
            problem = first_problem(error)
        raise ConfigError(f"a model behind a server: {problem}")

    @model_validator(mode="after")
    def _ours(self) -> Self:
        if self.max_cost is not None and self.prices is None:
            raise ConfigError("max_cost has no effect here: there are no prices")
        if own := sorted(self.own & self.extra_body.keys()):
            raise ConfigError(f"extra_body must not set {', '.join(own)}: these are set by other options")
        return self


class ServedOptions(ChatOptions):
    """The options of :class:`~ovd_gym.llm.choice_served.ServedChoices`. Raises like :class:`ChatOptions`."""

    mode: Literal["logprobs", "text", "structured"] = "logprobs"
    """How the choice is had; see :class:`~ovd_gym.llm.choice_served.ServedChoices`."""
    continues: bool = False
    """Whether the server continues a reply that is begun for it."""
    top_logprobs: Annotated[int, Field(ge=0, le=100)] = 20
    """How many of the likeliest tokens the server lists; in mode ``structured`` 0 asks for the choice alone."""
    min_mass: Probability = 0.5
    """Least probability of all choices together, or least share of samples that name one."""
    samples: Annotated[int, Field(ge=1, le=128)] = 1
    """Replies for each prompt, in one request (mode ``text``)."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """Of the samples; None is 0 for one and 1 for several."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest reply; None is 512 where reasons are asked for and 32 elsewhere."""
    reserved: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Literals that the model takes for control tokens, besides those that are always escaped."""
    max_prompt_chars: Annotated[int, Field(ge=1)] | None = None
    """Longest prompt; teachers cut tool results to keep to it. None sends every prompt."""

    @property
    def reads_logits(self) -> bool:
        """Whether the server is asked for log-probabilities."""
        return self.mode != "text" and self.top_logprobs > 0

    @property
    def drawn_at(self) -> float:
        """Temperature of the replies."""
        return self.temperature if self.temperature is not None else float(self.samples > 1)

    @property
    def name(self) -> str:
        """Model, host, and everything else that the answers depend on."""
        shown = {key: getattr(self, key) for key in _IN_NAME}
        changed = {key: value for key, value in shown.items() if value != type(self).model_fields[key].default}
        told = [key if value is True else f"{key} {value:g}" for key, value in changed.items()]
        if self.extra_body or self.reserved:
            rest = json.dumps([self.extra_body, self.reserved], sort_keys=True)
            told.append(f"extra {hashlib.sha256(rest.encode()).hexdigest()[:8]}")
        return f"served({', '.join([f'{self.model} at {self.host}', self.mode, *told])})"

    @model_validator(mode="after")
    def _effective(self) -> Self:
        """Every option that was given has an effect beside the others."""
        text, ends = self.mode == "text", self.mode == "logprobs" and self.continues
        rules = {
            "samples": (text, "only mode 'text' draws samples"),
            "temperature": (text, "log-probabilities are read without sampling"),
            "top_logprobs": (not text, "mode 'text' reads words"),
            "min_mass": (self.mode == "logprobs" or self.samples > 1, "there is no mass"),
            "max_tokens": (not ends, "a reply that is continued ends with its verdict"),
        }
        for name, (effective, why) in rules.items():
            if name in self.model_fields_set and getattr(self, name) is not None and not effective:
                raise ConfigError(f"{name} has no effect here: {why}")
        if self.mode == "logprobs" and self.top_logprobs == 0:
            raise ConfigError("mode 'logprobs' with top_logprobs 0 reads nothing: list at least as many as choices")
        if self.samples > 1 and self.drawn_at == 0:
            raise ConfigError(f"{self.samples} samples at temperature 0 are all the same: raise the temperature")
        return self
