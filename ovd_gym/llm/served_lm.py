"""The student sampled by a vLLM server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal
from transformers import PreTrainedTokenizerBase

from ovd_gym.errors import ConfigError, TrainingStopped
from ovd_gym.llm.base import Sampling
from ovd_gym.llm.engine import Written
from ovd_gym.llm.engine_session import EngineSession, Sampled
from ovd_gym.llm.reliability import Failure
from ovd_gym.llm.vllm_server import Reply, VllmServer

__all__ = ["ServedLM"]

_WAIT_S = 0.1

T = TypeVar("T")


class ServedLM:
    """An :class:`~ovd_gym.llm.engine.Engine` behind a vLLM server. Requests run in an event loop of its own thread.

    Args:
        server: where it is.
        tokenizer: the model's.
        max_context: tokens a row may hold.

    Raises:
        ConfigError: the server holds fewer.
    """

    def __init__(self, server: VllmServer, tokenizer: PreTrainedTokenizerBase, max_context: int) -> None:
        if server.max_context < max_context:
            raise ConfigError(
                f"the server at {server.host} holds {server.max_context} tokens a sequence: set student.max_context to "
                "at most that, or raise its --max-model-len"
            )
        self.server = server
        self.tokenizer = tokenizer
        self.max_context = max_context
        self._running = ExitStack()

    @cached_property
    def portal(self) -> BlockingPortal:
        """The event loop. It begins with the first request: what is never used leaves no thread behind."""
        return self._running.enter_context(start_blocking_portal())

    def open(self, seeds: Sequence[int], sampling: Sampling) -> ServedSession:
        """See :class:`~ovd_gym.llm.base.LanguageModel`."""
        return ServedSession(self, seeds, sampling)

    def load(self, weights: Written) -> None:
        """See :class:`~ovd_gym.llm.engine.Engine`."""
        self.answer(self.portal.call(self.server.load, weights), f"did not take weights of version {weights.version}")

    def logprobs(self, ids: Sequence[int]) -> list[float]:
        """See :class:`~ovd_gym.llm.engine.Engine`."""
        parameters = {"max_tokens": 1, "logprobs": 0, "prompt_logprobs": 0}
        reply = self.answer(self.portal.call(self.server.turn, ids, parameters), "did not read a probe")
        places = [place or {} for place in (reply.prompt_logprobs or [])[1:]]
        if len(places) != len(ids) - 1 or any(i not in place for i, place in zip(ids[1:], places, strict=True)):
            raise TrainingStopped(f"the vLLM server at {self.server.host} gives no log-probabilities of prompts")
        return [place[i].logprob for i, place in zip(ids[1:], places, strict=True)]

    def close(self) -> None:
        """See :class:`~ovd_gym.llm.engine.Engine`."""
        if "portal" in vars(self):
            self.portal.call(self.server.close)
        self._running.close()

    def answer(self, outcome: T | Failure, fault: str = "gave no turn") -> T:
        """``outcome``. Raises TrainingStopped, with the cause, where there is none."""
        if isinstance(outcome, Failure):
            raise TrainingStopped(
                f"the vLLM server at {self.server.host} {fault}: {outcome.why}; continue with --resume"
            )
        return outcome


class ServedSession(EngineSession):
    """See :class:`~ovd_gym.llm.base.Session`. A turn is a request; giving it up closes its connection."""

    def __init__(self, lm: ServedLM, seeds: Sequence[int], sampling: Sampling) -> None:
        super().__init__(lm.tokenizer, lm.max_context, seeds, sampling)
        self._lm = lm
        self._stop = {"stop": list(sampling.stop), "include_stop_str_in_output": True} if sampling.stop else {}
        self._asked: dict[int, Future[Reply | Failure]] = {}
        """Of the turns under way, by row."""
        self._answers: SimpleQueue[tuple[int, Future[Reply | Failure]]] = SimpleQueue()

    def begin(self, row: int, ids: Sequence[int], parameters: Mapping[str, Any]) -> None:
        """See :class:`~ovd_gym.llm.engine_session.EngineSession`."""
        future = self._lm.portal.start_task_soon(self._lm.server.turn, tuple(ids), {**parameters, **self._stop})
        self._asked[row] = future
        future.add_done_callback(lambda done: self._answers.put((row, done)))

    def poll(self) -> Iterator[Sampled]:
        """See :class:`~ovd_gym.llm.engine_session.EngineSession`."""
        wait_s = _WAIT_S
        while True:
            try:
                row, future = self._answers.get(timeout=wait_s) if wait_s else self._answers.get_nowait()
            except Empty:
                return
            wait_s = 0.0
            if self._asked.get(row) is future:  # else it was given up
                del self._asked[row]
                yield Sampled(row, self._lm.answer(future.result()).tokens, True)

    def abort(self, rows: Sequence[int]) -> None:
        """See :class:`~ovd_gym.llm.engine_session.EngineSession`."""
        for row in rows:
            if (future := self._asked.pop(row, None)) is not None:
                future.cancel()
