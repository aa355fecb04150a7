"""SearchEnv: tools, budgets, outages and grades, on an index in memory and offline by default."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env
from pydantic import JsonValue

from ovd_gym.actions import get_format
from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.agents.searchers import follow_plans
from ovd_gym.build import make_envs
from ovd_gym.config import EnvConfig
from ovd_gym.envs.web_search.base import (
    Hit,
    Link,
    Page,
    PageReader,
    Passage,
    ReadOutage,
    SearchBackend,
    SearchOutage,
)
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.envs.web_search.local import LocalIndex
from ovd_gym.envs.web_search.timed import TimedCalls
from ovd_gym.errors import ConfigError, InfrastructureError, ToolError
from ovd_gym.records import Task, ToolCall, Trajectory
from ovd_gym.registry import register_envs
from ovd_gym.rollout import Schedule, rollout

HERMES = get_format("hermes")
TASK = Task(id="ada", question="Who wrote the first program?", answers=("Ada Lovelace", "Ada King"))
LONG = "\n\n".join(f"Paragraph {i} is about looms and engines." for i in range(40))
PAGES = {
    "http://a.test/ada": Page(
        url="http://a.test/ada",
        title="Ada\nLovelace",
        text="Ada Lovelace wrote the first program.\nShe knew Babbage.",
        links=(Link(text="Babbage", url="http://a.test/babbage"), Link(text="Imprint", url="http://a.test/imprint")),
    ),
    "http://a.test/babbage": Page(url="http://a.test/babbage", title="Babbage", text=LONG),
    "http://a.test/empty": Page(url="http://a.test/empty", title="Nothing", text=""),
}
HITS = [Hit(id=url, title=page.title, url=url, snippet=page.text[:80], source="fake") for url, page in PAGES.items()]


class FakeBackend:
    """Finds the pages that hold a word of the query; some words play a fault."""

    name = "fake"

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.closed = False
        self.release = threading.Event()

    def search(self, query: str, top_k: int) -> list[Hit]:
        self.asked.append((query, top_k))
        if query == "down":
            raise SearchOutage("the backend is down")
        if query == "hang":
            self.release.wait(30)
        if query == "refuse":
            raise ToolError("the query is refused")
        words = query.lower().split()
        return [hit for hit in HITS if any(word in PAGES[hit.url].text.lower() for word in words)]  # may be too many

    def describe(self) -> Mapping[str, JsonValue]:
        return {"kind": self.name}

    def close(self) -> None:
        self.closed = True


class FakeReader(PageReader):
    def __init__(self) -> None:
        self.read_urls: list[str] = []
        self.closed = False

    def read(self, url: str) -> Page:
        self.read_urls.append(url)
        if url == "http://down.test/":
            raise ReadOutage("no route")
        if url not in PAGES:
            raise ToolError(f"{url}: not found (404)")
        return PAGES[url]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    fake = FakeBackend()
    yield fake
    fake.release.set()


def make(backend: FakeBackend, **options: Any) -> SearchEnv:
    env = SearchEnv([TASK], backend=backend, reader=options.pop("reader", FakeReader()), **options)
    env.reset(seed=0)
    return env


def act(env: SearchEnv, name: str, **arguments: Any) -> str:
    return env.step(HERMES.render(ToolCall(name=name, arguments=arguments)))[0]


# Tools -----------------------------------------------------------------------------------------------------


def test_results_name_rank_title_source_and_address(backend: FakeBackend) -> None:
    observation = act(make(backend), "search", query="babbage engines")
    first, second = observation.split("\n\n")
    assert first.splitlines()[0] == "[1] Ada Lovelace — fake (http://a.test/ada)"
    assert first.splitlines()[1] == "Ada Lovelace wrote the first program. She knew Babbage."
    assert second.startswith("[2] Babbage — fake (http://a.test/babbage)\n")
    assert backend.asked == [("babbage engines", 3)]


def test_top_k_holds_even_where_a_backend_gives_more(backend: FakeBackend) -> None:
    env = make(backend)
    assert act(env, "search", query="babbage engines", top_k=1).count("— fake") == 1
    for top_k in (0, 11):
        assert "top_k must be between 1 and 10" in act(env, "search", query="babbage", top_k=top_k)
    assert backend.asked == [("babbage engines", 1)]


def test_a_limit_below_the_default_gives_fewer_results_and_no_error(backend: FakeBackend) -> None:
    env = make(backend, max_top_k=1)
    assert act(env, "search", query="babbage engines").count("— fake") == 1
    assert "top_k must be between 1 and 1" in act(env, "search", query="babbage", top_k=4)
    assert backend.asked == [("babbage engines", 1)]


def test_no_results_is_said_and_an_empty_query_refused(backend: FakeBackend) -> None:
    env = make(backend)
    assert act(env, "search", query="zebra") == "No results. Try other words."
    assert act(env, "search", query=" ") == "Error: the query is empty: say what to search for"
    assert act(env, "search", query="refuse") == "Error: the query is refused"
    assert backend.asked == [("zebra", 3), ("refuse", 3)]


@pytest.mark.parametrize("url", ["1", 1, "[1]", " 1 ", "http://a.test/ada"])
def test_open_takes_a_rank_or_an_address(backend: FakeBackend, url: str | int) -> None:
    env = make(backend)
    act(env, "search", query="babbage")
    lines = act(env, "open", url=url).splitlines()
    assert lines == [
        "Ada Lovelace — http://a.test/ada",
        "Ada Lovelace wrote the first program.",
        "She knew Babbage.",
        "Links:",
        "- Babbage: http://a.test/babbage",  # the imprint's link has no place in the text
    ]


def test_pages_of_a_long_document(backend: FakeBackend) -> None:
    reader = FakeReader()
    env = make(backend, reader=reader, page_chars=500, max_turns=20)
    parts, total = [], 0
    for page in range(1, 9):
        observation = act(env, "open", url="http://a.test/babbage", page=page)
        if observation.startswith("Error"):
            total = page - 1
            assert observation == f"Error: this document has {total} pages, got page {page}"
            break
        head, _, text = observation.partition("\n")
        assert head.startswith(f"Babbage — http://a.test/babbage (page {page} of ")
        assert len(text) <= 500
        parts.append(text)
    assert total == 4
    assert "".join("".join(parts).split()) == "".join(LONG.split())
    assert reader.read_urls == ["http://a.test/babbage"]  # turning a page reads nothing anew
    assert "got page 0" in act(env, "open", url="http://a.test/babbage", page=0)


def test_an_empty_document_is_said_to_be_empty(backend: FakeBackend) -> None:
    assert act(make(backend), "open", url="http://a.test/empty").endswith("(no text)")


def test_find(backend: FakeBackend) -> None:
    env = make(backend)
    assert act(env, "find", text="looms") == "Error: no document is open: open one first"
    act(env, "open", url="http://a.test/babbage")
    assert act(env, "find", text="PARAGRAPH 17").startswith("Found 1 time in Babbage:\n... ")
    assert "Paragraph 17 is about" in env.snapshot().observations[-1]
    assert act(env, "find", text="zebra") == "Not found in Babbage."
    assert act(env, "find", text=" ").startswith("Error: the text to find")


def test_a_rank_without_a_result_is_refused(backend: FakeBackend) -> None:
    env = make(backend)
    assert act(env, "open", url="1") == "Error: there is no result 1: the last search gave 0 results"
    act(env, "search", query="babbage", top_k=1)
    assert act(env, "open", url="2") == "Error: there is no result 2: the last search gave 1 result"
    assert "404" in act(env, "open", url="http://a.test/nowhere")


def test_restricted_to_what_was_seen(backend: FakeBackend) -> None:
    reader = FakeReader()
    env = make(backend, reader=reader, restrict_to_seen=True, max_turns=9)
    assert "was not among the results and links" in act(env, "open", url="http://a.test/ada")
    act(env, "search", query="first program")
    assert act(env, "open", url="http://a.test/ada").startswith("Ada Lovelace")
    assert act(env, "open", url="http://a.test/babbage").startswith("Babbage")
    assert "was not among" in act(env, "open", url="http://a.test/imprint")  # a link of the page, but never shown
    assert reader.read_urls == ["http://a.test/ada", "http://a.test/babbage"]


def test_an_episode_forgets_the_last_one(backend: FakeBackend) -> None:
    env = make(backend)
    act(env, "search", query="babbage")
    act(env, "open", url=1)
    env.reset()
    assert "no document is open" in act(env, "find", text="Ada")
    assert "there is no result 1" in act(env, "open", url=1)
    _, _, _, _, info = env.step("?")
    assert (info["seen"], info["visited"], info["em"]) == ([], [], None)


PASSAGES = [
    Passage(id="own", title="Looms", text="Of looms.", url="https://example.org/looms"),
    Passage(id="inside", title="Looms inside", text="Of looms.", url="http://127.0.0.1:9/looms"),
    Passage(id="file", title="Looms on disk", text="Of looms.", url="file:///etc/passwd"),
    Passage(id="script", title="Looms that run", text="Of looms.", url="javascript:alert(1)"),
    Passage(id="none", title="Looms without", text="Of looms."),
]


def addresses(env: SearchEnv) -> dict[str, str]:
    """Address by id of everything that a search finds; each of them is opened by the reader."""
    env.reset(seed=0)
    act(env, "search", query="looms", top_k=5)
    hits = env._trail.hits
    assert all(env.reader.opens(hit.url) for hit in hits)
    return {hit.id: hit.url for hit in hits}


def test_a_hit_leads_to_where_the_reader_can_go() -> None:
    documents = {passage.id: f"doc:{passage.id}" for passage in PASSAGES}
    index = LocalIndex.in_memory(PASSAGES)
    assert addresses(SearchEnv([TASK], backend=index)) == documents
    web: dict[str, Any] = {"name": "web", "policy": {"allow": [["127.0.0.1", 8000]]}}
    assert addresses(SearchEnv([TASK], backend=index, reader=web)) == documents | {"own": "https://example.org/looms"}
    web["policy"]["allow"] = [["127.0.0.1", 9]]
    assert addresses(SearchEnv([TASK], backend=index, reader=web))["inside"] == "http://127.0.0.1:9/looms"
    web["policy"]["only_allowed"] = True
    assert addresses(SearchEnv([TASK], backend=index, reader=web))["own"] == "doc:own"


def test_documents_without_an_address_are_read_beside_the_web() -> None:
    env = SearchEnv([TASK], backend=LocalIndex.in_memory(PASSAGES), reader="web", restrict_to_seen=True)
    env.reset(seed=0)
    act(env, "search", query="looms without", top_k=1)
    assert act(env, "open", url=1).startswith("Looms without — doc:none")
    assert env.snapshot().observations[0].startswith("[1] Looms without — local (doc:none)")


# Grades ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "em", "f1", "cover"),
    [("ada lovelace!", 1, 1, 1), ("Lovelace", 0, 2 / 3, 0), ("It was Ada King of London", 0, 0.5, 1), ("Bob", 0, 0, 0)],
)
@pytest.mark.parametrize("reward", ["em", "f1"])
def test_grades(backend: FakeBackend, reward: Any, answer: str, em: float, f1: float, cover: float) -> None:
    env = make(backend, reward=reward)
    act(env, "search", query="babbage engines")
    act(env, "open", url=2)
    _, value, terminated, _, info = env.step(HERMES.render(ToolCall(name="answer", arguments={"text": answer})))
    assert terminated
    assert value == pytest.approx({"em": em, "f1": f1}[reward])
    assert (info["em"], info["f1"], info["cover_em"]) == (em, pytest.approx(f1), cover)
    assert info["seen"] == ["http://a.test/ada", "http://a.test/babbage"]
    assert info["visited"] == ["http://a.test/babbage"]


@pytest.mark.parametrize(
    ("name", "action", "start"),
    [
        ("react", "Action: search[babbage]", "Observation: [1] "),
        ("search-r1", "<search>babbage</search>", "<information>"),
    ],
)
def test_results_are_wrapped_and_errors_are_not(backend: FakeBackend, name: str, action: str, start: str) -> None:
    env = make(backend, action_format=name)
    assert env.step(action)[0].startswith(start)
    assert env.step("nonsense")[0].startswith("Error: found 0 tool calls")
    assert env.step(action.replace("babbage", "refuse"))[0] == "Error: the query is refused"


def test_replay(backend: FakeBackend) -> None:
    env = make(backend, action_format="search-r1")
    env.step("<search>babbage engines</search>")
    env.step("<open>2</open>")
    other = make(backend, action_format="search-r1")
    observation = other.restore(env.snapshot())
    assert observation.startswith("<information>Babbage — ")
    assert other.step("<answer>Ada King</answer>")[1] == 1.0


# Budgets and outages ---------------------------------------------------------------------------------------


def test_an_outage_is_no_observation(backend: FakeBackend) -> None:
    env = make(backend)
    with pytest.raises(SearchOutage, match="down"):
        act(env, "search", query="down")
    with pytest.raises(ReadOutage, match="no route"):
        act(env, "open", url="http://down.test/")


def test_a_hung_backend_costs_one_deadline(backend: FakeBackend) -> None:
    env = make(backend, tool_timeout_s=0.05, max_hung=2)
    for _ in range(2):
        with pytest.raises(SearchOutage, match=r"search gave no answer within 0.05 s"):
            act(env, "search", query="hang")
    asked = len(backend.asked)
    with pytest.raises(SearchOutage, match="not tried: 2 earlier calls"):
        act(env, "search", query="babbage")
    assert len(backend.asked) == asked
    backend.release.set()
    for thread in [t for t in threading.enumerate() if t.name == "ovd-gym search"]:
        thread.join(5)
    env.reset()
    assert act(env, "search", query="babbage").startswith("[1] Ada")
    assert env.snapshot().observations[0].startswith("[1] Ada")  # nothing of the late calls came through


@pytest.mark.parametrize("kind", ["lock-step", "free-running"])
def test_one_hung_search_costs_its_episode_and_one_deadline(kind: Literal["lock-step", "free-running"]) -> None:
    world = SearchEnv(task_options={"count": 8, "size": 200, "hops": (1, 2)})
    lone = str(world.tasks[3].metadata["gold_titles"][0])  # type: ignore[index]

    class Hanging(FakeBackend):
        def search(self, query: str, top_k: int) -> list[Hit]:
            if query == lone:
                self.release.wait(30)
            return world.backend.search(query, top_k)

    def play(backend: SearchBackend) -> list[Trajectory]:
        envs = [SearchEnv(world.tasks, backend=backend, reader=world.reader, tool_timeout_s=2.0) for _ in world.tasks]
        agent = ScriptedAgent(follow_plans(world.tasks))
        return rollout(world.tasks, envs, agent, schedule=Schedule(schedule=kind, tool_threads=4))

    healthy, backend, began = play(world.backend), Hanging(), time.monotonic()
    played = play(backend)
    assert time.monotonic() - began < 25  # far from the 30 s that the search hangs
    backend.release.set()
    assert (played[3].status, played[3].reason) == ("failed", "search gave no answer within 2 s")
    assert played[3].reward is None
    assert played[:3] + played[4:] == healthy[:3] + healthy[4:]
    assert {t.reward for t in healthy} == {1.0}


def test_timed_calls_hand_on_what_they_raise() -> None:
    calls = TimedCalls(5.0)

    def fault() -> int:
        raise TimeoutError("the function's own")

    with pytest.raises(TimeoutError, match="the function's own"):
        calls.run(fault, "call", InfrastructureError)
    assert calls.run(lambda: 3, "call", InfrastructureError) == 3
    assert calls.hung == 0
    with pytest.raises(ConfigError, match="tool_timeout_s must be positive"):
        TimedCalls(0)


def test_the_wall_clock_truncates(backend: FakeBackend) -> None:
    now = [100.0]
    env = make(backend, max_seconds=10, clock=lambda: now[0])
    act(env, "search", query="babbage")
    now[0] = 111.0
    _, _, terminated, truncated, info = env.step(HERMES.render(ToolCall(name="find", arguments={"text": "x"})))
    assert (terminated, truncated, info["truncation"]) == (False, True, "time")
    env.reset()
    assert env.step("?")[3] is False
    now[0] = 130.0
    _, _, terminated, truncated, info = env.step(HERMES.render(ToolCall(name="answer", arguments={"text": "x"})))
    assert (terminated, truncated, info["truncation"]) == (True, False, None)


# Construction ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": [TASK]}, "these questions need a search backend"),
        ({"tasks": "hotpotqa"}, "'hotpotqa' need a search backend, and none was given: set the option backend to"),
        ({"tasks": "hotpot"}, "did you mean 'hotpotqa'"),
        ({"reward": "cover"}, "unknown reward"),
        ({"page_chars": 0}, "limits must be positive"),
        ({"max_seconds": 0}, "limits must be positive"),
        ({"task_options": {"hop": (1,)}}, "task_options"),
        ({"tasks": [TASK], "task_options": {"count": 1}, "backend": "world"}, "task_options belong to tasks given by"),
        ({"tasks": [TASK], "backend": {"name": "world", "size": 80, "hops": 3}}, "unknown option of backend 'world'"),
        ({"tasks": [TASK], "backend": "world", "reader": "corpse"}, "did you mean 'corpus'"),
        ({"tasks": [TASK], "backend": FakeBackend(), "reader": "corpus"}, "no documents of its own"),
        ({"reader": {"name": "corpus", "web": True}}, "reader 'corpus' takes no options, got web"),
        ({"reader": {"policy": {}}}, "unknown reader 'None'"),
        ({"reader": {"name": "web", "maners": {}}}, "option of reader 'web': 'maners': did you mean 'manners'"),
        ({"reader": {"name": "web", "limits": {"total": 1}}}, "option of reader 'web', limits: 'total'"),
        ({"reader": {"name": "web", "limits": {"total_s": "long"}}}, "reader 'web', limits: total_s: Input should be"),
        ({"reader": {"name": "web", "policy": {"resolver": "os:system"}}}, "resolver: Input should be callable"),
        ({"reader": {"name": "web", "policy": {"allow": [["h", 0]]}}}, "allow must hold"),
        ({"reader": {"name": "web", "manners": 3}}, "reader 'web', manners: Input should be"),
        ({"reader": object()}, "expected a PageReader"),
        ({"tasks": [TASK], "backend": "gogle"}, "unknown search backend"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchEnv(**options)


def test_it_closes_what_it_made(backend: FakeBackend) -> None:
    reader = FakeReader()
    make(backend, reader=reader).close()
    assert (backend.closed, reader.closed) == (False, False)


# The default -----------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"task_options": {"count": 20, "size": 200, "hops": (1, 2)}}


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    register_envs()


def test_the_default_works_offline() -> None:
    env = gym.make("ovd_gym/Search-v0")
    question, info = env.reset(seed=1)
    assert [spec["name"] for spec in info["tools"]] == ["search", "open", "find", "answer"]
    task = env.unwrapped.task  # type: ignore[attr-defined]
    assert task.question == question
    assert not any(answer in message["content"] for message in info["messages"] for answer in task.answers)
    env.close()


def test_check_env() -> None:
    env = SearchEnv(**SMALL, render_mode="ansi")
    check_env(env, skip_render_check=True)
    env.close()


def test_the_plan_of_every_task_leads_to_its_answer() -> None:
    env = SearchEnv(**SMALL)
    assert len(env.tasks) == 20
    for index, task in enumerate(env.tasks):
        env.reset(options={"task_index": index})
        plan = task.metadata["plan"]
        assert isinstance(plan, list)
        for step in plan:
            assert isinstance(step, dict)
            act(env, "search", query=step["query"])
            assert "Error" not in act(env, "open", url=f"doc:{step['page']}")
        final = HERMES.render(ToolCall(name="answer", arguments={"text": task.answers[0]}))
        _, reward, _, _, info = env.step(final)
        assert reward == 1.0
        assert info["visited"] == task.metadata["gold_pages"]
        assert set(info["visited"]) & set(info["seen"])


def test_environments_share_the_world() -> None:
    first, second = SearchEnv(**SMALL), SearchEnv(**SMALL)
    assert first.backend is second.backend
    first.close()
    second.reset(seed=0)
    assert act(second, "search", query=second.task.question).startswith("[1] ")


def test_instances_made_for_a_run_share_world_index_and_reader() -> None:
    world: JsonValue = {"world_seed": 1, "size": 60, "count": 5, "hops": [1]}
    options: dict[str, JsonValue] = {"task_options": world, "action_format": "line"}
    envs = make_envs(EnvConfig(id="ovd_gym/Search-v0", options=options), 3)
    first, *others = (env.unwrapped for env in envs)
    assert isinstance(first, SearchEnv)
    for other in others:
        assert isinstance(other, SearchEnv)
        assert other.tasks is first.tasks
        assert other.backend is first.backend
        assert other.reader is first.reader
    trajectories = rollout(first.tasks[:3], envs, ScriptedAgent(follow_plans(first.tasks, action_format="line")))
    assert [t.reward for t in trajectories] == [1.0, 1.0, 1.0]
