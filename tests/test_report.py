"""What the report says of runs, and the file that holds it: numbers, episodes, limits, and no way out of the page."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from ovd_gym.cli import app
from ovd_gym.credit import Credit
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.recorder import Recorder
from ovd_gym.records import Critique, Score, Trajectory
from ovd_gym.report.calibration import reliability
from ovd_gym.report.charts import charts_of
from ovd_gym.report.curve import write_curve
from ovd_gym.report.episodes import FLAGS, Episode, Vocabulary, body, flags, paired, row, spread
from ovd_gym.report.page import pack, render_page
from ovd_gym.report.run import report_on
from ovd_gym.statistics import wilson_interval

Played = Callable[..., Trajectory]
RunFolder = Callable[..., Recorder]
ASSETS = files("ovd_gym.report") / "assets"
HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}\u2028<!--\"'&lt;"


def judged(trajectory: Trajectory, whole: Score, *steps: Score) -> Critique:
    return Critique(trajectory_id=trajectory.id, teacher="Rules", steps=steps or (whole,) * 2, trajectory=whole)


def held(episode: Episode) -> set[str]:
    return {name for (name, _), on in zip(FLAGS, flags(episode), strict=True) if on}


def unpack(text: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(text)))


def blocks(page: Path) -> dict[str, Any]:
    """Everything that a page holds, by the name of its block."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    return {str(block["id"])[6:]: unpack(block.get_text()) for block in soup.select("script[id]")}


# Numbers ---------------------------------------------------------------------------------------------------


def test_charts_hold_the_numbers_of_every_run_and_leave_out_what_is_none() -> None:
    first = {
        "metrics": [{"step": 1, "reward": 0.5, "kl": None}, {"step": 2, "reward": float("nan")}],
        "evaluations": [],
    }
    second = {
        "metrics": [],
        "evaluations": [{"step": 0, "accuracy": 0.25, "low": 0.1, "high": 0.5, "episodes": 8}],
    }
    charts = {chart["title"]: chart for chart in charts_of([first, second])}  # type: ignore[list-item]
    assert list(charts) == ["Held-out accuracy", "Environment reward"]
    assert charts["Environment reward"]["lines"] == [
        {"label": "reward", "runs": [{"x": [1.0], "y": [0.5], "low": [], "high": []}, None]}
    ]
    (accuracy,) = charts["Held-out accuracy"]["lines"]
    assert accuracy["runs"] == [None, {"x": [0.0], "y": [0.25], "low": [0.1], "high": [0.5]}]


def test_a_metric_that_no_chart_names_is_drawn_by_itself() -> None:
    rows = {"metrics": [{"step": 1, "my_own": 3.0}], "evaluations": [{"step": 1, "my_own": 4.0, "note": "text"}]}
    (chart,) = charts_of([rows])  # type: ignore[list-item]
    assert (chart["group"], chart["title"]) == ("Everything else", "my own")
    assert [(line["label"], line["runs"][0]["y"]) for line in chart["lines"]] == [
        ("training", [3.0]),
        ("held out", [4.0]),
    ]


def test_scores_are_scaled_to_one() -> None:
    (chart,) = charts_of([{"metrics": [{"step": 1, "score": 4.5}], "evaluations": []}])
    assert chart["lines"][0]["runs"][0]["y"] == [0.5]


def test_reliability_compares_promise_and_outcome_digit_by_digit() -> None:
    pairs = [
        (Score.of(9), 1.0),
        (Score.of(8.6), 1.0),
        (Score.of(9), 0.0),
        (Score.of(0), 0.0),
        (Score.invalid("timeout"), 1.0),
    ]
    found = reliability(pairs)
    assert found is not None
    low, high = wilson_interval(2, 3)
    assert found["bins"] == [
        {"digit": 0, "promise": 0.0, "share": 0.0, "low": 0.0, "high": wilson_interval(0, 1)[1], "count": 1},
        {"digit": 9, "promise": pytest.approx(26.6 / 27), "share": 2 / 3, "low": low, "high": high, "count": 3},
    ]
    assert (found["count"], found["invalid"]) == (4, 1)
    # Right: 9 and 8.6; wrong: 9 and 0. Of four pairs, two are won, one is lost, one is tied.
    assert found["auroc"] == 0.625
    assert found["ece"] == pytest.approx(abs((1 - 1) + (8.6 / 9 - 1) + (1 - 0)) / 4)
    assert reliability([(Score.invalid("error"), 1.0)]) is None


# Episodes --------------------------------------------------------------------------------------------------


def test_flags_say_what_is_worth_a_look(played: Played) -> None:
    right = played()
    assert held(Episode(right, judged(right, Score.of(9)))) == {"right"}
    assert held(Episode(right, judged(right, Score.of(4)))) == {"right", "disagrees"}
    wrong = played(reward=0.5, status="truncated", reason="turns")
    assert held(Episode(wrong, judged(wrong, Score.of(8), Score.invalid("timeout"), Score.of(1)))) == {
        *("wrong", "truncated", "no score")
    }
    assert held(Episode(played(reward=None))) == {"failed"}
    refused = [
        right.steps[0].model_copy(update={"error": "no such tool", "source": "teacher", "feedback": "look again"})
    ]
    marked = right.model_copy(update={"steps": (*refused, right.steps[1])})
    assert held(Episode(marked, replaced=True)) == {"right", "refused call", "replaced", "demonstration", "helped"}


def test_a_demonstration_is_found_by_its_name(played: Played) -> None:
    old, new, other = played("s/0"), played("s/0/taught"), played("s/1")
    credit = Credit(trajectory_id="s/1", advantages=(0.5, -0.5))
    found = paired([(old, judged(old, Score.of(1))), (other, None), (new, None)], {"s/1": credit})
    assert [episode.replaced for episode in found] == [True, False, False]
    assert [episode.credit for episode in found] == [None, credit, None]


def test_a_row_is_short_and_a_body_is_whole(played: Played) -> None:
    trajectory = played(question="?" * 500)
    critique = judged(trajectory, Score.of(7.25, "fine"), Score.invalid("refused"), Score.of(2))
    episode = Episode(trajectory, critique, Credit(trajectory_id="a", advantages=(0.123456, -2.0)))
    assert row(episode, 3) == ["?" * 160, 3, 1.0, 7.25, "?2", 0b100001]
    assert row(Episode(trajectory), 0)[3:5] == [None, "··"]
    whole = body(episode, None)
    assert whole["question"] == "?" * 500
    assert [step["credit"] for step in whole["steps"]] == [0.1235, -2.0]
    assert whole["steps"][0]["score"] == {
        **{"value": None, "mean": None, "status": "refused"},
        **{"probs": None, "mass": None, "rationale": ""},
    }
    assert whole["logprobs"] == [25] * trajectory.num_sampled
    assert whole["tokens"] == trajectory.token_ids
    rewards = Credit(trajectory_id="a", advantages=(0.0, 0.0), rewards=(0.25, 1.0))
    assert [step["credit"] for step in body(Episode(trajectory, None, rewards), None)["steps"]] == [0.25, 1.0]


def test_a_critique_or_credit_of_another_trajectory_is_refused(played: Played) -> None:
    with pytest.raises(DataError, match="'b' with 2 steps stands beside a critique of 'a' with 2"):
        Episode(played("b"), judged(played("a"), Score.of(1)))
    with pytest.raises(DataError, match="beside a credit of 'a' with 1"):
        Episode(played("a"), None, Credit(trajectory_id="a", advantages=(1.0,)))


@pytest.fixture
def vocabulary(tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
    return Vocabulary(Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))


def test_tokens_read_as_what_they_add(tokenizer: PreTrainedTokenizerFast, vocabulary: Vocabulary) -> None:
    ids = tokenizer(" x\n<|im_end|>é").input_ids
    assert [vocabulary.text(i) for i in ids] == [" ", "x", "\n", "<|im_end|>", "\ufffd", "\ufffd"]
    assert vocabulary.texts == {i: vocabulary.text(i) for i in ids}


def test_a_text_that_the_tokens_hold_is_kept_as_its_place(played: Played, vocabulary: Vocabulary) -> None:
    question, said = "What?", "search: the tallest tower"
    (step,) = body(Episode(played(question=question, steps=[(said, "a longer answer")])), vocabulary)["steps"]
    assert step["text"] == [len(question), len(question) + len(said)]
    assert step["observation"] == [len(question) + len(said), len(question) + len(said) + 15]
    # A character of two tokens; one that a browser counts twice; not worth it.
    for heard in ("the café on the corner", "a smile \U0001f600 in the text", "short"):
        (step,) = body(Episode(played(steps=[(said, heard)])), vocabulary)["steps"]
        assert step["observation"] == heard


@pytest.mark.parametrize(
    ("sizes", "limit", "chosen"),
    [([], 9, []), ([5], 1, [0]), ([5, 5, 5], 15, [0, 1, 2]), ([5, 5, 5], 14, [0, 2]), ([5, 5, 5], 9, [2])],
)
def test_sections_are_spread_whole(sizes: list[int], limit: int, chosen: list[int]) -> None:
    assert spread(sizes, limit) == chosen


# The file --------------------------------------------------------------------------------------------------


@pytest.fixture
def recorder(tmp_path: Path, run_folder: RunFolder, played: Played) -> Recorder:
    """Two evaluations of one episode, four steps of a group of two."""
    sections: list[tuple[Any, ...]] = []
    for step in range(5):
        members = [played(f"step-{step}/{i}", reward=float(i), group_id=f"step-{step}") for i in range(2)]
        critiques = [judged(member, Score.of(4 * i)) for i, member in enumerate(members)]
        credits = [Credit(trajectory_id=m.id, advantages=(m.reward or -1.0,) * 2) for m in members]
        if step:
            sections.append(("step", {"step": step, "reward": 0.5}, members, critiques, credits))
        if step in (0, 4):
            row = {"step": step, "accuracy": step / 4, "low": 0.0, "high": 1.0, "episodes": 1}
            sections.append(("eval", row, [played(f"eval-{step}", group_id="e")], []))
    return run_folder(tmp_path / "run", *sections)


def test_a_page_holds_everything_in_the_order_in_which_it_happened(recorder: Recorder, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report_on({"mine": recorder}, tmp_path / "page.html", on_section=lambda *count: told.append(count))
    found = blocks(tmp_path / "page.html")
    sections = [(section["kind"], section["step"], section["count"]) for section in found["index"]["sections"]]
    assert sections == [("eval", 0, 1), *(("step", n, 2) for n in range(1, 5)), ("eval", 4, 1)]
    assert [body["id"] for body in found["episodes-0"]][:3] == ["eval-0", "step-1/0", "step-1/1"]
    assert [row[0] for row in found["index"]["rows"]] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert [step["credit"] for step in found["episodes-0"][1]["steps"]] == [-1.0, -1.0]
    (run,) = found["overview"]["runs"]
    assert (run["name"], run["student"], run["credit"]) == ("mine", "tiny", "advantage")
    assert [row["accuracy"] for row in run["accuracy"]] == [0.0, 1.0]
    assert run["calibration"]["step"]["count"] == 8
    assert run["calibration"]["eval"] is None
    assert "model: tiny" in run["config"]
    texts = found["tokens-0"]
    assert "".join(texts[str(i)] for i in found["episodes-0"][0]["tokens"]).startswith("What is 6 + 7?add: 6 7")
    assert told[-1] == (6, 6)


def test_a_limit_keeps_whole_steps_with_both_ends(recorder: Recorder, tmp_path: Path) -> None:
    report_on({"run": recorder}, tmp_path / "page.html", limit=6)
    sections = blocks(tmp_path / "page.html")["index"]["sections"]
    assert [(s["kind"], s["step"]) for s in sections] == [("eval", 0), ("step", 1), ("step", 4), ("eval", 4)]


def test_episodes_that_were_deleted_are_left_out_and_curves_stay(recorder: Recorder, tmp_path: Path) -> None:
    (recorder.path / "trajectories" / "step-00002.jsonl").unlink()
    report_on({"run": recorder}, tmp_path / "page.html")
    found = blocks(tmp_path / "page.html")
    assert 2 not in [s["step"] for s in found["index"]["sections"]]
    reward = next(chart for chart in found["overview"]["charts"] if chart["title"] == "Environment reward")
    assert reward["lines"][0]["runs"][0]["x"] == [1, 2, 3, 4]
    for file in (recorder.path / "trajectories").iterdir():
        file.unlink()
    report_on({"run": recorder}, tmp_path / "page.html")
    assert blocks(tmp_path / "page.html")["index"] == {"sections": [], "rows": []}


def test_a_run_without_a_tokenizer_has_no_tokens(recorder: Recorder, tmp_path: Path) -> None:
    file = recorder.path / "tokenizer" / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json: not a tokenizer"):
        report_on({"run": recorder}, tmp_path / "page.html")
    file.unlink()
    report_on({"run": recorder}, tmp_path / "page.html")
    assert blocks(tmp_path / "page.html")["tokens-0"] is None


def test_a_run_with_nothing_in_it_is_an_error(tmp_path: Path, run_folder: RunFolder) -> None:
    with pytest.raises(DataError, match="no finished training step or evaluation in empty"):
        report_on({"empty": run_folder(tmp_path / "run")}, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_hostile_text_is_nowhere_in_the_markup(tmp_path: Path, run_folder: RunFolder, played: Played) -> None:
    trajectory = played(
        HOSTILE, [(HOSTILE, HOSTILE)], question=HOSTILE, answer=HOSTILE, reason=HOSTILE, group_id=HOSTILE
    )
    critique = judged(trajectory, Score.of(1, HOSTILE), Score.of(1, HOSTILE))
    row = {"step": 1, HOSTILE: 1.0}
    run = run_folder(tmp_path / "run", ("step", row, [trajectory], [critique]), student={"model": HOSTILE})
    report_on({HOSTILE: run}, tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "alert(1)</script>" not in text
    assert "<img" not in text
    soup = BeautifulSoup(text, "html.parser")
    assert soup.h1 is not None
    assert soup.h1.get_text() == f"{HOSTILE} in ovd_gym/Math-v0"
    assert blocks(tmp_path / "page.html")["episodes-0"][0]["question"] == HOSTILE


def test_the_policy_allows_the_pages_own_script_and_style_and_nothing_else() -> None:
    soup = BeautifulSoup(render_page("run", {"overview": pack({})}, {}), "html.parser")
    policy = soup.select_one("meta[http-equiv=Content-Security-Policy]")
    assert policy is not None
    rules = dict(rule.split(" ", 1) for rule in str(policy["content"]).split("; "))
    (script,) = soup.select("script:not([type])")
    assert soup.style is not None
    for name, text in (("script-src", script.string), ("style-src", soup.style.string)):
        digest = base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{digest}'"
    assert rules == {
        **{"default-src": "'none'", "base-uri": "'none'", "form-action": "'none'"},
        **{"require-trusted-types-for": "'script'", "trusted-types": "'none'"},
    }
    assert not soup.select("[src], [style], [onclick], link, iframe, object, embed, form, base")
    assert all(str(a["href"]).startswith("#") for a in soup.select("[href]"))


def test_scripts_and_style_make_no_request_and_no_markup() -> None:
    for asset in ASSETS.iterdir():
        text = asset.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        requests = re.findall(r"https?:|url\(|@import|fetch\(|XMLHttpRequest|WebSocket|import\(", text)
        markup = re.findall(r"(?:inner|outer)HTML|insertAdjacent|document\.write|eval\(|<!--|</", text)
        assert not requests + markup, asset.name


def test_a_link_in_a_run_folder_leads_nowhere(recorder: Recorder, tmp_path: Path) -> None:
    """Run folders come from elsewhere: a link in one must not make the report overwrite what it points to."""
    precious = tmp_path / "precious"
    precious.write_text("untouched")
    for name in ("report.html", ".report.html.new"):
        (recorder.path / name).symlink_to(precious)
    report_on({"run": recorder}, recorder.path / "report.html")
    assert precious.read_text() == "untouched"
    assert blocks(recorder.path / "report.html")["overview"]


@pytest.mark.parametrize("step", ["../../../secret", -1, None, [1]])
def test_a_step_is_a_number_before_it_is_part_of_a_path(recorder: Recorder, tmp_path: Path, step: object) -> None:
    with (recorder.path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")
    with pytest.raises(DataError, match=r"metrics.jsonl:5: expected an object whose step is a number"):
        report_on({"run": recorder}, tmp_path / "page.html")


DAMAGED_ROWS = {
    "deep nesting": '{"step": 1, "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "no UTF-8": '{"step": 1, "x": "\udcff"}',
    "a step too long for a file's name": '{"step": 1' + "0" * 300 + "}",
    "what acts on a terminal": '"\x9b2J\u202e"',
}


@pytest.mark.parametrize("row", DAMAGED_ROWS.values(), ids=DAMAGED_ROWS)
def test_a_damaged_row_is_named_in_one_line(recorder: Recorder, tmp_path: Path, row: str) -> None:
    with (recorder.path / "metrics.jsonl").open("a", encoding="utf-8", errors="surrogateescape") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=r"metrics.jsonl:5: ") as caught:
        report_on({"run": recorder}, tmp_path / "page.html")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["[1", "[1]", '{"torch": 2}', "[" * 100_000])
def test_damaged_versions_are_named(recorder: Recorder, tmp_path: Path, text: str) -> None:
    (recorder.path / "versions.json").write_text(text)
    with pytest.raises(DataError, match=r"versions.json: "):
        report_on({"run": recorder}, tmp_path / "page.html")


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from([10**18, 10**400]) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.sampled_from(["reward", "accuracy", "low", "high", "episodes", "score", "x"]), JSON)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["metrics", "evaluations"]), fields=FIELDS)
@example(name="evaluations", fields={"accuracy": 0.5, "low": math.nan, "high": [math.inf], "episodes": "x"})
def test_any_row_is_drawn_or_left_out(recorder: Recorder, tmp_path: Path, name: str, fields: dict[str, Any]) -> None:
    file = recorder.path / f"{name}.jsonl"
    before = file.read_bytes()
    file.write_bytes(before + json.dumps({"step": 4, **fields}).encode() + b"\n")
    report_on({"run": recorder}, tmp_path / "page.html")
    write_curve(tmp_path / "curve.png", recorder.metrics(), recorder.evaluations(), "any")
    file.write_bytes(before)


# The command -----------------------------------------------------------------------------------------------


def report(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["report", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_prints_where_it_wrote(recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert report("run").strip() == "run/report.html"
    assert report("run", "--out", "a.html", "--episodes", "2").strip() == "a.html"
    assert len(blocks(tmp_path / "a.html")["index"]["rows"]) == 3  # one evaluation and one step are always shown
    assert "ovd-gym report runs/" in report("--help")


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path, run_folder: RunFolder, played: Played) -> None:
    step: tuple[Any, ...] = ("step", {"step": 1, "reward": 1.0}, [played()], [])
    for parent in ("x", "y"):
        run_folder(tmp_path / parent / "run", step)
    out = tmp_path / "both.html"
    report(str(tmp_path / "x/run"), str(tmp_path / "y/run"), "--out", str(out))
    found = blocks(out)
    assert [run["name"] for run in found["overview"]["runs"]] == [str(tmp_path / "x/run"), str(tmp_path / "y/run")]
    assert [section["run"] for section in found["index"]["sections"]] == [0, 1]


def test_wrong_arguments_are_one_line(recorder: Recorder, tmp_path: Path) -> None:
    path = str(recorder.path)
    for arguments, error, message in (
        ([path, path], ConfigError, "is given twice"),
        ([str(tmp_path)], ConfigError, "not a run folder"),
        ([path, "--out", str(tmp_path / "no" / "page.html")], DataError, "cannot write .*page.html: No such file"),
    ):
        with pytest.raises(error, match=message):
            CliRunner().invoke(app, ["report", *arguments], catch_exceptions=False)
    assert not list(tmp_path.glob("**/*.new"))
    report(code=2)
