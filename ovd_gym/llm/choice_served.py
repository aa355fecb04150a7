"""Choices from a model behind an OpenAI-compatible server, such as vLLM, SGLang, llama.cpp or a commercial one."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import anyio
import httpx2
import openai
from anyio.from_thread import BlockingPortalProvider
from pydantic import ValidationError

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import ChoiceModel, Prompt, Reading, Usage
from ovd_gym.llm.reliability import Account, Breaker, Failure, Patience
from ovd_gym.llm.replies import Completion, read_distribution, read_text
from ovd_gym.llm.served_options import ServedOptions
from ovd_gym.records import first_problem

__all__ = ["ServedChoices"]

_PASSING = {408, 409, 425, 429}
"""Besides 5xx."""
_TOO_LONG = ("context_length_exceeded", "maximum context length")
_FILTERED = ("content_filter", "content_policy_violation")
_NO_MONEY = ("insufficient_quota", "billing_hard_limit_reached")
_WANTS_COMPLETION_TOKENS = ("api.openai.com", ".openai.azure.com")
"""Hosts whose newer models refuse ``max_tokens``, the name that all others know."""


class ServedChoices(ChoiceModel):
    """Asks an OpenAI-compatible chat endpoint. Safe to use from several threads, and inside a running event loop.

    ``mode`` says how the choice is had:

    * ``logprobs``: from the log-probabilities of the token where the verdict stands. The ``top_logprobs`` likeliest
      tokens are known, the others count as impossible. Choices have to begin with different characters.
    * ``text``: from the words. The last line must be exactly prefill and choice. Of several ``samples`` the shares
      stand in for probabilities, and the share of those that name a choice for the mass.
    * ``structured``: like ``logprobs``, but the server is told to write nothing but a choice (vLLM's
      ``structured_outputs``). What the model would rather have said stays unknown: there is no mass.

    Not every server can continue a reply that is begun for it. Where one can (``continues=True``; vLLM and SGLang take
    ``continue_final_message``), the reply begins after the prefill, and a token or two are all that is generated.
    Elsewhere the model has to write prefill and choice itself, as prompts ask it to, and the token is read further
    on. A server that ignores ``continues`` is found out: its readings are ``low_mass`` or ``malformed``.

    Failures are statuses: ``timeout`` (nothing within ``timeout_s``), ``refused`` (by the model or a content filter),
    ``malformed`` (no chat completion, or one without a verdict), ``low_mass``, ``over_budget`` (our budget, the
    account's quota or the model's context) and ``error`` (other HTTP errors, no connection, a key that is not
    accepted, an open circuit breaker).

    Args:
        options: the fields of :class:`~ovd_gym.llm.served_options.ServedOptions`, ``model`` and ``base_url`` at least.

    Raises:
        ConfigError: an option that cannot work or has no effect beside the others, or a key that is not set.
    """

    __signature__ = inspect.signature(ServedOptions)

    def __init__(self, **options: Any) -> None:
        self._options = ServedOptions.checked(**options)
        self._key = self._options.key()
        self.name = self._options.name
        self.reads_logits = self._options.reads_logits
        self.reserved = self._options.reserved
        self._seed: int | None = None
        self._tls = httpx2.create_ssl_context()
        self._portal = BlockingPortalProvider()  # threads that read at the same time share one event loop
        self._slots = anyio.CapacityLimiter(self._options.concurrency)
        self._patience = Patience(self._options)
        self._breaker = Breaker(self._options.breaker_failures, self._options.breaker_cooldown_s)
        self._account = Account(self._options, self._options.prices)

    def seed(self, seed: int) -> None:
        """Send ``seed`` with requests that sample; servers promise no more than their best effort."""
        self._seed = seed

    def usage(self) -> Usage:
        """Requests, retries among them, and the tokens the server counted; those from its cache only in ``cost``."""
        return self._account.usage

    def check(self, prefill: str, choices: Sequence[str]) -> None:
        """Raise ConfigError for choices that are empty or alike, or that log-probabilities cannot tell apart."""
        told = ", ".join(map(repr, choices))
        if len(set(choices)) < max(2, len(choices)) or any(c != c.strip() or not c or "\n" in c for c in choices):
            raise ConfigError(
                f"choices must be two or more different texts of one line without outer blanks, got {told}"
            )
        if not self.reads_logits:
            return
        if len({choice[0] for choice in choices}) < len(choices):
            raise ConfigError(
                f"of the choices {told} two begin with the same character: the first token may not tell them apart; "
                "use mode 'text', or other choices"
            )
        if (listed := self._options.top_logprobs) < len(choices):
            raise ConfigError(f"top_logprobs {listed} cannot list {len(choices)} choices: raise it")

    def fits(self, prompt: Prompt) -> bool:
        """Whether ``prompt`` keeps to ``max_prompt_chars``."""
        limit = self._options.max_prompt_chars
        return limit is None or len(prompt.system) + len(prompt.user) <= limit

    def read(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[Reading]:
        """Readings aligned with ``prompts``. Raises ConfigError like :meth:`check`, and nothing else."""
        self.check("", choices)
        if not prompts:
            return []
        with self._portal as portal:
            return portal.call(self._read_all, prompts, tuple(choices))

    async def _read_all(self, prompts: Sequence[Prompt], choices: tuple[str, ...]) -> list[Reading]:
        async with self._client() as client:
            return await asyncio.gather(*(self._read_one(client, prompt, choices) for prompt in prompts))

    async def _read_one(self, client: openai.AsyncOpenAI, prompt: Prompt, choices: tuple[str, ...]) -> Reading:
        if not self.fits(prompt):
            limit = self._options.max_prompt_chars
            return Reading.missing("over_budget", f"the prompt has more than max_prompt_chars = {limit} characters")
        attempt = partial(self._attempt, client, self._body(prompt, choices))
        async with self._slots:
            outcome: Completion | Failure | None = self._account.refusal() or self._breaker.refusal()
            if outcome is None:
                outcome = await self._patience.call(attempt)
                self._breaker.note(outcome)
        if isinstance(outcome, Failure):
            reading = Reading.missing(outcome.status, outcome.why)
        else:
            reading = self._reading(outcome, prompt, choices)
        return reading

    # One request ----------------------------------------------------------------------------------------

    def _client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key=self._key.get_secret_value() if self._key else "none",
            base_url=str(self._options.base_url),
            timeout=httpx2.Timeout(self._options.timeout_s, connect=min(10.0, self._options.timeout_s)),
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(verify=self._tls),
        )

    def _body(self, prompt: Prompt, choices: tuple[str, ...]) -> dict[str, Any]:
        """The request. See https://docs.vllm.ai/en/stable/serving/openai_compatible_server for the extra fields."""
        options = self._options
        extra: dict[str, Any] = dict(options.extra_body)
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        start = _start(prompt, choices)
        allowed = [prompt.prefill + choice for choice in choices]
        if self._continued(prompt):
            messages.append({"role": "assistant", "content": start})
            extra |= {"continue_final_message": True, "add_generation_prompt": False}
            allowed = [line.removeprefix(start) for line in allowed]
        if options.mode == "structured":
            extra["structured_outputs"] = {"choice": allowed}
        field = "max_completion_tokens" if options.host.endswith(_WANTS_COMPLETION_TOKENS) else "max_tokens"
        body: dict[str, Any] = {"model": options.model, "messages": messages, "temperature": options.drawn_at}
        body |= {field: self._longest(prompt), "extra_body": extra}
        if options.reads_logits:
            body |= {"logprobs": True, "top_logprobs": options.top_logprobs}
        elif self._continued(prompt):
            body["stop"] = ["\n"]  # the line that was begun is the last
        if options.samples > 1:
            body["n"] = options.samples
        if self._seed is not None and options.drawn_at > 0:
            body["seed"] = self._seed
        return body

    def _continued(self, prompt: Prompt) -> bool:
        """Whether the reply is begun for the model; reasons have to come before the prefill."""
        return self._options.continues and not (self._options.mode == "text" and prompt.explained)

    def _longest(self, prompt: Prompt) -> int:
        if self._options.mode == "logprobs" and self._continued(prompt):
            return 2  # a blank, and the token that is read
        return self._options.max_tokens or (512 if prompt.explained else 32)

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
            cause = type(error.__cause__ or error).__name__
            return Failure("error", f"no connection to {self._options.host}: {cause}", again=True, outage=True)
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
            key = f"the key in {self._options.api_key_env}" if self._key else "a request without a key"
            return Failure("error", f"HTTP {status}: the server does not accept {key}", outage=True)
        if status == 402 or code in _NO_MONEY:
            return Failure("over_budget", why, outage=True)
        if any(mark in code or mark in told for mark in _TOO_LONG):
            return Failure("over_budget", why)
        if code in _FILTERED:
            return Failure("refused", why)
        again = status in _PASSING or status >= 500
        after_s = _seconds(error.response.headers.get("retry-after", "")) if again else 0.0
        return Failure("error", why, again=again, outage=again or status == 404, after_s=after_s)

    # One reading ----------------------------------------------------------------------------------------

    def _reading(self, completion: Completion, prompt: Prompt, choices: tuple[str, ...]) -> Reading:
        options, continued = self._options, self._continued(prompt)
        replies = completion.choices
        if len(replies) != options.samples:
            return Reading.missing("malformed", f"asked for {options.samples} replies, got {len(replies)}")
        if options.reads_logits:
            min_mass = None if options.mode == "structured" else options.min_mass
            return read_distribution(replies[0], prompt, choices, continued=continued, min_mass=min_mass)
        return read_text(replies, prompt, choices, continued=continued, min_share=options.min_mass)

    def _hidden(self, content: bytes) -> bytes:
        """What a server sent, without the key that it might repeat; to be called before anything is cut off."""
        key = self._key.get_secret_value() if self._key else ""
        for form in {key, key.replace("/", "\\/")} - {""}:  # JSON may escape a slash
            content = content.replace(form.encode(), b"[key]")
        return content


def _start(prompt: Prompt, choices: Sequence[str]) -> str:
    """What a reply begins with. Tokenizers draw the blank to a word that follows, but not to a digit."""
    return prompt.prefill.rstrip() if any(choice[0].isalpha() for choice in choices) else prompt.prefill


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
