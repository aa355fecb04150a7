"""Messages to exact token ids: the text around each message is fixed, so a conversation only ever grows.

A chat turns an opening into prompt ids and, after each turn, an observation into the ids that follow it. What the
student sampled is never rendered, decoded or encoded again. Content is encoded with special tokens switched off:
no page or tool result can smuggle in a chat-template mark.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import jinja2
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from ovd_gym.config import PlainTemplate
from ovd_gym.errors import ConfigError
from ovd_gym.llm.base import Completion
from ovd_gym.records import Message

log = logging.getLogger(__name__)

__all__ = ["Chat", "PlainChat", "TemplateChat"]


class Chat(ABC):
    """Base of the two ways to lay out a conversation."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    stop_ids: tuple[int, ...]
    """Tokens that end the student's turn."""

    @abstractmethod
    def opening(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to where the student begins to write."""

    def prompt(self, messages: Sequence[Message], stop: Sequence[str]) -> list[int]:
        """Ids of a conversation that may have begun already: turn and observation by turns after the opening."""
        begun = next((i for i, message in enumerate(messages) if message.role == "assistant"), len(messages))
        ids = self.opening(messages[:begun])
        for said, heard in zip(messages[begun::2], messages[begun + 1 :: 2], strict=True):
            turn = self.spoken(said.content, stop)
            ids += [*turn.ids, *self.observation(heard.content, turn)]
        return ids

    @abstractmethod
    def observation(self, text: str, after: Completion) -> list[int]:
        """Ids from the end of the student's turn ``after`` up to where the student writes again."""

    def spoken(self, text: str, stop: Sequence[str]) -> Completion:
        """What a student would have sampled to say ``text``: a demonstration's turn, with log-probabilities 0.

        It ends with a stop token unless ``text`` holds one of the ``stop`` strings.
        """
        ids = self._content(text)
        stream = DecodeStream(skip_special_tokens=False)
        core = self._tokenizer._tokenizer
        lengths = accumulate(len(stream.step(core, token) or "") for token in ids)
        offsets = [min(length, len(text)) for length in lengths]
        ended = any(string in text for string in stop)
        if not ended:
            ids, offsets = [*ids, self.stop_ids[0]], [*offsets, len(text)]
        return Completion(tuple(ids), (0.0,) * len(ids), text, tuple(offsets), "stop" if ended else "eos")

    def count_tokens(self, text: str) -> int:
        """Tokens in ``text``."""
        return len(self._content(text))

    def _content(self, text: str) -> list[int]:
        """Untrusted text: markers of special tokens are encoded as the characters they are made of."""
        return list(self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def _markup(self, text: str) -> list[int]:
        """The template's own text: markers become special tokens."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)


class PlainChat(Chat):
    """A conversation as plain text, for base models, few-shot prompts and templates that are not prefix-preserving."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: PlainTemplate | None = None) -> None:
        super().__init__(tokenizer)
        self.template = template or PlainTemplate()
        if not self._content(frame := self.template.tool.replace("{content}", "")):
            raise ConfigError(
                f"student.plain.tool: the tokenizer has no token for {frame!r}, and an empty result would leave the "
                "student nothing to go on from; frame {content} by characters that it knows"
            )
        adds_bos = list(tokenizer("").input_ids)[:1] == [tokenizer.bos_token_id]
        self._bos = [tokenizer.bos_token_id] if adds_bos else []
        self.stop_ids = _end_ids(tokenizer)

    def opening(self, messages: Sequence[Message]) -> list[int]:  # noqa: D102
        text = "".join(
            getattr(self.template, message.role).replace("{content}", message.content) for message in messages
        )
        return [*self._bos, *self._content(self.template.few_shot + text)]

    def observation(self, text: str, after: Completion) -> list[int]:  # noqa: D102
        gap = "" if after.text.endswith(self.template.turn_end) else self.template.turn_end
        return self._content(gap + self.template.tool.replace("{content}", text))


class TemplateChat(Chat):
    """A conversation in the model's own chat template, taken apart once into fixed pieces.

    Raises:
        ConfigError: if the tokenizer has no template, or if rendering a longer conversation changes the text of a
            shorter one (a template that is not prefix-preserving would feed other ids than were sampled).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        if not tokenizer.chat_template:
            raise ConfigError("the model has no chat template; set student.chat to 'plain'")
        system = {"role": "system", "content": "\x02s\x03"}
        self._merge_system = not self._renders([system, {"role": "user", "content": "\x02u\x03"}])
        self._between, self._after = self._first_usable_pieces()
        self._between_ids, self._after_ids = self._markup(self._between), self._markup(self._after)
        specials = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        extra = [i for i in self._between_ids[:1] if i in specials]
        self.stop_ids = tuple(dict.fromkeys((*extra, *_end_ids(tokenizer))))

    def opening(self, messages: Sequence[Message]) -> list[int]:  # noqa: D102
        if self._merge_system and messages[0].role == "system":
            merged = f"{messages[0].content}\n\n{messages[1].content}"
            messages = [Message(role=messages[1].role, content=merged), *messages[2:]]
        marks = [f"\x02{i}\x03" for i in range(len(messages))]
        text = self._render([{"role": m.role, "content": mark} for m, mark in zip(messages, marks, strict=True)], True)
        ids: list[int] = []
        for message, mark in zip(messages, marks, strict=True):
            before, found, text = text.partition(mark)
            if not found:
                raise ConfigError(f"the chat template drops a {message.role} message; set student.chat to 'plain'")
            ids += self._markup(before) + self._content(message.content)
        return ids + self._markup(text)

    def observation(self, text: str, after: Completion) -> list[int]:  # noqa: D102
        closed = after.reason == "eos" and self._between_ids[:1] == [after.ids[-1]]
        return [*self._between_ids[1 if closed else 0 :], *self._content(text), *self._after_ids]

    def _first_usable_pieces(self) -> tuple[str, str]:
        """Pieces with observations in the role "tool" if the template takes them as they are, else as "user"."""
        if "tool" in str(self._tokenizer.chat_template):
            try:
                return self._pieces("tool")
            except ConfigError:
                log.debug("the chat template has no plain tool role; observations are written as the user's")
        return self._pieces("user")

    def _pieces(self, role: str) -> tuple[str, str]:
        """The template's text between the student's turn and an observation, and after it."""
        opening: list[dict[str, str]] = [{"role": "user", "content": "\x02q\x03"}]
        prompt = self._render(opening, True)
        history, text, pieces = opening, prompt, set()
        for turn in range(2):
            history = [
                *history,
                {"role": "assistant", "content": f"\x02a{turn}\x03"},
                {"role": role, "content": f"\x02o{turn}\x03"},
            ]
            rendered = self._render(history, True)
            start = f"{text}\x02a{turn}\x03"
            if not rendered.startswith(start) or rendered.count(f"\x02o{turn}\x03") != 1:
                raise ConfigError("the chat template is not prefix-preserving; set student.chat to 'plain'")
            between, _, after = rendered[len(start) :].partition(f"\x02o{turn}\x03")
            pieces.add((between, after))
            text = rendered
        if len(pieces) != 1:
            raise ConfigError("the chat template changes from turn to turn; set student.chat to 'plain'")
        return pieces.pop()

    def _render(self, messages: Sequence[dict[str, str]], generate: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate)
        except jinja2.TemplateError as error:  # templates refuse a role or an order by raising
            raise ConfigError(
                f"the chat template refuses the conversation: {error}; set student.chat to 'plain'"
            ) from None
        assert isinstance(text, str)
        return text

    def _renders(self, messages: Sequence[dict[str, str]]) -> bool:
        try:
            return messages[0]["content"] in self._render(messages, True)
        except ConfigError:
            return False


def _end_ids(tokenizer: Any) -> tuple[int, ...]:
    names = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "</s>", "<eos>")
    vocabulary = tokenizer.get_added_vocab()
    found = [vocabulary[name] for name in names if name in vocabulary]
    return tuple(dict.fromkeys([*([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]), *found]))
