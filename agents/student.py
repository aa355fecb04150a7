"""The student: a language model that holds conversations token by token."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from ovd_gym.agents.base import Conversation, Turn
from ovd_gym.agents.chat import Chat, PlainChat, TemplateChat
from ovd_gym.config import PlainTemplate
from ovd_gym.errors import ConfigError, unknown
from ovd_gym.llm.base import TRAINING, Completion, Decoding, LanguageModel, Sampling, Session
from ovd_gym.records import Message

__all__ = ["Student", "make_chat"]

log = logging.getLogger(__name__)


class Student:
    """An :class:`~ovd_gym.agents.base.Agent` on a language model.

    Args:
        lm: the backend that samples.
        chat: lays out the conversation.
        max_turn_tokens: tokens the student may write per turn.
    """

    def __init__(self, lm: LanguageModel, chat: Chat, max_turn_tokens: int) -> None:
        self.lm = lm
        self.chat = chat
        self.max_turn_tokens = max_turn_tokens

    def open(self, seeds: Sequence[int], stop: Sequence[str], decoding: Decoding = TRAINING) -> Conversation:
        """See :class:`~ovd_gym.agents.base.Agent`."""
        sampling = Sampling(self.max_turn_tokens, decoding, tuple(stop), self.chat.stop_ids)
        return _Conversation(self.chat, self.lm.open(seeds, sampling), stop)


class _Conversation:
    def __init__(self, chat: Chat, session: Session, stop: Sequence[str]) -> None:
        self._chat = chat
        self._session = session
        self._stop = stop
        self._fed: dict[int, tuple[int, ...]] = {}
        """What the turns under way were given to read."""
        self._last: dict[int, Completion] = {}

    def begin(self, openings: Mapping[int, Sequence[Message]]) -> None:
        self._submit({row: self._chat.prompt(messages, self._stop) for row, messages in openings.items()})

    def reply(self, observations: Mapping[int, str]) -> None:
        self._submit({row: self._chat.observation(text, self._last.pop(row)) for row, text in observations.items()})

    def advance(self) -> dict[int, Turn]:
        completions = self._session.advance()
        self._last |= completions
        return {row: Turn(self._fed.pop(row), completion) for row, completion in completions.items()}

    def end(self, rows: Iterable[int]) -> None:
        for row in (rows := list(rows)):
            self._fed.pop(row, None)
            self._last.pop(row, None)
        self._session.end(rows)

    def close(self) -> None:
        self._session.close()

    def _submit(self, feeds: Mapping[int, Sequence[int]]) -> None:
        self._fed |= {row: tuple(ids) for row, ids in feeds.items()}
        self._session.submit(feeds)


def make_chat(tokenizer: PreTrainedTokenizerBase, kind: str, template: PlainTemplate | None = None) -> Chat:
    """The chat layout ``kind``: "template", "plain", or "auto" (the template if it is usable, else plain).

    ``template`` is the plain layout. Raises :class:`ConfigError` for an unknown kind or an unusable chat template.
    """
    if kind not in ("auto", "template", "plain"):
        raise ConfigError(unknown("chat", kind, ["auto", "template", "plain"]))
    if kind == "plain":
        return PlainChat(tokenizer, template)
    try:
        return TemplateChat(tokenizer)
    except ConfigError as error:
        if kind == "template":
            raise
        log.warning("falling back to a plain-text conversation: %s", error)
        return PlainChat(tokenizer)
