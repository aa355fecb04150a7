"""Choices read off a local transformers model: the distribution of its next token, without generating."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice_logits import LogitChoices
from ovd_gym.llm.local_reader import LocalReader

__all__ = ["LocalChoices"]


class LocalChoices(LogitChoices):
    """Reads choices off the logits of a local model.

    A prompt ends in its ``prefill``; the next-token probabilities of each choice's first token, with and without a
    leading blank, are added up. Together they are ``mass``, renormalised they are ``probs``. A model that gives the
    choices less than ``min_mass`` together was not about to make one of them: ``low_mass``.

    Prompts that begin alike are computed together, what they share once (:mod:`ovd_gym.llm.prefix_tree`): all steps
    of an attempt cost about one pass over it. Nothing is generated, so there are never reasons, whatever a prompt's
    ``explained`` says.

    Args:
        model: a name for :func:`~ovd_gym.llm.models.load_model`, or a (model, tokenizer) pair.
        min_mass: least ``mass`` of a choice, in [0, 1].
        max_tokens: longest prompt, in tokens; None takes the model's own context. A longer one is ``over_budget``.
        batch_tokens: tokens of one forward pass.
        dtype: of the weights, when ``model`` is a name.
        device: where to run, when ``model`` is a name.

    Raises:
        ConfigError: a model that cannot be loaded, or an option out of range.
    """

    def __init__(
        self,
        model: str | tuple[PreTrainedModel, PreTrainedTokenizerBase],
        *,
        min_mass: float = 0.5,
        max_tokens: int | None = None,
        batch_tokens: int = 4096,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        if not 0.0 <= min_mass <= 1.0:
            raise ConfigError(f"min_mass must be in [0, 1], got {min_mass}")
        reader = LocalReader(model, max_tokens=max_tokens, batch_tokens=batch_tokens, dtype=dtype, device=device)
        settings = f"{reader.dtype}, min mass {min_mass}, {reader.max_tokens} tokens"
        super().__init__(reader, min_mass, f"local({reader.name}, {settings})")
        self._packed = reader.packed

    @property
    def separate(self) -> str | None:
        """Why prompts do not share a pass with this model; None if they do."""
        return self._packed.separate
