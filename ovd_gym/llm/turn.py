"""One turn while it is being sampled: where it ends, what it says, and to which token each character belongs."""

from __future__ import annotations

from typing import Literal

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from ovd_gym.llm.base import Completion, Sampling

__all__ = ["OpenTurn"]


class OpenTurn:
    """Takes one token after the other, and says when the turn is over.

    Args:
        tokenizer: a fast tokenizer.
        sampling: what ends the turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
        self.ids: list[int] = []
        self.open = True
        self._logprobs: list[float] = []
        self._offsets: list[int] = []
        self._text = ""
        self._reason: Literal["stop", "eos", "length", "context"] = "context"
        self._sampling = sampling
        self._tokenizer = tokenizer._tokenizer
        self._stream = DecodeStream(skip_special_tokens=False)

    def add(self, token: int, logprob: float, room: int) -> None:
        """Take a sampled token; ``room`` counts the tokens the row could hold with this one among them."""
        self.ids.append(token)
        self._logprobs.append(min(logprob, 0.0))
        ended = token in self._sampling.stop_ids
        if not ended:
            self._text += self._stream.step(self._tokenizer, token) or ""
        self._offsets.append(len(self._text))
        if ended:
            self._end("eos")
        elif any(stop in self._text for stop in self._sampling.stop):
            self._end("stop")
        elif len(self.ids) >= self._sampling.max_new_tokens or room <= 1:
            self._end("length")

    def completion(self) -> Completion:
        """The turn."""
        return Completion(tuple(self.ids), tuple(self._logprobs), self._text, tuple(self._offsets), self._reason)

    def _end(self, reason: Literal["stop", "eos", "length"]) -> None:
        self._reason, self.open = reason, False
