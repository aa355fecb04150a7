"""The report in a browser: it draws, finds, colours and compares; nothing in a transcript acts, nothing is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Locator, Page, expect, sync_playwright

from ovd_gym.credit import Credit
from ovd_gym.recorder import Recorder
from ovd_gym.records import Critique, Score, Trajectory
from ovd_gym.report.run import report_on

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic", "--no-first-run"),
    *("--disable-component-update", "--disable-sync"),
)
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<a href='javascript:window.hacked = 1'>data:text/html,<script>window.hacked = 1</script></a>\u2028&lt;b&gt;${x}"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]


def probable(digit: int) -> Score:
    probs = tuple(0.91 if i == digit else 0.01 for i in range(10))
    return Score(value=digit, mean=float(digit), probs=probs, digit_mass=0.97, rationale=f"a clear {digit}")


def sections(played: Callable[..., Trajectory], hostile: bool) -> list[tuple[Any, ...]]:
    """Thirty steps of two groups of two: 120 episodes; in the first group of step 3 one is replaced."""
    found: list[tuple[Any, ...]] = [("eval", {"step": 0, "accuracy": 0.5, "low": 0.1, "high": 0.9}, [played("e")], [])]
    for step in range(1, 31):
        members = [
            played(f"s{step}/{g}/{i}", reward=float(i), group_id=f"s{step}/{g}", question=f"Question {step}.{g}")
            for g in range(2)
            for i in range(2)
        ]
        if hostile and step == 2:
            members[0] = played(
                *("s2/0/0", [(HOSTILE, HOSTILE)]), question=HOSTILE, answer=HOSTILE, reward=0.0, group_id="s2/0"
            )
        critiques = [
            Critique(
                trajectory_id=m.id, teacher=HOSTILE, steps=(probable(8 - 7 * (i % 2)),) * len(m.steps), trajectory=s
            )
            for i, m in enumerate(members)
            for s in [Score.invalid("timeout", HOSTILE) if i == 0 else probable(9 if m.reward else 1)]
        ]
        credits = [Credit(trajectory_id=m.id, advantages=(m.reward or -1.0,) * len(m.steps)) for m in members]
        if step == 3:
            taught = played(
                "s3/0/0/taught", [("needle in a haystack", "found")], group_id="s3/0", question="Question 3.0"
            )
            taught = taught.model_copy(
                update={
                    "steps": (taught.steps[0].model_copy(update={"source": "teacher"}),),
                    "logprobs": (0.0,) * len(taught.token_ids),
                }
            )
            members.append(taught)
        row = {"step": step, "reward": step / 30, "score": step / 5, "em": 0.5, HOSTILE: 1.0}
        found.append(("step", row, members, critiques, credits))
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    played: Callable[..., Trajectory],
    run_folder: Callable[..., Recorder],
) -> dict[str, Path]:
    """A page of one run, and one of two."""
    folder = tmp_path_factory.mktemp("reports")
    one, other = (
        run_folder(folder / name, *sections(played, hostile), student={"model": "<b>tiny</b>"}, seed=seed)
        for seed, (name, hostile) in enumerate((("one", True), ("other", False)))
    )
    report_on({"one": one}, folder / "one.html")
    report_on({"one": one, "<i>other</i>": other}, folder / "two.html")
    return {"one": folder / "one.html", "two": folder / "two.html"}


@pytest.fixture
def open_page(browser: Browser, files: dict[str, Path]) -> Iterator[Callable[..., Page]]:
    """Opens a page without a network; at the end there must have been no error and no request but for the file."""
    complaints: list[str] = []
    contexts = []

    def open_(name: str = "one", width: int = 1280, scheme: Any = "light", place: str = "") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if "html" not in request.url else None)
        page.goto(files[name].as_uri() + place)
        expect(page.locator("html[data-ready]")).to_be_attached()
        return page

    yield open_
    for context in contexts:
        assert context.pages[0].evaluate("window.hacked") is None
        context.close()
    assert complaints == []


def press(page: Page, label: str) -> None:
    page.locator(".filter", has_text=label).click()


def listed(page: Page) -> Locator:
    return page.locator(".row")


def test_it_draws_what_was_recorded(open_page: Callable[..., Page]) -> None:
    page = open_page()
    expect(page.locator("h1")).to_have_text("<b>tiny</b> in ovd_gym/Math-v0")
    expect(page.locator("#lead")).to_contain_text("30 of 100 training steps")
    reward = page.get_by_role("img", name="Environment reward")
    expect(reward).to_have_attribute("aria-label", "Environment reward. one, reward: 0.0333 at step 1, 1 at step 30. "
                                     "one, exact match: 0.5 at step 1, 0.5 at step 30.")  # fmt: skip
    reward.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#tip")).to_contain_text("step 2")
    expect(page.locator("#tip")).to_contain_text("0.06667")
    expect(page.locator("#calibration figure")).to_have_count(1)
    expect(page.locator("#calibration td").first).to_have_text("90")
    expect(page.locator(".count")).to_have_text("122 episodes")
    expect(listed(page)).to_have_count(50)


def test_filters_narrow_each_other_and_say_what_is_left(open_page: Callable[..., Page]) -> None:
    page = open_page()
    press(page, "no score")
    expect(page.locator(".count")).to_have_text("30 of 122 episodes")
    expect(page.locator(".filter", has_text="right")).to_be_disabled()
    press(page, "no score")
    press(page, "replaced")
    expect(page.locator(".count")).to_have_text("1 of 122 episodes")
    press(page, "replaced")
    press(page, "demonstration")
    expect(listed(page)).to_have_count(1)
    press(page, "demonstration")
    page.get_by_label("Played in").select_option("step-3")
    expect(page.locator(".count")).to_have_text("5 of 122 episodes")
    page.get_by_label("Played in").select_option("eval")
    expect(listed(page).locator(".about")).to_contain_text(["held out after 0"])


def test_orders_and_pages(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.get_by_label("Order").select_option("highest score first")
    expect(listed(page).first.locator("> .badge")).to_have_text("9")
    page.get_by_label("Order").select_option("lowest score first")
    expect(listed(page).first.locator("> .badge")).to_have_text("1")
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Next").click()
    expect(listed(page)).to_have_count(22)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    expect(listed(page).last.locator("> .badge")).to_have_text("?")


def test_search_reads_every_word_of_every_episode(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.get_by_label("Search").fill("NEEDLE in a hay")
    expect(page.locator(".count")).to_have_text("1 of 122 episodes")
    listed(page).click()
    expect(page.locator(".said")).to_have_text("needle in a haystack")
    page.get_by_label("Search").fill("a clear 8")  # what the teacher said of the first of each group
    expect(page.locator(".count")).to_have_text("60 of 122 episodes")
    page.get_by_label("Search").fill("nowhere")
    expect(listed(page)).to_have_count(0)


def test_an_episode_shows_scores_reasons_and_folded_calls(open_page: Callable[..., Page]) -> None:
    page = open_page(place="#episode-2")  # the second of the first group
    expect(page.locator(".said")).to_have_text(["add: 6 7", "answer: 13"])
    assert page.locator(".step").first.evaluate("e => e.style.getPropertyValue('--u')") == str(1 / 9)
    expect(page.locator(".call summary").first).to_have_text("add13")
    expect(page.locator(".call pre").first).to_be_hidden()
    page.locator(".call summary").first.click()
    expect(page.locator(".call pre").first).to_be_visible()
    badge = page.get_by_role("button", name="Step 1: score 1 of 9")
    badge.focus()
    expect(page.locator("#tip")).to_contain_text("a clear 1")
    expect(page.locator("#tip .bars span")).to_have_count(10)
    page.keyboard.press("Escape")
    expect(page.locator("#tip")).to_be_hidden()
    badge.hover()
    expect(page.locator("#tip")).to_contain_text("97 % on digits")
    expect(page.locator("dd").first).to_have_text("13")


def test_tokens_are_coloured_by_mask_advantage_and_likelihood(open_page: Callable[..., Page]) -> None:
    page = open_page(place="#episode-2")
    page.get_by_label("Tokens by mask").check()
    said = len("add: 6 7") + len("answer: 13")  # a token is a byte
    expect(page.locator(".tokens .sampled")).to_have_count(said)
    expect(page.locator(".tokens .fed")).to_have_count(len("Question 1.0") + len("13") * 2)
    page.get_by_label("by advantage").check()
    expect(page.locator(".tokens .above")).to_have_count(said)
    page.locator(".tokens .above").first.hover()
    expect(page.locator("#tip")).to_contain_text("advantage +1.00")
    expect(page.locator("#tip")).to_contain_text("log-probability -0.25")
    page.get_by_label("by likelihood").check()
    assert page.locator(".tokens .rare").first.evaluate("e => e.style.getPropertyValue('--w')") == "0.05"
    page.get_by_label("Search").fill("needle")
    expect(listed(page)).to_have_count(1)
    listed(page).click()
    page.get_by_label("Tokens by mask").check()
    expect(page.locator(".tokens .taught")).to_have_count(len("needle in a haystack"))


def test_a_group_stands_side_by_side(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.get_by_label("Played in").select_option("step-3")
    listed(page).first.click()
    page.get_by_role("button", name="Group of 3 side by side").click()
    expect(page.locator(".shown .episode")).to_have_count(3)
    expect(page.locator(".shown .chip.taught")).to_have_count(1)
    tops = {box["y"] for box in map(Locator.bounding_box, page.locator(".shown .episode").all()) if box}
    assert len(tops) == 1
    page.get_by_role("button", name="One episode").click()
    expect(page.locator(".shown .episode")).to_have_count(1)


def test_hostile_text_is_shown_and_does_nothing(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.get_by_label("Search").fill("window.hacked")
    page.get_by_label("Played in").select_option("step-2")
    listed(page).first.click()
    expect(page.locator("article h3")).to_have_text(HOSTILE, use_inner_text=False)
    expect(page.locator(".said")).to_have_text(HOSTILE)
    page.locator(".call summary").click()
    page.locator("article > header .badge").hover()
    expect(page.locator("#tip")).to_contain_text("timeout")
    page.get_by_label("Tokens by mask").check()
    expect(page.locator(".tokens")).to_be_visible()
    assert page.locator("article img, article a, #tip img, main script, #curves img").count() == 0


def test_the_policy_stops_markup_scripts_and_requests(browser: Browser, files: dict[str, Path]) -> None:
    """What the page's own scripts never do could not be done by others either."""
    page = browser.new_page()
    page.goto(files["one"].as_uri())
    with pytest.raises(Error, match="TrustedHTML"):
        page.evaluate("document.body.innerHTML = '<b>hello</b>'")
    script = "document.body.append(Object.assign(document.createElement('script'), {src: 'data:,window.hacked=1'}))"
    with pytest.raises(Error, match="TrustedScriptURL"):
        page.evaluate(script)
    with pytest.raises(Error, match="Failed to fetch"):
        page.evaluate("fetch('data:text/plain,hello')")
    page.close()


def test_runs_are_laid_over_each_other_and_switched_off(open_page: Callable[..., Page]) -> None:
    page = open_page("two")
    lines = page.locator("figure", has_text="Environment reward").locator("polyline.line")
    expect(lines).to_have_count(4)
    page.get_by_role("checkbox", name="<i>other</i>").uncheck()
    expect(lines).to_have_count(2)
    page.get_by_label("Run", exact=True).select_option("<i>other</i>")
    expect(page.locator(".count")).to_have_text("122 of 244 episodes")


def test_light_and_dark_follow_the_system_and_the_switch(open_page: Callable[..., Page]) -> None:
    def paper(page: Page) -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    light, dark = open_page(), open_page(scheme="dark")
    assert paper(light) != paper(dark)
    dark.get_by_label("Light").check()
    assert paper(light) == paper(dark)


def test_a_narrow_page_shows_the_list_or_an_episode(open_page: Callable[..., Page]) -> None:
    page = open_page(width=420)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    expect(page.locator(".reader")).to_be_hidden()
    listed(page).nth(1).click()
    expect(page.locator(".list")).to_be_hidden()
    page.get_by_role("button", name="List").click()
    expect(listed(page).nth(1)).to_be_visible()
    listed(page).nth(1).focus()
    page.keyboard.press("ArrowDown")
    expect(page.locator("article h3")).to_have_text("Question 1.0")
