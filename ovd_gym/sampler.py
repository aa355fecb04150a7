"""What the student samples with: the learner's own model, or an engine that is sent its weights."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ovd_gym.config import TrainConfig
from ovd_gym.llm.base import LanguageModel
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.endpoint import Endpoint
from ovd_gym.llm.engine import Engine
from ovd_gym.llm.served_lm import ServedLM
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.llm.vllm_lm import VllmLM
from ovd_gym.llm.vllm_server import VllmServer
from ovd_gym.llm.weights import WeightSender

__all__ = ["make_sampler"]

_PROBE = "How much is 12 + 30? Let me see: 12 + 30 = 42, so the answer is 42."


def make_sampler(
    config: TrainConfig, decoder: Decoder, tokenizer: PreTrainedTokenizerBase
) -> tuple[LanguageModel, WeightSender | None]:
    """The backend, and what sends it ``decoder``'s weights; None where it reads them in place.

    Raises :class:`~ovd_gym.errors.ConfigError` for an engine that is not there or cannot be used.
    """
    if config.engine.name == "transformers":
        return TransformersLM(decoder, tokenizer, config.student.max_context), None
    engine = _engine(config, tokenizer, config.student.max_context or decoder.max_positions)
    exchange = config.engine.exchange
    sender = WeightSender(
        engine,
        decoder,
        adapters=config.sends_adapters,
        probe=tokenizer(_PROBE).input_ids,
        max_gap=config.engine.max_logprob_gap,
        exchange=Path(exchange) if exchange else None,
    )
    return engine, sender


def _engine(config: TrainConfig, tokenizer: PreTrainedTokenizerBase, max_context: int) -> Engine:
    chosen = config.engine
    if chosen.name == "vllm":
        return VllmLM(
            config.student.model,
            tokenizer,
            max_context,
            dtype=config.student.dtype,
            lora_rank=config.learner.lora_rank if config.sends_adapters else 0,
            timeout_s=chosen.sync_timeout_s,
            options=chosen.options,
        )
    endpoint = Endpoint.model_validate({"base_url": chosen.base_url, "api_key_env": chosen.api_key_env})
    server = VllmServer(
        endpoint,
        adapters=config.sends_adapters,
        timeout_s=chosen.outage_s,
        sync_timeout_s=chosen.sync_timeout_s,
    )
    return ServedLM(server, tokenizer, max_context)
