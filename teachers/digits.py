"""A local language model as a teacher: the distribution of its next token over the ten digits after ``SCORE: ``.

Shapes: ``B`` prompts of a micro-batch, ``N`` tokens of the longest, ``V`` vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ovd_gym.errors import ConfigError
from ovd_gym.llm.models import load_model
from ovd_gym.records import Message, Score
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.teachers.prompting import PREFILL, draw_nonce, render, shorten, template_hash

__all__ = ["DigitTeacher"]

_OBSERVATION_LIMITS = (4000, 2000, 1000, 500, 250, 120)
"""Characters a tool result may keep; the next one is tried when a prompt is still too long."""
_BLANKS = "Ġ▁ "
"""How tokenizers write the blank that begins a token."""


class DigitTeacher(Teacher):
    """Reads one digit off a causal language model without generating.

    The prompt ends in ``SCORE: ``; the next-token probabilities of the ten digits, with and without a leading blank,
    are added up (``digit_mass``) and renormalised (``probs``). ``mean`` is their expectation, ``value`` their mode.
    A model that gives the digits less than ``min_mass`` together was not about to give a score: ``low_mass``.

    A prompt that is too long loses the middle of its tool results, in steps and visibly; what was cut stands in the
    rationale. If it is still too long there is no score, with status ``over_budget``.

    Args:
        model: a name for :func:`~ovd_gym.llm.models.load_model`, or a (model, tokenizer) pair.
        privileged: show the gold answers to the teacher.
        min_mass: least ``digit_mass`` of a valid score, in [0, 1].
        max_tokens: longest prompt, in tokens; None takes the model's own context.
        batch_tokens: tokens of one forward pass, padding included.
        dtype: of the weights, when ``model`` is a name.
        device: where to run, when ``model`` is a name.
        nonce: names the fences around untrusted text. None draws one for this teacher: one for all views, because
            small models score a view differently by several digits when only the nonce changes. A given one makes
            two runs read the same prompts; it is escaped in what it fences like every other marker.

    Raises:
        ConfigError: a model that cannot be loaded, or whose tokenizer does not give each digit one token.
    """

    def __init__(
        self,
        model: str | tuple[PreTrainedModel, PreTrainedTokenizerBase],
        *,
        privileged: bool = False,
        min_mass: float = 0.5,
        max_tokens: int | None = None,
        batch_tokens: int = 8192,
        dtype: str = "float32",
        device: str | None = None,
        nonce: str | None = None,
    ) -> None:
        if not 0.0 <= min_mass <= 1.0:
            raise ConfigError(f"min_mass must be in [0, 1], got {min_mass}")
        label = model if isinstance(model, str) else type(model[0]).__name__
        self.name = f"digits({label}, prompts {template_hash()})"
        if isinstance(model, str):
            model = load_model(model, dtype=dtype, device=device)
        self._model, self._tokenizer = model
        self.privileged = privileged
        self._min_mass = min_mass
        self._max_tokens = max_tokens or getattr(self._model.config, "max_position_embeddings", None) or 8192
        self._batch_tokens = batch_tokens
        self._nonce = nonce or draw_nonce()
        self._own_nonce = nonce is None
        self._reserved = _special_tokens(self._tokenizer)
        self._system_role = _has_system_role(self._tokenizer)
        self._digits = _digit_ids(self._tokenizer, self._text(View(kind="trajectory", question="1 + 1", steps=())))
        accepted = inspect.signature(self._model.forward).parameters
        self._takes = {name for name in ("position_ids", "logits_to_keep") if name in accepted}

    def seed(self, seed: int) -> None:
        """Derive the nonce from ``seed`` (unless one was given): the student never sees it either way."""
        if self._own_nonce:
            self._nonce = draw_nonce(seed)

    def score(self, view: View) -> Score:
        """One score; see :meth:`score_batch`."""
        return self.score_batch([view])[0]

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``, the same as one by one up to rounding (about 1e-4)."""
        fitted = [self._fit(view) for view in views]
        scores: list[Score | None] = [None] * len(views)
        for rows in self._micro_batches([len(ids) for ids, _ in fitted]):
            for i, logits in zip(rows, self._next_token_logits([fitted[i][0] for i in rows]), strict=True):
                scores[i] = self._read(logits, fitted[i][1])
        too_long = f"the prompt has more than {self._max_tokens} tokens even with its tool results cut"
        return [score or Score.invalid("over_budget", too_long) for score in scores]

    # From a view to token ids ---------------------------------------------------------------------------

    def _fit(self, view: View) -> tuple[list[int], str]:
        """(prompt ids, note on what was cut); no ids when the prompt does not fit."""
        ids, note = self._ids(view), ""
        for limit in _OBSERVATION_LIMITS:
            if len(ids) <= self._max_tokens:
                return ids, note
            shorter, cut = shorten(view, limit)
            ids, note = self._ids(shorter), f"cut {cut} characters out of tool results to fit the context"
        return (ids, note) if len(ids) <= self._max_tokens else ([], "")

    def _ids(self, view: View) -> list[int]:
        # A digit is appended and its token dropped: where " 7" is one token, the prompt has to end before the blank.
        return _encode(self._tokenizer, self._text(view) + "0")[:-1]

    def _text(self, view: View) -> str:
        prompt = render(view, nonce=self._nonce, reserved=self._reserved)
        if not self._tokenizer.chat_template:
            return prompt.text
        messages = prompt.messages
        if not self._system_role:
            messages = (Message(role="user", content=f"{prompt.system}\n\n{prompt.user}"),)  # type: ignore[assignment]
        return _chat(self._tokenizer, messages) + PREFILL

    # From token ids to a score --------------------------------------------------------------------------

    def _micro_batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of non-empty prompts, longest first, in groups whose padded size is within ``batch_tokens``."""
        order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
        while order:
            rows = max(1, self._batch_tokens // lengths[order[0]])
            yield order[:rows]
            order = order[rows:]

    @torch.inference_mode()
    def _next_token_logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """[B, V] float32 on the CPU. Padding is on the left, so that every prompt ends in the same column."""
        longest = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id or 0
        ids_BN = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask_BN = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options: dict[str, Any] = {"position_ids": (mask_BN.cumsum(1) - 1).clamp(min=0), "logits_to_keep": 1}
        inputs = {"input_ids": ids_BN, "attention_mask": mask_BN} | {k: options[k] for k in self._takes}
        device = self._model.device
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
        logits: Tensor = self._model(**moved, use_cache=False).logits
        return logits[:, -1].float().cpu()

    def _read(self, logits: Tensor, note: str) -> Score:
        probabilities = logits.softmax(-1)
        masses = torch.stack([probabilities[ids].sum() for ids in self._digits]).double()
        mass = float(masses.sum())
        if not 0.0 < mass <= 1.001:
            return Score.invalid("error", f"the model's probabilities of the digits add up to {mass}")
        probs = tuple((masses / mass).tolist())
        reading: dict[str, Any] = {"probs": probs, "digit_mass": min(mass, 1.0), "rationale": note}
        if mass < self._min_mass:
            return Score(value=None, status="low_mass", **reading)
        mean = min(9.0, sum(digit * p for digit, p in enumerate(probs)))
        return Score(value=max(range(10), key=probs.__getitem__), mean=mean, **reading)


def _digit_ids(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[list[int]]:
    """[10] the tokens that stand for each digit after ``prompt``: "7" and " 7"."""
    continued = [_encode(tokenizer, f"{prompt}{digit}") for digit in range(10)]
    vocabulary = tokenizer.get_vocab()
    ids = []
    for digit, tokens in enumerate(continued):
        same = [vocabulary[t] for t in (str(digit), *(blank + str(digit) for blank in _BLANKS)) if t in vocabulary]
        if tokens[:-1] != continued[0][:-1] or tokens[-1] not in same:
            raise ConfigError(
                f"the tokenizer does not write the digit {digit} after {PREFILL!r} as one token: its digits cannot be "
                "read from the logits; use a teacher that reads the model's text instead"
            )
        ids.append(sorted(set(same)))
    return ids


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # A chat template writes the beginning-of-text token itself.
    return list(tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"])


def _chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return str(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def _has_system_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template takes a system turn; some (Gemma's) refuse it."""
    if not tokenizer.chat_template:
        return False
    try:
        _chat(tokenizer, (Message(role="system", content="a"), Message(role="user", content="b")))
    except jinja2.TemplateError:
        return False
    return True


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The literals that the tokenizer would turn into control tokens."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True))
