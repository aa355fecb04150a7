"""A local language model that reads and does not write: text in, token ids and what the model makes of them out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import Usage
from ovd_gym.llm.models import load_model
from ovd_gym.llm.prefix_tree import PackedModel

__all__ = ["ChatText", "LocalReader"]


class ChatText:
    """How a model wants to be spoken to: its chat template and its tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.reserved = _special_tokens(tokenizer)
        """Literals that the tokenizer would turn into control tokens."""
        self._system_role = _has_system_role(tokenizer)

    def chat(self, system: str, user: str) -> str:
        """Everything up to where the model's reply starts; plain paragraphs for a model without a chat template."""
        if not self.tokenizer.chat_template:
            return f"{system}\n\n{user}\n\n"
        if not self._system_role:
            return _chat(self.tokenizer, {"user": f"{system}\n\n{user}"})
        return _chat(self.tokenizer, {"system": system, "user": user})

    def encode(self, text: str) -> list[int]:
        """Token ids of a whole text, beginning-of-text token included where the model expects one."""
        # A chat template writes that token itself.
        return list(self.tokenizer(text, add_special_tokens=not self.tokenizer.chat_template)["input_ids"])

    def encode_inert(self, text: str) -> list[int]:
        """Token ids of a piece of untrusted text: whatever it says, none is a control token."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def beginning(self) -> list[int]:
        """The tokens that the model expects before any text."""
        return list(self.tokenizer("")["input_ids"])


class LocalReader(ChatText):
    """A transformers model with its tokenizer, for teachers that read scores off its numbers.

    Args:
        model: a name for :func:`~ovd_gym.llm.models.load_model`, or a (model, tokenizer) pair.
        max_tokens: longest text, in tokens; None takes the model's own context.
        batch_tokens: tokens of one forward pass.
        dtype: of the weights, when ``model`` is a name.
        device: where to run, when ``model`` is a name.

    Raises:
        ConfigError: a model that cannot be loaded, or a limit below 1.
    """

    def __init__(
        self,
        model: str | tuple[PreTrainedModel, PreTrainedTokenizerBase],
        *,
        max_tokens: int | None = None,
        batch_tokens: int = 4096,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        for name, value in {"max_tokens": max_tokens, "batch_tokens": batch_tokens}.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        network, tokenizer = load_model(model, dtype=dtype, device=device) if isinstance(model, str) else model
        super().__init__(tokenizer)
        label = Path(model).name if isinstance(model, str) else type(network).__name__
        self.name = f"{label}@{_fingerprint(network)}"
        """Recorded with scores: what the model is called, and 8 hex digits of its weights."""
        self.packed = PackedModel(network, batch_tokens)
        self.max_tokens = max_tokens or getattr(network.config, "max_position_embeddings", None) or 8192
        self._sequences = 0

    def last_hidden(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """See :meth:`PackedModel.last_hidden <ovd_gym.llm.prefix_tree.PackedModel.last_hidden>`."""
        self._sequences += len(sequences)
        return self.packed.last_hidden(sequences)

    @property
    def dtype(self) -> str:
        """Of the weights, such as ``float32``."""
        return str(self.packed.dtype).removeprefix("torch.")

    def next_token_logprobs(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> torch.Tensor:
        """See :meth:`PackedModel.next_token_logprobs <ovd_gym.llm.prefix_tree.PackedModel.next_token_logprobs>`."""
        self._sequences += len(sequences)
        return self.packed.next_token_logprobs(sequences, tokens)

    def token_logprobs(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[torch.Tensor]:
        """See :meth:`PackedModel.token_logprobs <ovd_gym.llm.prefix_tree.PackedModel.token_logprobs>`."""
        self._sequences += len(sequences)
        return self.packed.token_logprobs(sequences, starts)

    def usage(self) -> Usage:
        """Sequences and tokens read so far; what sequences of one pass share counts once."""
        return Usage(requests=self._sequences, prompt_tokens=self.packed.tokens)


def _fingerprint(model: torch.nn.Module) -> str:
    """8 hex digits over the shape and the first values of every parameter: other weights have another one."""
    digest = hashlib.sha256()
    for name, values in model.named_parameters():
        first = [float(value) for value in values.detach().flatten()[:16].float().cpu()]
        digest.update(f"{name} {tuple(values.shape)} {first}\n".encode())
    return digest.hexdigest()[:8]


def _chat(tokenizer: PreTrainedTokenizerBase, turns: Mapping[str, str]) -> str:
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    # The verdict comes at once: a template that lets its model think first is told not to.
    return str(
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, enable_thinking=False)
    )


def _has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template takes a system turn; some (Gemma's) refuse it."""
    if not tokenizer.chat_template:
        return False
    try:
        _chat(tokenizer, {"system": "a", "user": "b"})
    except jinja2.TemplateError:
        return False
    return True


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True))
