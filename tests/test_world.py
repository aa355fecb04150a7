"""The fictional world: same bytes everywhere, all facts on the pages, questions with exactly one answer."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from bs4 import BeautifulSoup

from ovd_gym.envs.web_search.world import RELATIONS, Entity, Fact, World
from ovd_gym.envs.web_search.world.schema import WORDS
from ovd_gym.envs.web_search.world.world import Split
from ovd_gym.errors import ConfigError, ToolError
from ovd_gym.records import Task

SIZE = 240
SPLITS: tuple[Split, ...] = ("train", "held_out")


@pytest.fixture(scope="module")
def world() -> World:
    return World.generate(seed=5, size=SIZE)


@pytest.fixture(scope="module")
def tasks(world: World) -> dict[str, tuple[Task, ...]]:
    return {split: tuple(world.tasks(count=160, seed=2, split=split)) for split in SPLITS}


# Determinism ------------------------------------------------------------------------------------------------

DIGEST = """
import hashlib
from ovd_gym.envs.web_search.world import World
world = World.generate(seed=3, size=90)
text = "".join(p.model_dump_json() for p in world.passages()) + "".join(map(world.html, world.base.entities))
text += "".join(t.model_dump_json() for s in ("train", "held_out") for t in world.tasks(count=12, split=s))
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_same_seed_gives_the_same_bytes_in_every_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "77")
    }
    assert len(digests) == 1
    assert len(digests.pop().strip()) == 64


def test_pages_do_not_depend_on_the_order_of_reading(world: World) -> None:
    other = World.generate(seed=5, size=SIZE)
    ids = [entity.id for entity in other.entities]
    backwards = {id: other.html(id) for id in reversed(ids)}
    assert [backwards[id] for id in ids] == [world.html(id) for id in ids]
    assert [other.passage(id) for id in reversed(ids)] == world.passages()[::-1]


def test_seeds_and_sizes_give_other_worlds(world: World) -> None:
    def names(world: World) -> set[str]:
        return {entity.name for entity in world.entities}

    assert not names(world) & names(World.generate(seed=6, size=SIZE))
    assert not names(world) & names(World.generate(seed=5, size=SIZE + 1))


def test_three_thousand_pages_take_seconds_at_most() -> None:
    start = time.process_time()
    passages = World.generate(seed=0, size=3000).passages()
    assert len(passages) == 3000
    assert time.process_time() - start < 6  # 1 s on an idle core; the margin is for a busy one


# Facts and pages --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [60, 61, 137, SIZE])
def test_size_is_the_number_of_pages(size: int) -> None:
    world = World.generate(seed=1, size=size)
    assert len(world.entities) == len(world.passages()) == size
    assert {entity.kind for entity in world.entities} == {"person", "work", "town", "organisation", "event", "country"}


def test_titles_mentions_and_aliases_are_unique(world: World) -> None:
    for names in (
        [entity.title for entity in world.entities],
        [entity.mention for entity in world.entities],
        [entity.id for entity in world.entities],
        [alias for entity in world.entities for alias in entity.aliases] + list({e.name for e in world.entities}),
    ):
        assert [name for name, count in Counter(names).items() if count > 1] == []


def test_there_are_near_duplicates() -> None:
    world = World.generate(seed=0, size=600)
    names = Counter((entity.kind, entity.name) for entity in world.entities)
    assert {kind for (kind, _), count in names.items() if count > 1} >= {"person", "work"}
    people = [entity for entity in world.entities if entity.kind == "person"]
    assert max(Counter(person.name.split()[-1] for person in people).values()) >= 3, "nobody shares a family name"
    series = Counter(event.name.partition(" ")[2] for event in world.entities if event.kind == "event")
    assert max(series.values()) >= 2, "no contest was held twice"
    for entity in world.entities:
        if names[entity.kind, entity.name] > 1:
            assert entity.title.startswith(f"{entity.name} (")
            assert "Not to be confused with" in world.passage(entity.id).text


def test_facts_are_sound(world: World) -> None:
    """Families and careers hang together in time, and what is mutual is stated on both sides."""

    def year_of(page: str | None, relation: str) -> int:
        return int(facts[str(page)][relation].text.split()[-1])

    facts: dict[str, dict[str, Fact]] = defaultdict(dict)
    for fact in world.facts:
        facts[fact.subject][fact.relation] = fact
        assert fact.target != fact.subject
        assert fact.text in fact.forms
    for page, told in facts.items():
        for parent in ("father", "mother"):
            if parent in told:
                assert 15 <= year_of(page, "born_on") - year_of(told[parent].target, "born_on") <= 60
        if "died_on" in told:
            assert 40 <= year_of(page, "died_on") - year_of(page, "born_on") <= 92
        if "based_on" in told:
            assert year_of(told["based_on"].target, "year") < year_of(page, "year")
        for mutual in ("spouse", "twin_town"):
            if mutual in told:
                assert facts[str(told[mutual].target)][mutual].target == page


def test_html_and_passage_state_every_fact(world: World) -> None:
    for entity in world.entities:
        text = world.passage(entity.id).text
        article = BeautifulSoup(world.html(entity.id), "html.parser").article
        assert article is not None
        links = {(a["href"], a.text) for a in article.find_all("a")}
        for fact in world.base.about(entity.id):
            assert fact.text in text
            assert fact.text in article.text
            if fact.target:
                assert (f"/wiki/{fact.target}", fact.text) in links
        assert squeezed(article.text).startswith(squeezed(entity.title))


def squeezed(text: str) -> str:
    return re.sub(r"\W+", "", text)


def test_the_two_renderings_hold_the_same_words(world: World) -> None:
    for entity in world.entities:
        passage = world.passage(entity.id)
        article = BeautifulSoup(world.html(entity.id), "html.parser").article
        assert article is not None
        assert squeezed(article.text) == squeezed(passage.title + passage.text)


def test_facts_stand_in_tables_or_prose_or_both(world: World) -> None:
    places: Counter[tuple[bool, bool]] = Counter()
    for entity in world.entities:
        soup = BeautifulSoup(world.html(entity.id), "html.parser")
        rows = {row.th.text: row.td.text for row in soup.find_all("tr") if row.th and row.td}
        prose = " ".join(p.text for p in soup.find_all("p")[:-1])
        for fact in world.base.about(entity.id):
            in_table = fact.text in rows.get(RELATIONS[fact.relation].label, "").split("; ")
            places[in_table, fact.text in prose] += 1
    assert places[False, False] == 0
    assert min(places.values()) > 0.1 * places.total()
    assert set(places) == {(True, True), (True, False), (False, True)}


def test_main_content_extraction_keeps_the_facts(world: World) -> None:
    trafilatura = pytest.importorskip("trafilatura")
    kept = []
    for entity in world.entities[:40]:
        text = trafilatura.extract(world.html(entity.id), include_tables=True, include_comments=False)
        kept += [fact.text in text for fact in world.base.about(entity.id)]
    assert sum(kept) / len(kept) > 0.98


def test_links_lead_to_pages(world: World) -> None:
    for page in [world.index_html(), *map(world.html, world.base.entities)]:
        for link in BeautifulSoup(page, "html.parser").find_all("a"):
            target = str(link["href"])
            assert target == "/" or target.removeprefix("/wiki/") in world.base.entities
    assert len(BeautifulSoup(world.index_html(), "html.parser").find_all("li")) == SIZE


def test_names_are_escaped_in_html() -> None:
    from ovd_gym.envs.web_search.world.article import Article, Span
    from ovd_gym.envs.web_search.world.render import article_html, article_text

    line = (Span("<b>R & D</b>", "p1"),)
    article = Article("<script>x</script>", (), line, (("<i>", line),), (), ())
    html = article_html(article)
    assert "<script>" not in html
    assert html.count("&lt;b&gt;R &amp; D&lt;/b&gt;") == 2
    assert article_text(article) == "<b>R & D</b>\n<i>: <b>R & D</b>"


def test_passages_by_id_and_address(world: World) -> None:
    ids = [world.entities[3].id, world.entities[0].id]
    assert [p.id for p in world.passages(ids)] == ids
    assert world.passages(ids)[0].url == ""
    assert world.passages(ids, base_url="http://site/")[0].url == f"http://site/wiki/{ids[0]}"
    for read in (world.html, world.passage):
        with pytest.raises(ToolError, match="no page 'p99999'"):
            read("p99999")


# Questions --------------------------------------------------------------------------------------------------


class Solver:
    """Answers a question from the fact base by reading its words: all readings, all entities, all answers.

    It knows the wordings but nothing of chains, plans or splits.
    """

    def __init__(self, world: World) -> None:
        self.objects: dict[tuple[str, str], set[tuple[str | None, str]]] = defaultdict(set)
        for fact in world.facts:
            self.objects[fact.subject, fact.relation].add((fact.target, fact.text))
        self.named: dict[str, set[str]] = defaultdict(set)
        for entity in world.entities:
            for name in descriptions(entity):
                self.named[name].add(entity.id)
        self.things = cache(self._things)

    def answers(self, question: str) -> set[str]:
        return {
            text
            for relation, words in RELATIONS.items()
            for inner in readings(question, words.asks)
            for page in self.things(inner)
            for _, text in self.objects[page, relation]
        }

    def _things(self, phrase: str) -> frozenset[str]:
        """The entities that ``phrase`` may mean, in any reading."""
        meant = set(self.named[phrase])
        for relation, words in RELATIONS.items():
            for inner in readings(phrase, words.nouns):
                meant |= {t for page in self.things(inner) for t, _ in self.objects[page, relation] if t}
        return frozenset(meant)


def descriptions(entity: Entity) -> Iterator[str]:
    """Everything a question might call ``entity``, whether or not that is enough to tell it from others."""
    yield from (entity.name, f"the {entity.name}", f"the {entity.sort} {entity.name}", entity.title)
    yield f'the {entity.sort} "{entity.name}"'
    if found := re.fullmatch(r".* \((\d+) (\w+)\)", entity.title):
        yield f'the {found[1]} {found[2]} "{entity.name}"'
    if entity.kind == "town" and entity.title != entity.name:
        yield f"{entity.name} in {entity.title.removeprefix(entity.name)[2:-1]}"


def readings(text: str, wordings: tuple[str, ...]) -> Iterator[str]:
    """What ``{x}`` may stand for where one of ``wordings`` fits ``text``."""
    for wording in wordings:
        before, after = wording.split("{x}")
        if text.startswith(before) and text.endswith(after) and len(text) > len(before) + len(after):
            yield text[len(before) : len(text) - len(after)]


@pytest.mark.parametrize("split", SPLITS)
def test_every_question_has_exactly_its_gold_answer(
    world: World, tasks: dict[str, tuple[Task, ...]], split: str
) -> None:
    solver = Solver(world)
    for task in tasks[split]:
        (found,) = solver.answers(task.question)
        assert found in task.answers, task.question


def test_the_solver_sees_ambiguity(world: World) -> None:
    """What makes the test above worth something: a question about two things has two answers."""
    solver = Solver(world)
    solver.named["Nobody"] = {entity.id for entity in world.entities if entity.kind == "town"}
    assert len(solver.answers("What is the population of Nobody?")) > 5
    assert solver.answers("What is the colour of Nobody?") == set()


def test_questions_in_large_worlds_with_namesakes() -> None:
    world = World.generate(seed=11, size=900)
    solver = Solver(world)
    titles = {entity.id: entity.title != entity.name for entity in world.entities}
    tasks = world.tasks(count=400, seed=1)
    assert sum(titles[known(task, "gold_pages")[0]] for task in tasks) > 5, "no question begins at a namesake"
    for task in tasks:
        (found,) = solver.answers(task.question)
        assert found in task.answers, task.question


def words(text: str) -> str:
    return " " + " ".join(re.findall(r"[^\W_]+", text.casefold())) + " "


def known(task: Task, field: str) -> Any:
    return task.metadata[field]


@pytest.mark.parametrize("split", SPLITS)
def test_no_answer_stands_in_its_question_or_before_the_last_page(
    world: World, tasks: dict[str, tuple[Task, ...]], split: str
) -> None:
    for task in tasks[split]:
        *earlier, last = map(str, known(task, "gold_pages"))
        for answer in task.answers:
            assert words(answer) not in words(task.question)
            assert all(words(answer) not in words(world.passage(page).text) for page in earlier)
        assert any(words(answer) in words(world.passage(last).text) for answer in task.answers)


@pytest.mark.parametrize("split", SPLITS)
def test_plans_lead_from_the_question_to_the_answer(
    world: World, tasks: dict[str, tuple[Task, ...]], split: str
) -> None:
    for task in tasks[split]:
        plan, pages = known(task, "plan"), known(task, "gold_pages")
        assert len(plan) == len(pages) == known(task, "hops") == len(set(map(str, pages)))
        assert [step["action"] for step in plan] == ["search"] + ["follow"] * (len(plan) - 1)
        assert [step["page"] for step in plan] == pages
        for page, following in zip(pages, plan[1:], strict=False):
            link = f'<a href="/wiki/{following["page"]}">{following["query"]}</a>'
            assert link in world.html(str(page)).replace("&amp;", "&")
        assert plan[-1]["fact"].endswith(task.answers[0]) or plan[-1]["fact"].endswith(")")


def test_splits_share_no_page_no_fact_and_no_question(world: World) -> None:
    pages, questions, answers = {}, {}, {}
    for split in SPLITS:
        drawn = [t for seed in range(3) for t in world.tasks(count=100, seed=seed, split=split)]
        pages[split] = {str(page) for task in drawn for page in known(task, "gold_pages")}
        questions[split] = {task.question for task in drawn}
        answers[split] = {(known(task, "gold_pages")[-1], known(task, "relations")[-1]) for task in drawn}
    assert not pages["train"] & pages["held_out"]
    assert not questions["train"] & questions["held_out"]
    assert not answers["train"] & answers["held_out"]
    assert len(pages["held_out"]) > 0.2 * SIZE


def test_tasks_are_distinct_and_repeatable(world: World, tasks: dict[str, tuple[Task, ...]]) -> None:
    drawn = tasks["train"]
    assert len({task.question for task in drawn}) == len({task.id for task in drawn}) == len(drawn) == 160
    assert [known(task, "hops") for task in drawn[:6]] == [1, 2, 3, 4, 1, 2]
    assert world.tasks(count=160, seed=2) == drawn
    assert world.tasks(count=160, seed=3) != drawn
    assert world.tasks(count=40, seed=2) == drawn[:40]
    assert {known(task, "hops") for task in world.tasks(hops=(3,), count=9)} == {3}
    assert len({relation for task in drawn for relation in known(task, "relations")}) > 25


def test_dates_and_numbers_have_several_forms(world: World) -> None:
    answers = {task.answers for task in world.tasks(hops=(1,), count=200)}
    dates = [forms for forms in answers if any(month in forms[0] for month in WORDS["months"])]
    numbers = [forms for forms in answers if "," in forms[0] and forms[0].replace(",", "").isdigit()]
    assert dates
    assert numbers
    assert all(len(forms) == 3 and re.fullmatch(r"\d{4}-\d\d-\d\d", forms[2]) for forms in dates)
    assert all(forms[1] == forms[0].replace(",", "") for forms in numbers)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hops": ()}, "hops lie in 1..4"),
        ({"hops": (0,)}, "hops lie in 1..4"),
        ({"hops": (5,)}, "hops lie in 1..4"),
        ({"count": 0}, "count is at least 1"),
        ({"seed": -1}, "seed at least 0"),
        ({"split": "test"}, "unknown split 'test'"),
        ({"hops": (1,), "count": 100_000}, "too few 1-hop questions"),
    ],
)
def test_task_errors(world: World, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world.tasks(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("arguments", [{"size": 59}, {"seed": -1}])
def test_world_errors(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 60"):
        World.generate(**arguments)


@pytest.mark.parametrize("seed", range(8))
def test_small_worlds_have_questions_of_every_length(seed: int) -> None:
    world = World.generate(seed=seed, size=100)
    for split in SPLITS:
        assert len(world.tasks(count=20, split=split)) == 20


def test_every_wording_belongs_to_one_relation() -> None:
    for field in ("asks", "nouns"):
        wordings = Counter(wording for relation in RELATIONS.values() for wording in getattr(relation, field))
        assert [wording for wording, count in wordings.items() if count > 1] == []
    for relation in RELATIONS.values():
        assert all(say.count("{s}") == say.count("{o}") == 1 for say in relation.says)
        assert all(words.count("{x}") == 1 for words in (*relation.asks, *relation.nouns))


def test_the_fact_base_of_a_seed_is_pinned() -> None:
    """Questions that somebody stored stay valid: a change of this digest changes every world."""
    world = World.generate(seed=0, size=60)
    text = "\n".join(fact.model_dump_json() for fact in world.facts)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "fa7615d109dcc846"
