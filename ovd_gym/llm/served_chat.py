"""Chat completions from an OpenAI-compatible server: one request with patience, and every way in which it can fail.

Teachers read choices from them (:mod:`ovd_gym.llm.choice_served`), agents whole turns (:mod:`ovd_gym.agents.served`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import anyio
import httpx2
import openai
from pydantic import ValidationError

from ovd_gym.llm.choice import Usage
from ovd_gym.llm.reliability import Account, Breaker, Failure, Patience
from ovd_gym.llm.replies import Completion
from ovd_gym.llm.served_options import ChatOptions
from ovd_gym.records import first_problem

__all__ = ["ServedChat"]

_PASSING = {408, 409, 425, 429}
"""Besides 5xx."""
_TOO_LONG = ("context_length_exceeded", "maximum context length")
_FILTERED = ("content_filter", "content_policy_violation")
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
MAX_BYTES = 64_000_000
"""Of one answer, unpacked."""
_WANTS_COMPLETION_TOKENS = ("api.openai.com", ".openai.azure.com")
"""Hosts whose newer models refuse ``max_tokens``, the name that all others know."""


class _TooLong(httpx2.TransportError):
    """An answer that is not read to its end."""


class _Client(openai.DefaultAsyncHttpxClient):
    """Reads an answer of whatever status piece by piece, unpacked: a few bytes of it may stand for gigabytes."""

    async def send(self, request: httpx2.Request, *, stream: bool = False, **options: Any) -> httpx2.Response:
        response = await super().send(request, stream=True, **options)
        if not stream:
            content = bytearray()
            try:
                async for piece in response.aiter_bytes(65_536):
                    content += piece
                    if len(content) > MAX_BYTES:
                        raise _TooLong(f"more than {MAX_BYTES} bytes")
            finally:
                await response.aclose()
            response._content = bytes(content)
        return response


class ServedChat:
    """Asks a chat endpoint within the limits of its options: so many requests at a time, retries, breaker, budget.

    Failures are values: ``timeout`` (nothing within ``timeout_s``), ``refused`` (by a content filter), ``malformed``
    (no chat completion), ``over_budget`` (our budget, the account's quota or the model's context) and ``error`` (other
    HTTP errors, no connection, a key that is not accepted, an open circuit breaker).

    Raises:
        ConfigError: the key is not set, or not safe to send.
    """

    def __init__(self, options: ChatOptions) -> None:
        self.options = options
        self._key = options.key()
        self._forms = _forms(self._key.get_secret_value()) if self._key else None
        self._tls = httpx2.create_ssl_context()
        self._slots = anyio.CapacityLimiter(options.concurrency)
        self._patience = Patience(options)
        self._breaker = Breaker(options.breaker_failures, options.breaker_cooldown_s)
        self._account = Account(options, options.prices)

    def usage(self) -> Usage:
        """Requests, retries among them, and the tokens the server counted; those from its cache only in ``cost``."""
        return self._account.usage

    def longest(self, tokens: int) -> dict[str, int]:
        """The field of a request that bounds the reply, by the name that this server knows."""
        known = self.options.host.endswith(_WANTS_COMPLETION_TOKENS)
        return {"max_completion_tokens" if known else "max_tokens": tokens}

    def client(self) -> openai.AsyncOpenAI:
        """A client for the requests of one event loop, to be closed after them."""
        return openai.AsyncOpenAI(
            api_key=self._key.get_secret_value() if self._key else "none",
            base_url=str(self.options.base_url),
            timeout=httpx2.Timeout(self.options.timeout_s, connect=min(10.0, self.options.timeout_s)),
            max_retries=0,
            http_client=_Client(verify=self._tls),
        )

    async def ask(self, client: openai.AsyncOpenAI, body: Mapping[str, Any]) -> Completion | Failure:
        """The answer to the request ``body``, or why there is none."""
        async with self._slots:
            outcome: Completion | Failure | None = self._account.refusal() or self._breaker.refusal()
            if outcome is None:
                outcome = await self._patience.call(partial(self._attempt, client, body))
                self._breaker.note(outcome)
        return outcome

    async def _attempt(self, client: openai.AsyncOpenAI, body: Mapping[str, Any]) -> Completion | Failure:
        self._account.request()
        # The client would send what it finds in the environment to any server.
        absent = ["OpenAI-Organization", "OpenAI-Project", *([] if self._key else ["Authorization"])]
        try:
            raw = await client.chat.completions.with_raw_response.create(
                **body, extra_headers={name: openai.Omit() for name in absent}
            )
            completion = Completion.model_validate_json(self._hidden(raw.http_response.content))
        except ValidationError as error:
            return Failure("malformed", f"no chat completion: {first_problem(error)}", again=True, outage=True)
        except openai.APITimeoutError:
            return Failure("timeout", "the server did not answer in time", again=True, outage=True)
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, _TooLong):
                return Failure("malformed", f"an answer of {error.__cause__}", outage=True)
            cause = type(error.__cause__ or error).__name__
            return Failure("error", f"no connection to {self.options.host}: {cause}", again=True, outage=True)
        except openai.APIStatusError as error:
            return self._refused(error)
        except Exception as error:  # noqa: BLE001  (one strange answer must not cost the other views)
            return Failure("error", f"the client failed: {type(error).__name__}", outage=True)
        if (used := completion.usage) is not None:
            self._account.tokens(used.prompt_tokens, used.cached, used.completion_tokens)
        elif self._account.limited:
            return Failure("error", "the server does not say what it used: no budget can be kept with it", outage=True)
        return completion

    def _refused(self, error: openai.APIStatusError) -> Failure:
        """What an HTTP error means. The server's words are quoted, but not where they may be about the key."""
        code, told = (self._hidden(part.encode("utf-8", "replace")).decode() for part in _told(error.body))
        told = told[:200]
        status = error.status_code
        why = f"HTTP {status}" + (f": {told}" if told else "")
        if status in (401, 403):
            key = f"the key in {self.options.api_key_env}" if self._key else "a request without a key"
            return Failure("error", f"HTTP {status}: the server does not accept {key}", outage=True)
        if status == 402 or code in _NO_MONEY:
            return Failure("over_budget", why, outage=True)
        if any(mark in code or mark in told for mark in _TOO_LONG):
            return Failure("over_budget", why, too_long=True)
        if code in _FILTERED:
            return Failure("refused", why)
        again = status in _PASSING or status >= 500
        after_s = _seconds(error.response.headers.get("retry-after", "")) if again else 0.0
        return Failure("error", why, again=again, outage=again or status == 404, after_s=after_s)

    def _hidden(self, content: bytes) -> bytes:
        """What a server sent, without the key that it might repeat; to be called before anything is cut off."""
        return self._forms.sub(b"[key]", content) if self._forms else content


def _forms(key: str) -> re.Pattern[bytes]:
    """What ``key`` may look like in JSON: any of its characters may be escaped."""
    characters = (rf"(?:\\?{re.escape(c)}|\\u{ord(c):04x})" for c in key)
    return re.compile("".join(characters).encode(), re.IGNORECASE)


def _told(body: object) -> tuple[str, str]:
    """(code, message) of an error as servers send it, each in one line; empty where there is none."""
    fields = body if isinstance(body, Mapping) else {}
    code, message = (fields.get(name) for name in ("code", "message"))
    return str(code or ""), " ".join(message.split()) if isinstance(message, str) else ""


def _seconds(retry_after: str) -> float:
    """How long a ``Retry-After`` header (RFC 9110, 10.2.3) asks to wait; 0 when it says nothing."""
    if retry_after.strip().isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0
