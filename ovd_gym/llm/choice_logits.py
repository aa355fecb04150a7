"""Choices read off the next-token probabilities of a model in this process, whatever computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import ChoiceModel, Prompt, Reading, Usage

__all__ = ["LogitChoices", "Numbers"]

_BLANKS = ("", "Ġ", "▁", " ")
"""How tokenizers write the blank that begins a token; or there is none."""


class Numbers(Protocol):
    """What choices are read off: a model's text side, and the numbers it gives."""

    name: str
    max_tokens: int
    reserved: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    def chat(self, system: str, user: str) -> str:
        """Everything up to where the model's reply starts."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a whole text."""

    def next_token_logprobs(self, sequences: Sequence[Sequence[int]], tokens: Sequence[int]) -> Tensor:
        """[B, C] log-probabilities of ``tokens`` after each sequence."""

    def usage(self) -> Usage:
        """Sequences and tokens read so far."""


class LogitChoices(ChoiceModel):
    """Reads choices off the logits of a model.

    The next-token probabilities of each choice's first token, with and without a leading blank, are added up. Together
    they are ``mass``, renormalised they are ``probs``.

    Args:
        reader: the model.
        min_mass: least ``mass`` of a choice, in [0, 1].
        name: what the answers depend on.
    """

    reads_logits = True

    def __init__(self, reader: Numbers, min_mass: float, name: str) -> None:
        self._reader = reader
        self._min_mass = min_mass
        self._ends: dict[tuple[str, tuple[str, ...]], _Ending] = {}
        self.reserved = reader.reserved
        self.name = name

    def check(self, prefill: str, choices: Sequence[str]) -> None:
        """Raise ConfigError if the first tokens of ``choices`` after ``prefill`` do not tell them apart."""
        self._ending(prefill, choices)

    def fits(self, prompt: Prompt) -> bool:
        """Whether ``prompt`` has at most ``max_tokens`` tokens."""
        return len(self._reader.encode(self._text(prompt))) <= self._reader.max_tokens

    def read(self, prompts: Sequence[Prompt], choices: Sequence[str]) -> list[Reading]:
        """Readings aligned with ``prompts``, the same as one by one up to rounding (about 1e-4)."""
        endings = [self._ending(prompt.prefill, choices) for prompt in prompts]
        ids = [self._ids(prompt, choices[0], end) for prompt, end in zip(prompts, endings, strict=True)]
        too_long = f"the prompt has more than {self._reader.max_tokens} tokens"
        readings = [Reading.missing("over_budget", too_long)] * len(prompts)
        fitting = [i for i, sequence in enumerate(ids) if len(sequence) <= self._reader.max_tokens]
        tokens = sorted({token for end in endings for same in end.tokens for token in same})
        columns = {token: column for column, token in enumerate(tokens)}
        logprobs = self._reader.next_token_logprobs([ids[i] for i in fitting], tokens)
        for i, row in zip(fitting, logprobs.double().exp(), strict=True):
            masses = torch.stack([row[[columns[token] for token in same]].sum() for same in endings[i].tokens])
            readings[i] = self._reading(masses)
        return readings

    def usage(self) -> Usage:
        """Prompts and tokens read so far."""
        return self._reader.usage()

    # From a prompt to token ids -------------------------------------------------------------------------

    def _text(self, prompt: Prompt) -> str:
        return self._reader.chat(prompt.system, prompt.user) + prompt.prefill

    def _ids(self, prompt: Prompt, choice: str, ending: _Ending) -> list[int]:
        # The choice is encoded along and dropped: where " 7" is one token, the prompt has to end before the blank.
        ids = self._reader.encode(self._text(prompt) + choice)
        return ids[: len(ids) - ending.dropped]

    def _ending(self, prefill: str, choices: Sequence[str]) -> _Ending:
        key = (prefill, tuple(choices))
        if key not in self._ends:
            self._ends[key] = self._find_ending(prefill, choices)
        return self._ends[key]

    def _find_ending(self, prefill: str, choices: Sequence[str]) -> _Ending:
        if len(choices) < 2 or not all(choices):
            raise ConfigError(f"a choice is made among two or more words, got {list(choices)}")
        text = self._reader.chat("a", "b") + prefill
        whole = [self._reader.encode(text), *(self._reader.encode(text + choice) for choice in choices)]
        end = next(i for i in range(len(whole[0]) + 1) if len({tuple(ids[: i + 1]) for ids in whole}) > 1)
        vocabulary = self._reader.tokenizer.get_vocab()
        tokens = []
        for choice, ids in zip(choices, whole[1:], strict=True):
            word = str(self._reader.tokenizer.convert_ids_to_tokens(ids[end])).lstrip("".join(_BLANKS))
            same = {vocabulary[form] for blank in _BLANKS if (form := blank + word) in vocabulary}
            if not word or not choice.startswith(word):
                raise ConfigError(
                    f"the tokenizer of {self._reader.name} does not begin {choice!r} after {prefill!r} with a token of "
                    "its own: it cannot be read from the logits; use an engine that reads the model's text instead"
                )
            tokens.append(tuple(sorted(same)))
        if len(set().union(*tokens)) < sum(map(len, tokens)):
            raise ConfigError(
                f"the tokenizer of {self._reader.name} begins two of {list(choices)} after {prefill!r} with the same "
                "token: choose words that begin differently"
            )
        return _Ending(dropped=len(whole[1]) - end, tokens=tuple(tokens))

    # From logits to a reading ---------------------------------------------------------------------------

    def _reading(self, masses: Tensor) -> Reading:
        """The reading of choices with these probabilities [C]."""
        mass = float(masses.sum())
        if not 0.0 < mass <= 1.001:
            return Reading.missing("error", f"the model's probabilities of the choices add up to {mass}")
        probs = tuple((masses / mass).tolist())
        if mass < self._min_mass:
            why = f"the model gives all choices together {mass:.2g}, less than min_mass {self._min_mass}"
            return Reading(choice=None, status="low_mass", probs=probs, mass=mass, text=why)
        return Reading(choice=int(masses.argmax()), probs=probs, mass=min(mass, 1.0))


class _Ending(NamedTuple):
    """How prompts with one prefill end before one set of choices."""

    dropped: int
    """Tokens that the first choice adds: they are taken off again."""
    tokens: tuple[tuple[int, ...], ...]
    """[C] the tokens that stand for each choice: "7" and " 7"."""
