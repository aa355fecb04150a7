"""The student sampled by vLLM in this process."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ovd_gym.errors import TrainingStopped
from ovd_gym.llm.base import Sampling
from ovd_gym.llm.engine import Written
from ovd_gym.llm.engine_session import EngineSession, Sampled
from ovd_gym.llm.vllm_engine import start_vllm

__all__ = ["VllmLM"]

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's ``max_lora_rank`` may be."""


class VllmLM:
    """A :class:`~ovd_gym.llm.engine.Engine` in this process (vLLM runs its model in a process of its own beside it).

    Log-probabilities are those of the model, before temperature and any truncation (``raw_logprobs``). One session at
    a time: open the next when the last is closed.

    Args:
        model: a name for :func:`~ovd_gym.llm.models.resolve_model`: version 0 of the weights.
        tokenizer: the model's.
        max_context: tokens a row may hold.
        dtype: of the weights, as vLLM calls it.
        lora_rank: of the adapters it will be given; 0: it will be given whole weights.
        timeout_s: for loading weights.
        options: further arguments of ``vllm.LLM``, such as ``{"gpu_memory_utilization": 0.4}``.

    Raises:
        ConfigError: vLLM is not installed, or cannot load the model or take the options.
    """

    def __init__(
        self,
        model: str,
        tokenizer: PreTrainedTokenizerBase,
        max_context: int,
        *,
        dtype: str = "float32",
        lora_rank: int = 0,
        timeout_s: float = 120.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        fixed: dict[str, Any] = {"dtype": dtype, "max_model_len": max_context}
        if lora_rank:
            fixed |= {"enable_lora": True, "max_loras": 1}
            fixed |= {"max_lora_rank": min(r for r in _LORA_RANKS if r >= lora_rank)}
        self.vllm, self.llm = start_vllm(model, options or {}, fixed)
        self.engine = self.llm.llm_engine
        self.tokenizer = tokenizer
        self.max_context = max_context
        self.adapter: Any = None
        """The LoRA request that every turn is sampled with."""
        self._lora_rank = lora_rank
        self._timeout_s = timeout_s
        self._sessions = 0

    def open(self, seeds: Sequence[int], sampling: Sampling) -> VllmSession:
        """See :class:`~ovd_gym.llm.base.LanguageModel`."""
        self._sessions += 1
        return VllmSession(self, f"session-{self._sessions}", seeds, sampling)

    def load(self, weights: Written) -> None:
        """See :class:`~ovd_gym.llm.engine.Engine`."""
        weights.check()
        folder = str(weights.folder)
        try:
            if self._lora_rank:
                request = importlib.import_module("vllm.lora.request").LoRARequest
                self.adapter = request(f"version-{weights.version}", weights.version + 1, folder)
            else:
                self.llm.collective_rpc("reload_weights", self._timeout_s, kwargs={"weights_path": folder})
            forgotten = self.llm.reset_prefix_cache()
        except Exception as error:
            why = " ".join(str(error).split())[:300]
            raise TrainingStopped(
                f"vLLM did not take weights of version {weights.version}: {type(error).__name__}: {why}"
            ) from error
        if not forgotten:
            raise TrainingStopped("vLLM did not forget what it had computed with other weights: a turn is under way")

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """See :class:`~ovd_gym.llm.engine.Engine`."""
        params = self.vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        (output,) = self.llm.generate(
            [{"prompt_token_ids": list(ids)}], params, use_tqdm=False, lora_request=self.adapter
        )
        return [output.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))]

    def close(self) -> None:
        """See :class:`~ovd_gym.llm.engine.Engine`."""
        self.engine.engine_core.shutdown()


class VllmSession(EngineSession):
    """See :class:`~ovd_gym.llm.base.Session`."""

    def __init__(self, lm: VllmLM, name: str, seeds: Sequence[int], sampling: Sampling) -> None:
        super().__init__(lm.tokenizer, lm.max_context, seeds, sampling)
        self._lm = lm
        self._name = name
        self._turns = 0
        self._requests: dict[int, str] = {}
        """Of the turns under way, by row."""
        self._of: dict[str, int] = {}

    def begin(self, row: int, ids: Sequence[int], parameters: Mapping[str, Any]) -> None:
        """See :class:`~ovd_gym.llm.engine_session.EngineSession`."""
        vllm = self._lm.vllm
        params = vllm.SamplingParams(
            **parameters, detokenize=False, output_kind=vllm.sampling_params.RequestOutputKind.DELTA
        )
        self._turns += 1
        self._requests[row] = request = f"{self._name}/{self._turns}"
        self._of[request] = row
        prompt = {"prompt_token_ids": list(ids)}
        self._lm.engine.add_request(request, prompt, params, lora_request=self._lm.adapter)

    def poll(self) -> Iterator[Sampled]:
        """See :class:`~ovd_gym.llm.engine_session.EngineSession`."""
        try:
            outputs = self._lm.engine.step()
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise TrainingStopped(f"vLLM broke: {why}; continue with --resume") from error
        for output in outputs:
            row = self._of.get(output.request_id)
            if row is None:  # given up
                continue
            (sampled,) = output.outputs
            logprobs = [place[token].logprob for token, place in zip(sampled.token_ids, sampled.logprobs, strict=True)]
            if output.finished:
                self._forget(row)
            yield Sampled(row, list(zip(sampled.token_ids, logprobs, strict=True)), output.finished)

    def abort(self, rows: Sequence[int]) -> None:
        """See :class:`~ovd_gym.llm.engine_session.EngineSession`."""
        self._lm.engine.abort_request([self._forget(row) for row in rows if row in self._requests])

    def _forget(self, row: int) -> str:
        request = self._requests.pop(row)
        del self._of[request]
        return request
