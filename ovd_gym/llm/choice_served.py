"""Choices from a model behind an OpenAI-compatible server, such as vLLM, SGLang, llama.cpp or a commercial one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from typing import Any

import openai
from anyio.from_thread import BlockingPortalProvider

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import ChoiceModel, Prompt, Reading, Usage
from ovd_gym.llm.reliability import Failure
from ovd_gym.llm.replies import Completion, read_distribution, read_text
from ovd_gym.llm.served_chat import ServedChat
from ovd_gym.llm.served_options import ServedOptions

__all__ = ["ServedChoices"]


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
        self._chat = ServedChat(self._options)
        self.name = self._options.name
        self.reads_logits = self._options.reads_logits
        self.reserved = self._options.reserved
        self._seed: int | None = None
        self._portal = BlockingPortalProvider()  # threads that read at the same time share one event loop

    def seed(self, seed: int) -> None:
        """Send ``seed`` with requests that sample; servers promise no more than their best effort."""
        self._seed = seed

    def usage(self) -> Usage:
        """Requests, retries among them, and the tokens the server counted; those from its cache only in ``cost``."""
        return self._chat.usage()

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
        async with self._chat.client() as client:
            return await asyncio.gather(*(self._read_one(client, prompt, choices) for prompt in prompts))

    async def _read_one(self, client: openai.AsyncOpenAI, prompt: Prompt, choices: tuple[str, ...]) -> Reading:
        if not self.fits(prompt):
            limit = self._options.max_prompt_chars
            return Reading.missing("over_budget", f"the prompt has more than max_prompt_chars = {limit} characters")
        outcome = await self._chat.ask(client, self._body(prompt, choices))
        if isinstance(outcome, Failure):
            return Reading.missing(outcome.status, outcome.why)
        return self._reading(outcome, prompt, choices)

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
        body: dict[str, Any] = {"model": options.model, "messages": messages, "temperature": options.drawn_at}
        body |= {**self._chat.longest(self._longest(prompt)), "extra_body": extra}
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


def _start(prompt: Prompt, choices: Sequence[str]) -> str:
    """What a reply begins with. Tokenizers draw the blank to a word that follows, but not to a digit."""
    return prompt.prefill.rstrip() if any(choice[0].isalpha() for choice in choices) else prompt.prefill
