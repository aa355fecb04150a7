"""Scripted searchers, played in a small world whose search is a title lookup with word overlap."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest

from ovd_gym.actions import FORMATS
from ovd_gym.agents.scripted import Policy, ScriptedAgent
from ovd_gym.agents.searchers import (
    REFUSAL,
    PlanStep,
    by_question,
    follow_plans,
    follow_titles,
    gold_plan_searcher,
    mixed_searcher,
    single_search,
    title_searcher,
)
from ovd_gym.envs.base import ToolEnv
from ovd_gym.envs.tools import tool
from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.world import World
from ovd_gym.errors import ConfigError, ToolError
from ovd_gym.records import Message, Task, Trajectory
from ovd_gym.rollout import rollout

SEARCH_FORMATS = ("hermes", "line", "react", "search-r1")


class Library(ToolEnv):
    """Search by shared words, titles first; pages by ``doc:`` address."""

    def __init__(self, passages: Sequence[Passage], tasks: Sequence[Task], action_format: str) -> None:
        super().__init__(tasks, action_format=action_format, max_turns=12, max_tokens=100_000)
        self._passages = {passage.id: passage for passage in passages}

    @tool
    def search(self, query: str, top_k: int = 3) -> str:
        """Find pages."""
        asked = set(re.findall(r"\w+", query.lower()))

        def score(passage: Passage) -> float:
            title, text = (set(re.findall(r"\w+", part.lower())) for part in (passage.title, passage.text))
            return 5 * len(asked & title) / len(title) + len(asked & text)

        best = sorted(self._passages.values(), key=lambda passage: -score(passage))[:top_k]
        return "\n".join(f"[{n}] {p.title} (doc:{p.id})\n{p.text[:300]}" for n, p in enumerate(best, start=1))

    @tool
    def open(self, url: str) -> str:
        """Read a page."""
        if url.removeprefix("doc:") not in self._passages:
            raise ToolError(f"no page {url}")
        return self._passages[url.removeprefix("doc:")].text

    def grade(self, task: Task, answer: str) -> float:
        return float(answer in task.answers)


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(seed=8, size=150)


def play(world: World, tasks: Sequence[Task], policy: Policy, action_format: str = "hermes") -> list[Trajectory]:
    envs = [Library(world.passages(), tasks, action_format) for _ in tasks]
    return rollout(tasks, envs, ScriptedAgent(policy))


def calls(trajectory: Trajectory) -> list[tuple[str, dict[str, object]]]:
    assert all(step.call for step in trajectory.steps), [step.error for step in trajectory.steps]
    return [(step.call.name, dict(step.call.arguments)) for step in trajectory.steps if step.call]


def conversation(*contents: str, question: str = "q?") -> list[Message]:
    """A conversation in which the agent has taken one turn per result in ``contents``."""
    messages = [Message(role="system", content="s"), Message(role="user", content=question)]
    for content in contents:
        messages += [Message(role="assistant", content="..."), Message(role="tool", content=content)]
    return messages


# The gold plan ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action_format", SEARCH_FORMATS)
def test_the_gold_plan_scores_one_in_every_format(world: World, action_format: str) -> None:
    assert action_format in FORMATS
    tasks = world.tasks(count=12, split="held_out")
    for trajectory in play(world, tasks, follow_plans(tasks, action_format=action_format), action_format):
        pages = trajectory.task.metadata["gold_pages"]
        assert isinstance(pages, list)
        assert trajectory.reward == 1.0
        assert trajectory.status == "terminated"
        opened = [arguments["url"] for name, arguments in calls(trajectory) if name == "open"]
        assert opened == [f"doc:{page}" for page in pages]
        assert [name for name, _ in calls(trajectory)] == ["search", *["open"] * len(pages), "answer"]


def test_the_answer_is_read_on_the_way(world: World) -> None:
    tasks = world.tasks(hops=(3, 4), count=20)
    for trajectory in play(world, tasks, follow_plans(tasks)):
        last_page = trajectory.steps[-2].observation
        assert any(answer in last_page for answer in trajectory.task.answers)


def test_a_step_with_a_query_searches_again() -> None:
    steps = [PlanStep("p1", "First"), PlanStep("p2"), PlanStep("p3", "Third")]
    policy = gold_plan_searcher(steps, "42", action_format="line", top_k=7)
    turns = [policy(conversation(*["nothing"] * n)) for n in range(6)]
    assert turns == [
        'search: {"query": "First", "top_k": 7}\n',
        "open: doc:p1\n",
        "open: doc:p2\n",
        'search: {"query": "Third", "top_k": 7}\n',
        "open: doc:p3\n",
        "answer: 42\n",
    ]


def test_addresses_are_read_from_the_results() -> None:
    policy = gold_plan_searcher([PlanStep("p1", "First")], "42", action_format="line", address="http://x/{page}")
    for result, url in (
        ("1. First <http://127.0.0.1:8/wiki/p1> doc", "http://127.0.0.1:8/wiki/p1"),
        ("[First](http://h/wiki/p1), [Other](http://h/wiki/p11)", "http://h/wiki/p1"),
        ("doc:p11 doc:p1", "doc:p1"),
        ("http://h/wiki/p12 doc:p11 p1", "http://x/p1"),
    ):
        assert policy(conversation(result)) == f"open: {url}\n"


def test_tasks_without_a_plan_are_refused() -> None:
    bare = Task(id="t9", question="q", answers=("a",))
    with pytest.raises(ConfigError, match="'t9' has no 'plan'"):
        follow_plans([bare])
    with pytest.raises(ConfigError, match="'t9' has no 'gold_titles'"):
        follow_titles([bare])
    with pytest.raises(ConfigError, match="needs 'page'"):
        follow_plans([bare.model_copy(update={"metadata": {"plan": [{"query": "x"}]}})])


def test_a_question_without_a_policy_is_an_error() -> None:
    policy = by_question({"q?": lambda messages: "answer: 1\n"})
    assert policy(conversation(question="q?")) == "answer: 1\n"
    with pytest.raises(ConfigError, match="no policy for the question 'other'"):
        policy(conversation(question="other"))


# Titles -----------------------------------------------------------------------------------------------------


def test_the_title_searcher_searches_every_title_then_answers(world: World) -> None:
    tasks = world.tasks(hops=(2,), count=10)
    for trajectory in play(world, tasks, follow_titles(tasks, top_k=2)):
        *searches, (name, final) = calls(trajectory)
        assert searches == [("search", {"query": t, "top_k": 2}) for t in trajectory.task.metadata["gold_titles"]]  # type: ignore[union-attr]
        assert name == "answer"
        read = "\n".join(step.observation for step in trajectory.steps[:-1])
        assert str(final["text"]) in read or final["text"] == REFUSAL
        assert (trajectory.reward == 1.0) == (final["text"] != REFUSAL)


def test_the_title_searcher_opens_results_by_their_number() -> None:
    policy = title_searcher(["A", "B"], ["Vlona"], action_format="line", open_top=2)
    turns = [policy(conversation(*["born in Vlona"] * n)) for n in range(7)]
    searched = ["search: A\n", "open: 1\n", "open: 2\n", "search: B\n", "open: 1\n", "open: 2\n"]
    assert turns == [*searched, "answer: Vlona\n"]


def test_the_title_searcher_answers_only_what_it_read() -> None:
    policy = title_searcher(["A", "B"], ["St. Vlona", "Vlona"], action_format="line")
    assert policy(conversation("x")) == "search: B\n"
    assert policy(conversation("x", "born in ST VLONA, it says")) == "answer: St. Vlona\n"
    assert policy(conversation("born in Vlona", "x")) == "answer: Vlona\n"
    assert policy(conversation("born in Vlonast", "x")) == f"answer: {REFUSAL}\n"
    assert policy([*conversation("x", "y", question="St. Vlona?")]) == f"answer: {REFUSAL}\n"


def test_a_comparison_is_answered_by_an_oracle_alone_once_all_titles_were_found() -> None:
    read = ("[1] Ada Vlon — local (doc:a)\nno, yes, she did", "[1] Other (doc:o)\n[2] Ben Vlon (doc:b)\nborn")
    for oracle, results, answer in (
        (False, read, REFUSAL),  # "no" stands there, but it is not what the question asks
        (True, read, "no"),
        (True, (read[0], "[1] Ben (doc:b)\nBen Vlon is his name"), REFUSAL),
    ):
        policy = title_searcher(["Ada Vlon", "Ben Vlon"], ["no"], action_format="line", oracle=oracle)
        assert policy(conversation(*results)) == f"answer: {answer}\n"


# A bad habit ------------------------------------------------------------------------------------------------


def test_the_mixed_searcher_shortens_the_titles_of_a_share_of_the_tasks(world: World) -> None:
    tasks = world.tasks(hops=(1, 2), count=120)
    titles = {t.question: [str(title) for title in t.metadata["gold_titles"]] for t in tasks}  # type: ignore[union-attr]

    def short(habit: float) -> set[str]:
        found = set()
        for trajectory in play(world, tasks, mixed_searcher(tasks, habit)):
            full = titles[trajectory.task.question]
            asked = [arguments["query"] for name, arguments in calls(trajectory) if name == "search"]
            assert asked in (full, [title.split()[0] for title in full])
            found |= {trajectory.task.id} if asked != full else set()
        return found

    long_titles = {t.id for t in tasks if any(" " in title for title in titles[t.question])}
    assert short(0.0) == set()
    assert short(1.0) == long_titles
    assert 0.2 < len(short(0.4)) / len(long_titles) < 0.6
    assert short(0.4) < short(0.8) == short(0.8)


def test_the_mixed_searcher_refuses_what_is_no_share(world: World) -> None:
    with pytest.raises(ConfigError, match=r"between 0 and 1, got 80"):
        mixed_searcher(world.tasks(hops=(1,), count=1), 80)


# One search -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "results", "guess"),
    [
        ("In what year was Kvera Press founded?", "Kvera Press was founded in 1931. Dvol died in 1970.", "1931"),
        ("On what date was Ada Vlon born?", "Ada Vlon was born on 4 March 1931.", "4 March 1931"),
        ("How many pages does Kvera have?", "Kvera has 1,204 pages.\nStaff: 3", "1,204"),
        ("Who wrote Kvera?", "Nothing here\nKvera was written by Ada Vlon of Thar.", "Ada Vlon of Thar"),
        ("Who is the founder of Kvera?", "Kvera Page\nFounder of Kvera: Ada Vlon; Ben Vlon", "Ada Vlon"),
        ("Who wrote Kvera?", "kvera was written by nobody", REFUSAL),
        ("Who wrote Kvera?", "", REFUSAL),
        ("How many pages does Kvera have?", "Kvera was written by Ada Vlon.", REFUSAL),
    ],
)
def test_the_single_search_heuristic(question: str, results: str, guess: str) -> None:
    policy = single_search(action_format="line")
    assert policy(conversation(question=question)) == f"search: {question}\n"
    assert policy(conversation(results, question=question)) == f"answer: {guess}\n"


def test_single_search_may_open_what_it_found() -> None:
    policy = single_search(action_format="line", open_top=1)
    question = "Who wrote Kvera?"
    assert policy(conversation("[1] Kvera", question=question)) == "open: 1\n"
    read = conversation("[1] Kvera", "Kvera was written by Ada Vlon.", question=question)
    assert policy(read) == "answer: Ada Vlon\n"


def test_single_search_is_a_floor_and_the_plan_a_ceiling(world: World) -> None:
    tasks = world.tasks(count=60, split="held_out")
    floor = play(world, tasks, single_search())
    assert all([name for name, _ in calls(t)] == ["search", "answer"] for t in floor)
    rewards = {hops: [t.reward for t in floor if t.task.metadata["hops"] == hops] for hops in (1, 2, 3, 4)}
    assert sum(map(bool, rewards[1])) > 0, "it does find something"
    assert sum(t.reward or 0 for t in floor) < 0.5 * len(tasks)
    assert all(t.reward == 1.0 for t in play(world, tasks, follow_plans(tasks)))
