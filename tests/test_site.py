"""The local site: the world's own pages over real HTTP, from this machine only, gone when closed."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urljoin

import pytest
import requests
from bs4 import BeautifulSoup

from ovd_gym.agents.scripted import ScriptedAgent
from ovd_gym.agents.searchers import follow_plans
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.envs.web_search.world import World
from ovd_gym.envs.web_search.world.site import SiteIndex, WorldSite
from ovd_gym.errors import ConfigError, ToolError
from ovd_gym.rollout import rollout


@pytest.fixture(scope="module")
def site() -> Iterator[WorldSite]:
    with WorldSite(World.generate(seed=4, size=80)) as site:
        yield site


def get(url: str) -> requests.Response:
    with requests.get(url, timeout=10) as response:
        response.content  # noqa: B018  (reads it before the connection is closed)
        return response


def test_every_page_is_served_as_it_is(site: WorldSite) -> None:
    for id in site.world.base.entities:
        response = get(site.page_url(id))
        assert response.status_code == 200
        assert response.headers["Content-Type"] == "text/html; charset=utf-8"
        assert response.text == site.world.html(id)


def test_the_index_lists_all_pages(site: WorldSite) -> None:
    links = BeautifulSoup(get(f"{site.url}/").text, "html.parser").find_all("a")
    titles = {urljoin(f"{site.url}/", str(link["href"])): link.text for link in links}
    assert titles == {site.page_url(e.id): e.title for e in site.world.entities}


def test_a_gold_plan_can_be_walked_by_links_alone(site: WorldSite) -> None:
    for task in site.world.tasks(hops=(4,), count=5):
        pages = list(map(str, task.metadata["gold_pages"]))  # type: ignore[arg-type]
        url = site.page_url(pages[0])
        for page in pages[1:]:
            links = [urljoin(url, str(a["href"])) for a in BeautifulSoup(get(url).text, "html.parser").find_all("a")]
            assert site.page_url(page) in links
            url = site.page_url(page)
        assert task.answers[0] in BeautifulSoup(get(url).text, "html.parser").get_text()


@pytest.mark.parametrize(
    "path",
    ["/wiki/p99999", "/wiki/", "/wiki", "/nothing", "/wiki/../etc/passwd", "/wiki/%2e%2e/p00001", "/wiki/p00001/x"],
)
def test_anything_else_is_missing(site: WorldSite, path: str) -> None:
    assert get(f"{site.url}{path}").status_code == 404


def test_the_page_reader_finds_facts_and_links(site: WorldSite) -> None:
    pytest.importorskip("trafilatura")
    reader = site.reader()
    facts = [fact for entity in site.world.entities[:30] for fact in site.world.base.about(entity.id)]
    pages = {entity.id: reader.read(site.page_url(entity.id)) for entity in site.world.entities[:30]}
    reader.close()
    assert [p.title for p in pages.values()] == [entity.title for entity in site.world.entities[:30]]
    assert sum(fact.text in pages[fact.subject].text for fact in facts) > 0.98 * len(facts)
    linked = [fact for fact in facts if fact.target]
    urls = {id: {link.url for link in page.links} for id, page in pages.items()}
    assert all(site.page_url(str(fact.target)) in urls[fact.subject] for fact in linked)


def test_search_open_follow_a_link_answer(site: WorldSite) -> None:
    """The whole way of a question over HTTP; ``restrict_to_seen`` lets nothing be opened that was not shown before."""
    pytest.importorskip("trafilatura")
    tasks = site.world.tasks(count=8)
    index = SiteIndex.of(site)
    envs = [SearchEnv(tasks, backend=index, restrict_to_seen=True) for _ in tasks]
    trajectories = rollout(tasks, envs, ScriptedAgent(follow_plans(tasks)))
    assert [t.reward for t in trajectories] == [1.0] * 8
    for trajectory in trajectories:
        pages = list(map(str, trajectory.task.metadata["gold_pages"]))  # type: ignore[arg-type]
        calls = [step.call for step in trajectory.steps if step.call]
        assert [call.name for call in calls] == ["search", *["open"] * len(pages), "answer"]
        assert [call.arguments["url"] for call in calls[1:-1]] == [site.page_url(page) for page in pages]
        read = trajectory.steps[-2].observation
        assert any(answer in read for answer in trajectory.task.answers)
    for env in envs:
        env.close()


def test_the_reader_of_an_index_reads_its_site_and_its_documents_alone(site: WorldSite) -> None:
    reader = SiteIndex.of(site).reader()
    assert reader.read("doc:p00001").text == site.world.passage("p00001").text
    for address in (site.page_url("p00001"), "doc:p00001", "doc:nobody"):
        assert reader.opens(address)
    for address in ("http://127.0.0.1:1/wiki/p00001", "https://example.org/", "file:///etc/passwd"):
        assert not reader.opens(address)
        with pytest.raises(ToolError):
            reader.read(address)
    reader.close()


def test_a_configuration_serves_the_world() -> None:
    pytest.importorskip("trafilatura")
    options = {"count": 3, "size": 60, "hops": (2,)}
    env = SearchEnv(task_options=options, backend={"name": "world", "size": 60, "port": 0}, restrict_to_seen=True)
    assert isinstance(env.backend, SiteIndex)
    assert env.shared_options()["backend"] is env.backend
    trajectories = rollout(env.tasks[:1], [env], ScriptedAgent(follow_plans(env.tasks)))
    assert trajectories[0].reward == 1.0
    assert env.backend.site.url in trajectories[0].steps[1].observation
    env.close()
    env.backend.site.close()


def test_query_strings_and_escapes_are_read(site: WorldSite) -> None:
    assert get(f"{site.url}/wiki/p00001?from=search#top").text == site.world.html("p00001")
    assert get(f"{site.url}/wiki/%7000001").text == site.world.html("p00001")


def test_head_has_no_body(site: WorldSite) -> None:
    with requests.head(site.page_url("p00001"), timeout=10) as response:
        assert response.status_code == 200
        assert int(response.headers["Content-Length"]) == len(site.world.html("p00001").encode())
        assert response.content == b""


def test_many_readers_at_once(site: WorldSite) -> None:
    ids = [*site.world.base.entities] * 2
    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(lambda id: get(site.page_url(id)).text, ids))
    assert texts == [site.world.html(id) for id in ids]


def test_it_listens_on_this_machine_only_and_gives_the_port_back() -> None:
    world = World.generate(seed=4, size=60)
    with WorldSite(world) as site:
        assert site.url.startswith("http://127.0.0.1:")
        port = int(site.url.rpartition(":")[2])
        with pytest.raises(ConfigError, match=f"port {port}"):
            WorldSite(world, port=port)
    site.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    with pytest.raises(ConfigError, match="port 70000"):
        WorldSite(world, port=70_000)
