"""Rows on an engine that keeps none: every turn sends its whole row, and the prefix cache does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from ovd_gym.errors import TrainingStopped
from ovd_gym.llm.base import Completion, Sampling
from ovd_gym.llm.turn import OpenTurn

__all__ = ["EngineSession", "Sampled"]


class Sampled(NamedTuple):
    """What an engine has to say about a row's turn."""

    row: int
    tokens: Sequence[tuple[int, float]]
    """(id, log-probability) of the tokens since the last time."""
    finished: bool
    """Whether the engine works on the turn no more."""


@dataclass
class _Row:
    ids: list[int] = field(default_factory=list)
    """Everything fed and sampled so far."""
    turns: int = 0
    turn: OpenTurn | None = None
    """The one under way."""


class EngineSession(ABC):
    """See :class:`~ovd_gym.llm.base.Session`; an engine is made usable by three methods.

    Args:
        tokenizer: the model's.
        max_context: tokens a row may hold.
        seeds: one per row; every turn's own seed is derived from it.
        sampling: of every turn.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_context: int, seeds: Sequence[int], sampling: Sampling
    ) -> None:
        self._tokenizer = tokenizer
        self._max_context = max_context
        self._seeds = seeds
        self._sampling = sampling
        self._rows: dict[int, _Row] = {}
        self._full: list[int] = []
        """Rows without room, which have not been told yet."""
        self._ended: set[int] = set()

    @abstractmethod
    def begin(self, row: int, ids: Sequence[int], parameters: Mapping[str, Any]) -> None:
        """Have the engine continue ``ids``, with vLLM's sampling ``parameters``."""

    @abstractmethod
    def poll(self) -> Iterator[Sampled]:
        """What the engine has sampled since the last time; waits about a decoding step, or a tenth of a second."""

    @abstractmethod
    def abort(self, rows: Sequence[int]) -> None:
        """Have the engine give up the turns of ``rows``, which it works on."""

    def submit(self, feeds: Mapping[int, Sequence[int]]) -> None:
        """See :class:`~ovd_gym.llm.base.Session`."""
        for number, ids in feeds.items():
            if not len(ids):
                raise ValueError("every row needs at least one token to continue from")
            if number in self._ended or not 0 <= number < len(self._seeds):
                raise ValueError(f"row {number} has ended, or is none of the {len(self._seeds)} of this session")
            row = self._rows.setdefault(number, _Row())
            if row.turn is not None:
                raise ValueError(f"row {number} is in the middle of a turn")
            row.ids += ids
            room = self._max_context - len(row.ids)
            if room < 1:
                self._full.append(number)
                continue
            row.turn = OpenTurn(self._tokenizer, self._sampling)
            self.begin(number, row.ids, self._parameters(turn_seed(self._seeds[number], row.turns), room))
            row.turns += 1

    def advance(self) -> dict[int, Completion]:
        """See :class:`~ovd_gym.llm.base.Session`. Raises TrainingStopped when the engine breaks."""
        done = {number: OpenTurn(self._tokenizer, self._sampling).completion() for number in self._full}
        self.end(self._full)
        self._full = []
        if any(row.turn for row in self._rows.values()):
            for sampled in self.poll():
                if (completion := self._take(sampled)) is not None:
                    done[sampled.row] = completion
        return done

    def end(self, rows: Iterable[int]) -> None:
        """See :class:`~ovd_gym.llm.base.Session`."""
        rows = list(rows)
        self._ended |= set(rows)
        left = {number: self._rows.pop(number) for number in rows if number in self._rows}
        if under_way := [number for number, row in left.items() if row.turn is not None]:
            self.abort(under_way)

    def close(self) -> None:
        """See :class:`~ovd_gym.llm.base.Session`."""
        self.end(range(len(self._seeds)))

    def _take(self, sampled: Sampled) -> Completion | None:
        """Add what was sampled to its row; the turn, if it is over."""
        row = self._rows.get(sampled.row)
        if row is None or row.turn is None:  # given up in the meantime
            return None
        turn = row.turn
        for token, logprob in sampled.tokens:
            turn.add(token, logprob, self._max_context - len(row.ids))
            row.ids.append(token)
            if not turn.open:
                break
        if turn.open:
            if sampled.finished:
                raise TrainingStopped(
                    f"the engine ended a turn after {len(turn.ids)} tokens for no reason that it was given: check what "
                    "it adds to requests (its stop strings, its token limits)"
                )
            return None
        row.turn = None
        if not sampled.finished:
            self.abort([sampled.row])
        return turn.completion()

    def _parameters(self, seed: int, room: int) -> dict[str, Any]:
        """vLLM's sampling parameters; what is left out would be taken from the model's own generation settings."""
        decoding = self._sampling.decoding
        return {
            "max_tokens": min(self._sampling.max_new_tokens, room),
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "top_k": 0,
            "min_p": 0.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "repetition_penalty": 1.0,
            "seed": seed,
            "logprobs": 0,  # of the sampled token alone
            "stop_token_ids": list(self._sampling.stop_ids),
            "ignore_eos": True,  # what ends a turn is in stop_token_ids
            "skip_special_tokens": False,
        }


def turn_seed(seed: int, turn: int) -> int:
    """The seed of a row's turn: no two turns repeat each other's draws."""
    return int(np.random.SeedSequence([seed, turn]).generate_state(1, np.uint64)[0] >> 1)
