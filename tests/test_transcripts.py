"""The transcript page: what a reader sees, and that no text in it can act."""

import pytest
from bs4 import BeautifulSoup, Tag

from ovd_gym.errors import DataError
from ovd_gym.records import Critique, Score, Step, Task, ToolCall, Trajectory
from ovd_gym.report.transcripts import render_transcripts

HOSTILE = "</div></pre></style><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}\"'><b>&amp;"
FIRST = Step(text="calculator: 6 * 7", start=1, end=3, call=ToolCall(name="calculator"), observation="42")
LAST = Step(text="answer: 42", start=4, end=6, call=ToolCall(name="answer"), observation="42")


def episode(name: str = "a", steps: tuple[Step, ...] = (FIRST, LAST), reward: float | None = 1.0) -> Trajectory:
    return Trajectory(
        id=name,
        group_id="g",
        task=Task(id="t", question="What is 6 times 7?", answers=("42", "forty-two")),
        steps=steps,
        token_ids=tuple(range(7)),
        logprobs=(0.0,) * 7,
        reward=reward,
        answer=None if reward is None else "42",
        status="failed" if reward is None else "terminated",
        reason="search backend is down" if reward is None else "",
    )


def judged(trajectory: Trajectory, *scores: Score, whole: Score) -> tuple[Trajectory, Critique]:
    return trajectory, Critique(trajectory_id=trajectory.id, teacher="Rules", steps=scores, trajectory=whole)


def page(*pairs: tuple[Trajectory, Critique | None], title: str = "run") -> BeautifulSoup:
    return BeautifulSoup(render_transcripts([("step 1", pairs)], title), "html.parser")


def texts(soup: BeautifulSoup | Tag, selector: str) -> list[str]:
    return [element.get_text() for element in soup.select(selector)]


def test_an_episode_shows_all_its_parts() -> None:
    soup = page(judged(episode(), Score.of(0, "a detour"), Score.of(9), whole=Score.of(7, "fine on the whole")))
    assert texts(soup, ".question") == ["What is 6 times 7?"]
    assert texts(soup, ".said") == ["calculator: 6 * 7", "answer: 42"]
    assert texts(soup, ".step > .badge") == ["0", "9"]
    assert texts(soup, ".heard .who") == ["calculator →", "answer →"]
    assert texts(soup, ".heard .text") == ["42", "42"]
    assert texts(soup, ".verdict .text") == ["a detour", "fine on the whole"]
    answer, gold, reward, status, _ = soup.select(".end dd")
    assert answer.get_text() == "42"
    assert gold.get_text(" ") == "42 or forty-two"
    assert reward.get_text() == "1"
    assert status.get_text() == "terminated"


def test_steps_are_coloured_from_red_to_green_and_grey_without_a_number() -> None:
    steps = tuple(LAST.model_copy(update={"start": k, "end": k + 1}) for k in range(4))
    scores = Score.of(0), Score.of(4.5), Score.of(9), Score.invalid("timeout", "no reply in 30 s")
    soup = page(judged(episode(steps=steps), *scores, whole=Score.of(5)))
    colours = [step["style"] for step in soup.select(".step")]
    assert colours == ["--hue: 0; --sat: 1", "--hue: 62; --sat: 1", "--hue: 125; --sat: 1", ""]
    assert texts(soup, ".step > .badge")[-1] == "?"
    assert texts(soup, ".step .verdict .chip") == ["timeout"]
    assert texts(soup, ".step .verdict .text") == ["no reply in 30 s"]


def test_an_invalid_score_is_counted_as_missing_never_as_zero() -> None:
    good = judged(episode("a"), Score.of(8), Score.of(8), whole=Score.of(8))
    lost = judged(episode("b"), Score.of(6), Score.of(6), whole=Score.invalid("malformed"))
    numbers = dict(zip(texts(page(good, lost), "header dt"), texts(page(good, lost), "header dd"), strict=True))
    assert numbers["mean score"] == "8.00"
    assert numbers["invalid scores"] == "1 of 6"


def test_a_failed_episode_has_no_reward_and_does_not_lower_the_mean() -> None:
    soup = page((episode("a"), None), (episode("b", reward=None), None))
    numbers = dict(zip(texts(soup, "header dt"), texts(soup, "header dd"), strict=True))
    assert (numbers["episodes"], numbers["mean reward"], numbers["failed"]) == ("2", "1.00", "1")
    assert texts(soup, "summary .reward b") == ["1", "–"]
    assert "search backend is down" in soup.get_text()


def test_hostile_text_is_shown_and_does_nothing() -> None:
    step = Step(text=HOSTILE, start=1, end=3, call=ToolCall(name=HOSTILE), observation=HOSTILE)
    trajectory = episode(HOSTILE, steps=(step,)).model_copy(
        update={
            "task": Task(id=HOSTILE, question=HOSTILE, answers=(HOSTILE,)),
            "answer": HOSTILE,
            "group_id": HOSTILE,
            "reason": HOSTILE,
        }
    )
    critique = Critique(
        trajectory_id=HOSTILE, teacher=HOSTILE, steps=(Score.of(1, HOSTILE),), trajectory=Score.of(1, HOSTILE)
    )
    soup = BeautifulSoup(render_transcripts([(HOSTILE, [(trajectory, critique)])] * 2, HOSTILE), "html.parser")
    assert not soup.select("script, img, b:not(.reward b), pre")
    for selector in (".said", ".question", ".heard .text", ".right", ".verdict .text", "h1", "h2", "title", "nav a"):
        assert texts(soup, selector)[0].strip() == HOSTILE


def test_the_page_fetches_nothing_and_allows_no_script() -> None:
    soup = page((episode(), None))
    assert not soup.select("[src], link, iframe, object, embed, form, base")
    assert all(str(a["href"]).startswith("#") for a in soup.select("[href]"))
    assert "url(" not in str(soup.style)
    policy = soup.select_one("meta[http-equiv=Content-Security-Policy]")
    assert policy is not None
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_white_space_in_a_step_is_kept() -> None:
    text = "\n  first\n\n    second  "
    soup = page((episode(steps=(Step(text=text, start=0, end=1),)), None))
    assert texts(soup, ".said") == [text]


def test_a_refused_call_says_why() -> None:
    refused = Step(text="calc 2+2", start=0, end=2, observation="Error: no such tool", error="no such tool")
    soup = page((episode(steps=(refused,)), None))
    assert texts(soup, ".heard .who") == ["refused →"]
    assert texts(soup, ".heard .text") == ["Error: no such tool"]


def test_sections_stand_in_the_order_given_with_links_to_them() -> None:
    soup = BeautifulSoup(render_transcripts([("step 2", [(episode(), None)]), ("eval", [])], "run"), "html.parser")
    assert texts(soup, "h2") == ["step 2", "eval"]
    assert [a["href"] for a in soup.select("nav a")] == ["#section-1", "#section-2"]
    assert [section["id"] for section in soup.select("section")] == ["section-1", "section-2"]
    assert texts(soup, "section .empty") == ["no episodes"]


def test_a_critique_of_another_trajectory_is_refused() -> None:
    _, critique = judged(episode("a"), Score.of(1), Score.of(2), whole=Score.of(3))
    with pytest.raises(DataError, match="'b' with 2 steps stands beside a critique of 'a' with 2 scores"):
        page((episode("b"), critique))
    with pytest.raises(DataError, match="'a' with 1 steps"):
        page((episode("a", steps=(FIRST,)), critique))
