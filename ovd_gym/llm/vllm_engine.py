"""vLLM in this process: started for a teacher or for a student, with errors of one line."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from ovd_gym.errors import ConfigError
from ovd_gym.llm.models import resolve_model

__all__ = ["start_vllm"]

_OURS = {"model", "dtype", "max_model_len", "logprobs_mode", "skip_tokenizer_init", "trust_remote_code"}


def start_vllm(name: str, options: Mapping[str, Any], fixed: Mapping[str, Any]) -> tuple[Any, Any]:
    """The module ``vllm``, and a ``vllm.LLM`` that serves the model called ``name``.

    Args:
        name: for :func:`~ovd_gym.llm.models.resolve_model`.
        options: a user's arguments of ``vllm.LLM``.
        fixed: ours, which they must not set.

    Raises:
        ConfigError: vLLM is not installed, or cannot load the model or take the options.
    """
    if taken := sorted((_OURS | fixed.keys()) & options.keys()):
        raise ConfigError(
            f"options of vllm.LLM must not set {', '.join(taken)}: these are set by other options, or fixed"
        )
    try:
        vllm = importlib.import_module("vllm")
    except ImportError as error:
        raise ConfigError(
            "engine 'vllm' needs the package vllm, best in an environment of its own: pip install 'ovd-gym[vllm]'; "
            f"or start a vLLM server and use that ({error})"
        ) from None
    source = resolve_model(name)
    safe = {"trust_remote_code": False, "load_format": "safetensors"}  # left to itself, vLLM falls back on pickles
    given = {"enable_prefix_caching": True, "logprobs_mode": "raw_logprobs", **safe, **options, **fixed}
    try:
        return vllm, vllm.LLM(str(source), **given)
    except (RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"vLLM cannot run model {name!r}: {why}") from error
