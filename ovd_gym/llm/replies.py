"""From a chat completion to readings: what a server may answer, and where in it the verdict stands.

The format is that of https://platform.openai.com/docs/api-reference/chat, of which only the fields below are read;
what is not as documented there is malformed, and nothing is guessed. ``C`` choices, ``N`` samples.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ovd_gym.llm.choice import Prompt, Reading
from ovd_gym.records import Text

__all__ = ["Completion", "Reply", "parse_choice", "read_distribution", "read_text"]

Count = Annotated[int, Field(ge=0)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class TokenChance(_Answer):
    """A token that could come next."""

    token: Text
    logprob: Annotated[float, Field(le=0.001)]
    """Nats; rounding may carry it just above 0. Servers write -9999 for what cannot come."""


class TokenRead(TokenChance):
    """A token of the reply, and the likeliest ones in its place."""

    top_logprobs: tuple[TokenChance, ...] = ()

    @property
    def chances(self) -> tuple[TokenChance, ...]:
        """The likeliest tokens, and the one that came when it is not among them."""
        own = TokenChance(token=self.token, logprob=self.logprob)
        return self.top_logprobs if own in self.top_logprobs else (*self.top_logprobs, own)


class LogProbs(_Answer):
    """Log-probabilities of a reply."""

    content: tuple[TokenRead, ...] | None = None


class ReplyMessage(_Answer):
    """What the model wrote."""

    content: Text | None = None
    refusal: Text | None = None


class Reply(_Answer):
    """One of the replies to a request."""

    message: ReplyMessage
    finish_reason: str | None = None
    logprobs: LogProbs | None = None

    @property
    def text(self) -> str:
        """The words."""
        return self.message.content or ""

    @property
    def tokens(self) -> tuple[TokenRead, ...]:
        """[tokens of the reply]; empty without log-probabilities."""
        return (self.logprobs and self.logprobs.content) or ()


class CachedTokens(_Answer):
    """Details of the prompt tokens."""

    cached_tokens: Count | None = None


class TokenUsage(_Answer):
    """Tokens that the server counted."""

    prompt_tokens: Count
    completion_tokens: Count = 0
    prompt_tokens_details: CachedTokens | None = None

    @property
    def cached(self) -> int:
        """Prompt tokens that were in the server's cache."""
        details = self.prompt_tokens_details
        return min((details and details.cached_tokens) or 0, self.prompt_tokens)


class Completion(_Answer):
    """A server's answer to one request."""

    choices: Annotated[tuple[Reply, ...], Field(min_length=1)]
    """[N]"""
    usage: TokenUsage | None = None


def parse_choice(text: str, prefill: str, choices: Sequence[str]) -> tuple[int | None, str]:
    """(index of the choice that the last line names, what stands before that line).

    The last line must be exactly ``prefill`` and the choice; anything else is no choice.

    >>> parse_choice("It follows.\\nSCORE: 7", "SCORE: ", ["6", "7"])
    (1, 'It follows.')
    >>> parse_choice("SCORE: 7/9", "SCORE: ", ["6", "7"])
    (None, '')
    """
    before, _, last = text.rstrip().rpartition("\n")
    lines = [prefill + choice for choice in choices]
    return (lines.index(last) if last in lines else None), before.strip()


def read_text(
    replies: Sequence[Reply], prompt: Prompt, choices: Sequence[str], *, continued: bool, min_share: float
) -> Reading:
    """The choice that the words of a reply name; of several replies the shares, which stand in for probabilities.

    Args:
        replies: [N] samples for the same prompt.
        continued: the replies begin where the prefill ends; else the last line must hold prefill and choice.
        min_share: least share of samples that name a choice (N > 1); it is recorded as the mass.
    """
    read = [_one_text(reply, "" if continued else prompt.prefill, choices) for reply in replies]
    found = [reading for reading in read if reading.choice is not None]
    if len(replies) == 1 or not found:
        return read[0]
    counts = Counter(reading.choice for reading in found)
    shares = [counts[c] / len(found) for c in range(len(choices))]
    too_few = f"only {len(found)} of {len(replies)} samples name a choice"
    return _reading(shares, len(found) / len(replies), min_share, found[0].text, too_few)


def read_distribution(
    reply: Reply, prompt: Prompt, choices: Sequence[str], *, continued: bool, min_mass: float | None
) -> Reading:
    """The probabilities that the reply's tokens give to the choices where the verdict stands.

    A token stands for the choice that it begins, leading blanks aside; tokens that are not among those the server lists
    count as impossible.

    Args:
        continued: the reply begins where the prefill ends; else its last line must hold prefill and choice.
        min_mass: least probability of all choices together; None where the server was told to allow nothing else,
            so that the probability of the choices says nothing.
    """
    reasons = ""
    if (unusable := _unusable(reply)) is not None:
        return unusable
    if not reply.tokens:
        return Reading.missing("malformed", "the reply has no log-probabilities: the server or the model gives none")
    if continued:
        if min_mass is None and reply.text.strip() not in choices:
            return Reading.missing("malformed", f"got {reply.text[:80]!r} where the server was to allow only choices")
        at = next((i for i, read in enumerate(reply.tokens) if not read.token.isspace()), None)
    else:
        index, reasons = parse_choice(reply.text, prompt.prefill, choices)
        if index is None:
            return _malformed(reply, prompt.prefill, choices)
        at = _token_of_verdict(reply, choices[index])
    if at is None:
        return Reading.missing("malformed", "the tokens of the reply do not show where the verdict begins")
    chances = [0.0] * len(choices)
    for chance in reply.tokens[at].chances:
        if (c := _begun(chance.token, choices)) is not None:
            chances[c] += min(1.0, math.exp(chance.logprob))
    mass = min(1.0, sum(chances))
    too_little = f"the choices have a probability of {mass:.3g} together"
    return _reading(chances, None if min_mass is None else mass, min_mass or 0.0, reasons, too_little)


def _one_text(reply: Reply, prefill: str, choices: Sequence[str]) -> Reading:
    if (unusable := _unusable(reply)) is not None:
        return unusable
    index, reasons = parse_choice(reply.text if prefill else reply.text.lstrip(" "), prefill, choices)
    return _malformed(reply, prefill, choices) if index is None else Reading(choice=index, text=reasons)


def _unusable(reply: Reply) -> Reading | None:
    if reply.message.refusal:
        return Reading.missing("refused", f"the model refused: {_short(reply.message.refusal)}")
    if reply.finish_reason == "content_filter":
        return Reading.missing("refused", "the server's content filter stopped the reply")
    return None


def _malformed(reply: Reply, prefill: str, choices: Sequence[str]) -> Reading:
    last = reply.text.rstrip().rpartition("\n")[2]
    cut = " (the reply was cut off: raise max_tokens)" if reply.finish_reason == "length" else ""
    expected = f"expected the last line to be {prefill!r} and one of {', '.join(choices)}"
    return Reading.missing("malformed", f"{expected}, got {last[-80:]!r}{cut}")


def _token_of_verdict(reply: Reply, choice: str) -> int | None:
    """Index of the token that begins the choice at the reply's end; None when it begins with something else too."""
    joined, text = "".join(read.token for read in reply.tokens), reply.text.rstrip()
    start = joined.rfind(text)  # a token that ends the reply may follow, hidden reasoning may stand before
    if start < 0:
        return None
    place = start + len(text) - len(choice)
    begins = [0, *accumulate(len(read.token) for read in reply.tokens)]
    at = bisect_right(begins, place) - 1
    return None if joined[begins[at] : place].strip() else at


def _begun(token: str, choices: Sequence[str]) -> int | None:
    """Index of the choice that begins with ``token``; choices begin with different characters."""
    word = token.lstrip()
    return next((c for c, choice in enumerate(choices) if word and choice.startswith(word)), None)


def _reading(chances: Sequence[float], mass: float | None, min_mass: float, text: str, too_little: str) -> Reading:
    total = sum(chances)
    if not total > 0:
        return Reading.missing("low_mass", "none of the choices is among the likeliest tokens that the server lists")
    probs = tuple(chance / total for chance in chances)
    if mass is not None and mass < min_mass:
        why = f"{too_little}, less than min_mass {min_mass:g}"
        return Reading(choice=None, status="low_mass", probs=probs, mass=mass, text=why)
    best = max(range(len(probs)), key=probs.__getitem__)
    return Reading(choice=best, probs=probs, mass=mass, text=text)


def _short(text: str) -> str:
    return " ".join(text.split())[:200]
