"""What is said to a vLLM server over HTTP: sample after these tokens, take these weights.

Every answer names the weights that it was sampled with. A server that went away and came back with others is found
out by that: it is given the last ones again, and then the turns that it has lost.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import httpx2
from pydantic import BaseModel, Field, ValidationError

from ovd_gym.errors import ConfigError
from ovd_gym.llm.endpoint import Endpoint
from ovd_gym.llm.engine import Written
from ovd_gym.llm.reliability import Failure, Limits, Patience
from ovd_gym.records import first_problem

__all__ = ["Reply", "VllmServer"]

_PASSING = {408, 409, 425, 429}
"""Besides 5xx."""
_UNTIL_TIMEOUT = 1_000_000
"""Retries; the deadline comes first."""
_GENERATE = "/inference/v1/generate"
_CONNECT_S = 10.0


class _Logprob(BaseModel):
    logprob: float


class _Logprobs(BaseModel):
    content: list[_Logprob]


class _Span(BaseModel):
    version: str


class _Choice(BaseModel):
    token_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    logprobs: _Logprobs
    weight_versions: list[_Span] | None = None


class Reply(BaseModel):
    """Of ``/inference/v1/generate``, as far as it is read here."""

    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]
    prompt_logprobs: list[dict[int, _Logprob] | None] | None = None

    @property
    def tokens(self) -> list[tuple[int, float]]:
        """(id, log-probability) of each sampled token."""
        choice = self.choices[0]
        return [(i, place.logprob) for i, place in zip(choice.token_ids, choice.logprobs.content, strict=True)]

    @property
    def versions(self) -> set[str]:
        """Labels of the weights that sampled them; empty for a server that does not say."""
        return {span.version for span in self.choices[0].weight_versions or ()}


class VllmServer:
    """One server, used from one event loop.

    Args:
        endpoint: its address, with or without ``/v1``, and the name of the variable with its key.
        adapters: whether it is given LoRA adapters, or else whole weights.
        timeout_s: for one turn, with all that it takes: retries, a restart of the server, weights sent again.
        sync_timeout_s: for loading weights.

    Raises:
        ConfigError: no such server, or one that cannot be given weights.
    """

    def __init__(self, endpoint: Endpoint, *, adapters: bool, timeout_s: float, sync_timeout_s: float) -> None:
        self.host = endpoint.host
        self._url = str(endpoint.base_url).rstrip("/").removesuffix("/v1")
        self._key = endpoint.key()
        self._adapters = adapters
        self._sync_timeout_s = sync_timeout_s
        self._patience = Patience(Limits(timeout_s=timeout_s, max_retries=_UNTIL_TIMEOUT))
        self._sync_patience = Patience(Limits(timeout_s=sync_timeout_s, max_retries=_UNTIL_TIMEOUT))
        self._run = secrets.token_hex(4)  # other runs on this server have versions of their own
        self._loaded: Written | None = None
        """What it should have."""
        self._doubtful = True
        """Whether it may have others."""
        self._restoring = asyncio.Lock()
        self._model, self.max_context = self._introduced()
        self._client = httpx2.AsyncClient(**self._transport(), limits=httpx2.Limits(max_connections=None))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def load(self, weights: Written) -> Failure | None:
        """Have it take ``weights``; adapters that it had are dropped then."""
        before, self._loaded, self._doubtful = self._loaded, weights, True
        failure = await self._sync_patience.call(self._restored)
        if failure is None and self._adapters and before is not None:
            gone = {"lora_name": self._label(before)}
            dropped = await self._ask("POST", "/v1/unload_lora_adapter", gone, passing=404)
            if isinstance(dropped, Failure) and not dropped.again:  # else it has been restarted without them
                return dropped
        return failure

    async def turn(self, ids: Sequence[int], parameters: Mapping[str, Any]) -> Reply | Failure:
        """What it samples after ``ids`` with vLLM's sampling ``parameters``, however often it has to be asked."""
        return await self._patience.call(partial(self._attempt, ids, parameters))

    async def _attempt(self, ids: Sequence[int], parameters: Mapping[str, Any]) -> Reply | Failure:
        if (failure := await self._restored()) is not None:
            return failure
        label = self._label(self._expected)
        body = {"model": label if self._adapters else self._model, "token_ids": ids, "sampling_params": parameters}
        content = await self._ask("POST", _GENERATE, body, passing=404 if self._adapters else None)
        if isinstance(content, Failure):
            self._doubtful |= content.again
            return content
        try:
            reply = Reply.model_validate_json(content)
            reply.tokens  # noqa: B018  (as many log-probabilities as tokens)
        except ValueError as error:
            why = first_problem(error) if isinstance(error, ValidationError) else str(error)
            return Failure("malformed", f"no reply to a turn: {why}", again=True)
        if not self._adapters and reply.versions != {label}:
            self._doubtful = True
            given = ", ".join(sorted(reply.versions)) or "it does not say which"
            return Failure("error", f"it sampled with other weights than {label}: {given}", again=True)
        return reply

    @property
    def _expected(self) -> Written:
        assert self._loaded is not None, "weights are loaded before anything is sampled"
        return self._loaded

    def _label(self, weights: Written) -> str:
        """As the server calls them."""
        return f"{self._run}-{weights.version}"

    async def _restored(self) -> Failure | None:
        """Give it its weights again, if it may have lost them; one turn does so for all."""
        async with self._restoring:
            if self._doubtful:
                weights = self._expected
                await asyncio.to_thread(weights.check)
                send = self._send_adapters if self._adapters else self._send_weights
                failure = await send(str(weights.folder), self._label(weights))
                self._doubtful = failure is not None
                return failure
        return None

    async def _send_adapters(self, folder: str, label: str) -> Failure | None:
        listed = await self._ask("GET", "/v1/models")
        if isinstance(listed, Failure) or f'"{label}"'.encode() in listed:
            return listed if isinstance(listed, Failure) else None
        taken = await self._ask("POST", "/v1/load_lora_adapter", {"lora_name": label, "lora_path": folder})
        return taken if isinstance(taken, Failure) else None

    async def _send_weights(self, folder: str, label: str) -> Failure | None:
        info = await self._ask("GET", "/weight_info")
        if isinstance(info, Failure) or f'"{label}"'.encode() in info:
            return info if isinstance(info, Failure) else None
        reload = {"method": "reload_weights", "kwargs": {"weights_path": folder}, "timeout": self._sync_timeout_s}
        for path, body in (
            ("/collective_rpc", reload),
            ("/reset_prefix_cache?reset_running_requests=true", {}),
            ("/update_weight_version", {"new_version": label}),
        ):
            done = await self._ask("POST", path, body)
            if isinstance(done, Failure):
                return done
            if path.startswith("/reset") and b"true" not in done:
                return Failure("error", "it did not forget what it had computed with other weights", again=True)
        return None

    # HTTP -------------------------------------------------------------------------------------------------

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, passing: int | None = None
    ) -> bytes | Failure:
        """The body of its answer; HTTP status ``passing`` is worth another try, too."""
        limit_s = None if path == _GENERATE else self._sync_timeout_s
        timeout = httpx2.Timeout(limit_s, connect=_CONNECT_S)
        try:
            answer = await self._client.request(method, self._url + path, json=body, timeout=timeout)
        except httpx2.TimeoutException:
            return Failure("timeout", f"{path} gave no answer in time", again=True)
        except httpx2.TransportError as error:
            return Failure("error", f"no connection to {self.host} ({type(error).__name__})", again=True)
        if answer.is_success:
            return answer.content
        again = answer.status_code in (*_PASSING, passing) or answer.status_code >= 500
        return Failure("error", f"HTTP {answer.status_code} from {path}: {self._shown(answer.text)}", again=again)

    def _transport(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        return {"headers": headers, "trust_env": False}

    def _shown(self, text: str) -> str:
        """What it said, in one short line and without the key that it might repeat."""
        key = self._key.get_secret_value() if self._key else ""
        return " ".join((text.replace(key, "[key]") if key else text).split())[:300]

    def _introduced(self) -> tuple[str, int]:
        """The name of the model it serves, and the tokens a sequence may have."""
        route, how = ("/weight_info", "VLLM_SERVER_DEV_MODE=1")
        if self._adapters:
            route, how = ("/v1/load_lora_adapter", "--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1")
        try:
            with httpx2.Client(**self._transport(), timeout=_CONNECT_S) as client:
                listed = client.get(f"{self._url}/v1/models").raise_for_status().json()["data"]
                served = next(model for model in listed if not model.get("parent"))
                there = client.options(self._url + route).status_code != 404
                generates = client.post(self._url + _GENERATE, json={}).status_code not in (403, 404)
                name, longest = str(served["id"]), int(served["max_model_len"])
        except httpx2.HTTPError as error:
            raise ConfigError(f"no vLLM server at {self._url}: {self._shown(str(error))}") from None
        except (ValueError, KeyError, TypeError, StopIteration):
            raise ConfigError(f"the server at {self._url} does not list its model as vLLM does") from None
        if not generates:
            raise ConfigError(
                f"the server at {self._url} takes no token ids: start vLLM (0.32 or newer) with --enable-scale-out"
            )
        if not there:
            raise ConfigError(f"the server at {self._url} takes no weights: start vLLM (0.32 or newer) with {how}")
        return name, longest
