"""The configuration section ``engine``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, HttpUrl, JsonValue, model_validator

from ovd_gym.records import Record

__all__ = ["EngineConfig"]


class EngineConfig(Record):
    """What the student samples with while it is trained."""

    name: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    """The learner's own model, vLLM in this process, or a vLLM server; see docs/vllm.md."""
    options: dict[str, JsonValue] = {}
    """Further arguments of ``vllm.LLM``, such as ``{gpu_memory_utilization: 0.4}`` (``vllm``)."""
    base_url: HttpUrl | None = None
    """Of the server, such as ``http://localhost:8000`` (``vllm-server``)."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the server's key; None sends no key."""
    sync: Literal["adapters", "weights"] | None = None
    """What the engine is sent after each update: LoRA adapters, or whole weights with the adapters folded in. None:
    adapters where there are some."""
    exchange: str | None = None
    """The folder they are written to, which the engine sees under the same path; None: a temporary one."""
    sync_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """For taking them."""
    outage_s: Annotated[float, Field(gt=0)] = 600.0
    """For one turn from the server, with all that it takes: retries, a restart, weights sent again. Training stops
    when it is over."""
    max_logprob_gap: Annotated[float, Field(gt=0)] = 0.5
    """Nats by which engine and learner may differ on a token of a probe that both read after each update."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        server = {"base_url", "api_key_env", "outage_s"}
        unused = {
            "transformers": set(EngineConfig.model_fields) - {"name"},
            "vllm": server,
            "vllm-server": {"options"},
        }[self.name]
        for key in sorted(unused):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"engine.{key} has no effect with engine.name {self.name!r}; remove it")
        if self.name == "vllm-server" and self.base_url is None:
            raise ValueError("engine.base_url is required with engine.name 'vllm-server'")
        return self
