"""Searchers that need no model: one that knows the way, one that knows the titles, one that searches once.

They bound every result from above and below, and the first gives demonstrations for a warm start. All three are
policies for :class:`~ovd_gym.agents.scripted.ScriptedAgent`; what they know is handed to them as plain data. They call
the tools ``search(query)``, ``open(url)`` and ``answer(text)``.

One agent plays many tasks, each with a plan of its own: :func:`by_question` chooses among policies by the question
that was asked, :func:`follow_plans` and :func:`follow_titles` do so for tasks that carry what is needed::

    agent = ScriptedAgent(follow_plans(world.tasks()))
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import fsum
from typing import Any, NamedTuple
from zlib import crc32

from pydantic import JsonValue

from ovd_gym.actions import ActionFormat, get_format
from ovd_gym.agents.scripted import Policy
from ovd_gym.errors import ConfigError
from ovd_gym.records import Message, Task, ToolCall

__all__ = ["REFUSAL", "PlanStep", "by_question", "follow_plans", "follow_titles", "gold_plan_searcher"]
__all__ += ["mixed_searcher", "single_search", "title_searcher"]

REFUSAL = "I do not know"
"""The answer of a searcher that found none."""


class PlanStep(NamedTuple):
    """One page of a plan."""

    page: str
    """The page's id: what its address ends with."""
    query: str = ""
    """What to search for before opening the page; empty: follow a link of the page before."""


def by_question(policies: Mapping[str, Policy]) -> Policy:
    """The policy of the question that the conversation opened with.

    Raises (when it plays): ConfigError, for a question that has none.
    """

    def policy(messages: Sequence[Message]) -> str:
        question = _question(messages)
        if question not in policies:
            raise ConfigError(f"no policy for the question {question[:80]!r}: there are {len(policies)} for others")
        return policies[question](messages)

    return policy


def follow_plans(tasks: Sequence[Task], **options: Any) -> Policy:
    """:func:`gold_plan_searcher` for each of ``tasks`` by its metadata ``plan`` and its first gold answer.

    A plan is a list of objects with ``page``, ``query`` and ``action`` ("search", or "follow" a link).
    Raises ConfigError for a task without one.
    """
    return by_question({t.question: gold_plan_searcher(_plan(t), t.answers[0], **options) for t in tasks})


def follow_titles(tasks: Sequence[Task], **options: Any) -> Policy:
    """:func:`title_searcher` for each of ``tasks`` by its metadata ``gold_titles`` and its gold answers.

    Raises ConfigError for a task without titles.
    """
    return by_question({t.question: title_searcher(_titles(t), t.answers, **options) for t in tasks})


def follow_questions(tasks: Sequence[Task], **options: Any) -> Policy:
    """:func:`single_search`, which is the same for all ``tasks``: it goes by what the conversation asks."""
    return single_search(**options)


def mixed_searcher(tasks: Sequence[Task], habit: float = 0.8, **options: Any) -> Policy:
    """:func:`follow_titles`, but with a bad habit: a share ``habit`` of the tasks gets queries of one word.

    For them only the first word of a title is searched for, which finds all that has the word in common. A hash of the
    task's id chooses them, so that a task is played alike every time. As demonstrations these leave something to
    reinforcement: imitation copies the habit, in proportion to how often it happens to be right.

    Raises ConfigError for a task without titles, and for a ``habit`` that is no share.
    """
    if not 0 <= habit <= 1:
        raise ConfigError(f"habit is a share of the tasks, between 0 and 1, got {habit}")

    def queries(task: Task) -> list[str]:
        short = crc32(task.id.encode()) < habit * 2**32
        return [title.split()[0] for title in _titles(task)] if short else _titles(task)

    return by_question({t.question: title_searcher(queries(t), t.answers, **options) for t in tasks})


def gold_plan_searcher(
    steps: Sequence[PlanStep],
    answer: str,
    *,
    action_format: str | ActionFormat = "hermes",
    top_k: int | None = None,
    address: str = "doc:{page}",
) -> Policy:
    """Follow the plan: search and open, or follow a link and open; after the last page, answer.

    Args:
        steps: the pages in the order of reading.
        answer: the gold answer.
        action_format: how calls are written.
        top_k: number of hits to ask for; None leaves it to the tool.
        address: where a page is that no result so far named; otherwise its address is read from the results.
    """
    moves: list[tuple[str, str]] = []
    for step in steps:
        moves += [("search", step.query)] if step.query else []
        moves.append(("open", step.page))

    def policy(messages: Sequence[Message]) -> str:
        turn = _turn(messages)
        if turn >= len(moves):
            return _answer(action_format, answer)
        name, argument = moves[turn]
        if name == "search":
            return _search(action_format, argument, top_k)
        return _open(action_format, _address(argument, messages) or address.format(page=argument))

    return policy


def title_searcher(
    titles: Sequence[str],
    answers: Sequence[str],
    *,
    action_format: str | ActionFormat = "hermes",
    top_k: int | None = None,
    open_top: int = 0,
    oracle: bool = False,
) -> Policy:
    """Search for each title, and give the first of ``answers`` that stands in what was read, else refuse.

    How far somebody gets who knows what to look for, but has to find it. The answer "yes" or "no" to a comparison
    stands on no page: such questions are refused, unless by an ``oracle``.

    Args:
        titles: what to search for, in turn.
        answers: the gold answers.
        action_format: how calls are written.
        top_k: number of hits to ask for; None leaves it to the tool.
        open_top: results to open after each search, by their number; 0 reads the results' own words only.
        oracle: once a result of every title has been read, give a gold answer of "yes" or "no", too. It is *told*
            then, not read: the share of right answers says what can be found, not what can be answered.
    """
    moves: list[tuple[str, str]] = []
    for title in titles:
        moves += [("search", title), *(("open", str(rank + 1)) for rank in range(open_top))]

    def policy(messages: Sequence[Message]) -> str:
        if (turn := _turn(messages)) < len(moves):
            name, argument = moves[turn]
            return _search(action_format, argument, top_k) if name == "search" else _open(action_format, argument)
        results = "\n".join(_results(messages))
        if {answer.casefold() for answer in answers} <= {"yes", "no"}:
            told = oracle and all(_is_title_in(title, results) for title in titles)
            return _answer(action_format, answers[0] if told else REFUSAL)
        read = " ".join(_words(results))
        found = (answer for answer in answers if f" {' '.join(_words(answer))} " in f" {read} ")
        return _answer(action_format, next(found, REFUSAL))

    return policy


def single_search(
    *, action_format: str | ActionFormat = "hermes", top_k: int | None = None, open_top: int = 0
) -> Policy:
    """Search once with the question itself, then answer from what was read without knowing anything.

    The heuristic: among the sentences and lines read, take the one that shares most words with the question (rare
    words count more; the earlier of equals), and in it, behind a colon if there is one, the first phrase of the kind
    asked for that the question does not hold: a date or year for "when" and "what year", a number for "how many" and
    "population", else a run of capitalised words. The next best sentence follows where there is none, and
    :data:`REFUSAL` in the end.

    Args:
        action_format: how calls are written.
        top_k: number of hits to ask for; None leaves it to the tool.
        open_top: results to open before answering, by their number; 0 reads the results' own words only.
    """

    def policy(messages: Sequence[Message]) -> str:
        question, turn = _question(messages), _turn(messages)
        if turn == 0:
            return _search(action_format, question, top_k)
        if turn <= open_top:
            return _open(action_format, str(turn))
        return _answer(action_format, _guess(question, "\n".join(_results(messages))) or REFUSAL)

    return policy


# Reading the task ---------------------------------------------------------------------------------------


def _plan(task: Task) -> list[PlanStep]:
    try:
        return [_plan_step(step) for step in _entries(task, "plan")]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"task {task.id!r}: a plan step needs 'page', 'query' and 'action': {error!r}") from error


def _plan_step(step: Any) -> PlanStep:
    return PlanStep(str(step["page"]), "" if step["action"] == "follow" else str(step["query"]))


def _titles(task: Task) -> list[str]:
    return [str(title) for title in _entries(task, "gold_titles")]


def _entries(task: Task, field: str) -> list[JsonValue]:
    entries = task.metadata.get(field)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"task {task.id!r} has no {field!r} in its metadata: this searcher cannot play it")
    return entries


# Reading the conversation -------------------------------------------------------------------------------


def _question(messages: Sequence[Message]) -> str:
    return next((message.content for message in messages if message.role == "user"), "")


def _turn(messages: Sequence[Message]) -> int:
    return sum(message.role == "assistant" for message in messages)


def _results(messages: Sequence[Message]) -> list[str]:
    return [message.content for message in messages if message.role == "tool"]


def _is_title_in(title: str, results: str) -> bool:
    """Whether a result or an open page has that title: its head line, ``[1] Title — source (address)`` or the like."""
    title = re.escape(" ".join(title.split()))
    return re.search(rf"^(?:\[\d+\] )?{title}(?: —| \(|$)", results, re.MULTILINE) is not None


def _address(page: str, messages: Sequence[Message]) -> str | None:
    """The address of ``page`` where a result named it, the last one first."""
    named = re.compile(rf"(?:https?://[^\s<>()\[\]\"']*/|doc:){re.escape(page)}(?![\w-])")
    return next((found[0] for text in reversed(_results(messages)) if (found := named.search(text))), None)


# Acting -------------------------------------------------------------------------------------------------


def _call(action_format: str | ActionFormat, name: str, **arguments: str | int) -> str:
    return get_format(action_format).render(ToolCall(name=name, arguments=dict(arguments)))


def _search(action_format: str | ActionFormat, query: str, top_k: int | None) -> str:
    return _call(action_format, "search", query=query, **({} if top_k is None else {"top_k": top_k}))


def _open(action_format: str | ActionFormat, url: str) -> str:
    return _call(action_format, "open", url=url)


def _answer(action_format: str | ActionFormat, text: str) -> str:
    return _call(action_format, "answer", text=text)


# Guessing -----------------------------------------------------------------------------------------------

_MONTH = "January|February|March|April|May|June|July|August|September|October|November|December"
_DATE = re.compile(rf"\b\d{{1,2}} (?:{_MONTH}) \d{{4}}\b|\b(?:{_MONTH}) \d{{1,2}}, \d{{4}}\b|\b[12]\d{{3}}\b")
_NUMBER = re.compile(r"\b\d[\d,]*(?:\.\d+)?\b")
_NAME = re.compile(r"\b[A-Z][\w'’-]*(?: (?:(?:of|the|and|de|von|van) )*[A-Z][\w'’-]*)*")
_KINDS = (
    (re.compile(r"\b(when|what year|which year|date)\b", re.IGNORECASE), _DATE),
    (re.compile(r"\b(how (many|much|high|long|tall|old)|population|number of)\b", re.IGNORECASE), _NUMBER),
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


def _guess(question: str, results: str) -> str | None:
    sentences = [sentence for sentence in _SENTENCE.split(results) if sentence.strip()]
    asked = set(_words(question))
    spread = Counter(word for sentence in sentences for word in asked & set(_words(sentence)))
    kind = next((pattern for cue, pattern in _KINDS if cue.search(question)), _NAME)
    # fsum, since the order of a set differs from process to process, and with it the last bits of a sum.
    weights = [fsum(1 / spread[word] for word in asked & set(_words(sentence))) for sentence in sentences]
    for place in sorted(range(len(sentences)), key=lambda n: -weights[n]):
        for phrase in kind.findall(sentences[place].rpartition(": ")[2]):
            if set(_words(phrase)) - asked:
                return str(phrase)
    return None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
