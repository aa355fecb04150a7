"""Choices from a model that vLLM runs in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import Prompt, Reading, Usage
from ovd_gym.llm.choice_logits import LogitChoices
from ovd_gym.llm.local_reader import ChatText
from ovd_gym.llm.models import load_tokenizer, resolve_model
from ovd_gym.llm.vllm_engine import start_vllm

__all__ = ["VllmChoices"]

_EDGE_BYTES = 65_536


class VllmChoices(LogitChoices):
    """Reads choices off the logits of a model on vLLM: what :class:`~ovd_gym.llm.choice_local.LocalChoices` reads on
    transformers, and equal to it up to rounding.

    The log-probabilities of exactly the choices' tokens are asked for (``logprob_token_ids``), as the model gives them
    and before any constraint: the mass is the model's own. One token is generated and thrown away. Prefix
    caching is on, so that the steps of an attempt share what they have in common, block by block.

    Args:
        model: a name for :func:`~ovd_gym.llm.models.resolve_model`.
        min_mass: least ``mass`` of a choice, in [0, 1].
        max_tokens: longest prompt, in tokens; None takes the model's own context. A longer one is ``over_budget``.
        dtype: of the weights, as vLLM calls it.
        engine_options: further arguments of ``vllm.LLM``, such as ``{"gpu_memory_utilization": 0.5}``.

    Raises:
        ConfigError: vLLM is not installed, or cannot load the model or take the options.
    """

    def __init__(
        self,
        model: str,
        *,
        min_mass: float = 0.5,
        max_tokens: int | None = None,
        dtype: str = "auto",
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not 0.0 <= min_mass <= 1.0:
            raise ConfigError(f"min_mass must be in [0, 1], got {min_mass}")
        if max_tokens is not None and max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {max_tokens}")
        reader = _VllmReader(model, max_tokens, dtype, engine_options or {})
        settings = f"{reader.dtype}, min mass {min_mass}, {reader.max_tokens} tokens"
        super().__init__(reader, min_mass, f"vllm({reader.name}, {settings})")

    def read(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[Reading]:
        """Readings aligned with ``prompts``; an engine that breaks is every reading's ``error``."""
        try:
            return super().read(prompts, choices)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001  (an engine may raise anything; it is recorded, never a number)
            why = f"vLLM failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            return [Reading.missing("error", why)] * len(prompts)


class _VllmReader(ChatText):
    """A model on vLLM, for :class:`~ovd_gym.llm.choice_logits.LogitChoices`."""

    def __init__(self, model: str, max_tokens: int | None, dtype: str, options: Mapping[str, Any]) -> None:
        source = resolve_model(model)
        super().__init__(load_tokenizer(model))
        limits = {} if max_tokens is None else {"max_model_len": max_tokens + 1}
        vllm, self._engine = start_vllm(model, options, {"dtype": dtype, **limits})
        self._params = vllm.SamplingParams
        self.name = f"{source.name}@{_fingerprint(source)}" if isinstance(source, Path) else source
        self.dtype = str(self._engine.model_config.dtype).removeprefix("torch.")
        self.max_tokens = int(self._engine.model_config.max_model_len) - 1
        self._usage = Usage()

    def next_token_logprobs(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
        """[B, C] float32 log-probabilities of ``tokens`` after each sequence."""
        params = self._params(max_tokens=1, temperature=0.0, logprob_token_ids=list(tokens), detokenize=False)
        prompts = [{"prompt_token_ids": list(sequence)} for sequence in sequences]
        outputs = self._engine.generate(prompts, params, use_tqdm=False) if prompts else []
        for output in outputs:
            read = len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
            self._usage += Usage(requests=1, prompt_tokens=read, completion_tokens=1)
        rows = [[output.outputs[0].logprobs[0][token].logprob for token in tokens] for output in outputs]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(tokens))

    def usage(self) -> Usage:
        """Sequences and tokens read so far; tokens from the prefix cache are not read."""
        return self._usage


def _fingerprint(folder: Path) -> str:
    """8 hex digits over the ends of every file of a model: other weights have another one."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".json")):
        with path.open("rb") as file:
            head = file.read(_EDGE_BYTES)
            file.seek(max(0, path.stat().st_size - _EDGE_BYTES))
            digest.update(f"{path.name} {path.stat().st_size}\n".encode() + head + file.read())
    return digest.hexdigest()[:8]
