"""The student: a language model that holds conversations token by token."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from ovd_gym.agents.base import Conversation, Turn
from ovd_gym.agents.chat import Chat, PlainChat, TemplateChat
from ovd_gym.config import PlainTemplate
from ovd_gym.errors import ConfigError, unknown
from ovd_gym.llm.base import Completion, LanguageModel, Sampling, Session
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

    def open(
        self, openings: Sequence[Sequence[Message]], seeds: Sequence[int], stop: Sequence[str], greedy: bool = False
    ) -> Conversation:
        """See :class:`~ovd_gym.agents.base.Agent`."""
        sampling = Sampling(self.max_turn_tokens, greedy, tuple(stop), self.chat.stop_ids)
        prompts = [tuple(self.chat.prompt(messages, stop)) for messages in openings]
        return _Conversation(self.chat, self.lm.open(seeds, sampling), prompts)


class _Conversation:
    def __init__(self, chat: Chat, session: Session, prompts: Sequence[tuple[int, ...]]) -> None:
        self._chat = chat
        self._session = session
        self._prompts = prompts
        self._last: dict[int, Completion] = {}

    def begin(self) -> dict[int, Turn]:
        return self._turns(dict(enumerate(self._prompts)))

    def reply(self, observations: Mapping[int, str]) -> dict[int, Turn]:
        return self._turns(
            {row: tuple(self._chat.observation(text, self._last[row])) for row, text in observations.items()}
        )

    def _turns(self, feeds: Mapping[int, tuple[int, ...]]) -> dict[int, Turn]:
        completions = self._session.generate(feeds)
        self._last |= completions
        return {row: Turn(feeds[row], completion) for row, completion in completions.items()}


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
