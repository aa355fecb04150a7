"""``ovd-gym critique``: a table, a page, scores that are kept, failures that are not hidden."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ovd_gym.cli import app
from ovd_gym.critique import CritiqueFolder, judge, score_attempts
from ovd_gym.errors import ConfigError, DataError, OvdGymError, TeacherError
from ovd_gym.records import Critique, Score, Step, Task, Trajectory, load_jsonl, save_jsonl
from ovd_gym.report.critique import Case, CaseStep, Chapter, Page, Table, render_page
from ovd_gym.teachers.base import StepText, Teacher, View
from ovd_gym.teachers.calibration import Calibration
from ovd_gym.teachers.labelled import Attempt

CRITICS = '''
"""Teachers of this test; every view they are asked about is written down."""
from pathlib import Path
from ovd_gym import Score, Teacher
from ovd_gym.errors import TeacherError

class Reader(Teacher):
    """Reads its score off the last step; raises what it is told to raise."""
    name = "reader"

    def __init__(self, shift=0, privileged=False, stop_at=None):
        self.shift, self.privileged, self.stop_at = shift, privileged, stop_at
        if shift:
            self.name = f"reader+{shift}"

    def score(self, view):
        with Path("asked.txt").open("a") as log:
            print(view.kind, view.question, view.steps[-1].text, view.gold, file=log)
        if view.question == self.stop_at:
            raise KeyboardInterrupt
        if view.steps[-1].text == "late":
            raise TeacherError("too [red]slow[/red]\\x1b[31m", status="timeout")
        return Score.of(min(9, int(view.steps[-1].text) + self.shift))
'''
ROWS = [("9", True), ("8", True), ("2", False), ("8", False), ("1", False), ("5", True)]


def attempt(n: int, score: str, right: bool) -> Attempt:
    steps = (StepText(text="7", observation=""), StepText(text=score, observation="seen"))
    return Attempt(
        id=f"a{n}",
        question=f"q{n}",
        steps=steps,
        answer="42",
        gold=("42",),
        group=f"g{n}",
        correct=right,
        first_error=-1,
    )


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of six labelled attempts, in the working folder, beside a module with a teacher."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("critics_of_this_test.py").write_text(CRITICS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "critics_of_this_test", raising=False)
    save_jsonl("data.jsonl", (attempt(n, *row) for n, row in enumerate(ROWS)))
    return Path("data.jsonl")


@pytest.fixture
def reader(data: Path) -> str:
    """The name of that teacher."""
    return "critics_of_this_test:Reader"


def call(*arguments: str, code: int = 0) -> Result:
    critic = CliRunner().invoke(app, ["critique", *arguments], catch_exceptions=False)
    assert critic.exit_code == code, critic.output
    return critic


def asked() -> list[str]:
    return Path("asked.txt").read_text().splitlines() if Path("asked.txt").exists() else []


def stored(folder: str = "critique") -> list[Critique]:
    (file,) = Path(folder, "critiques").glob("*.jsonl")
    return list(load_jsonl(file, Critique))


def test_a_table_a_page_and_the_scores(reader: str) -> None:
    output = call("data.jsonl", "--teacher", reader).output
    # Right: 9, 8, 5; wrong: 2, 8, 1. Of nine pairs 9 and 8 win five and tie once, 5 wins two.
    assert re.search(r"AUROC\s+│\s+0\.833 ", output)
    assert re.search(r"ties\s+│\s+11\.1 %", output)
    assert "control: fewer steps" in output
    assert output.splitlines()[-2:] == ["critique/measurements.json", "critique/critique.html"]
    numbers = json.loads(Path("critique/measurements.json").read_text())
    assert numbers["measurements"]["reader"]["auroc"]["value"] == 7.5 / 9
    assert [critique.trajectory.value for critique in stored()] == [9, 8, 2, 8, 1, 5]
    assert [score.value for score in stored()[0].steps] == [7, 9]


def test_nothing_is_asked_twice(reader: str) -> None:
    call("data.jsonl", "--teacher", reader, "--limit", "4")
    assert len(asked()) == 4 * 3
    first = call("data.jsonl", "--teacher", reader).output
    assert set(Counter(asked()).values()) == {1}  # steps, questions and kinds tell all views apart
    assert call("data.jsonl", "--teacher", reader).output == first
    assert len(asked()) == 6 * 3


def test_ctrl_c_keeps_what_was_scored(reader: str) -> None:
    stopped = call("data.jsonl", "--teacher", f"{reader} stop_at=q3", "--batch", "2", code=130)
    assert "stopped: reader has scored 2 of 6 attempts; the same command goes on" in stopped.output
    assert [critique.trajectory_id for critique in stored()] == ["a0", "a1"]
    call("data.jsonl", "--teacher", reader, "--batch", "2")
    assert [critique.trajectory_id for critique in stored()] == [f"a{n}" for n in range(6)]
    assert sum("q0" in line for line in asked()) == 3


def test_a_line_cut_short_by_a_kill_is_asked_for_again(reader: str) -> None:
    call("data.jsonl", "--teacher", reader)
    (file,) = Path("critique/critiques").glob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-40])
    call("data.jsonl", "--teacher", reader)
    assert [critique.trajectory_id for critique in stored()] == [f"a{n}" for n in range(6)]
    assert len(asked()) == 7 * 3


def test_two_teachers_are_compared(reader: str) -> None:
    output = call("data.jsonl", "--teacher", reader, "--teacher", f"{reader} shift=3").output
    assert re.search(r"reader / reader\+3, attempts\s+│\s+6 │", output)
    assert "Where the teachers differ most: scores of reader, reader+3\n" in output
    assert re.search(r"2\.0 5\.0  wrong  a2  q2", output)
    (found,) = json.loads(Path("critique/measurements.json").read_text())["comparisons"]
    # 9 8 2 8 1 5 against 9 9 5 9 4 8
    assert (found["trajectories"]["exact"], found["trajectories"]["within_1"]) == (1 / 6, 3 / 6)


def test_a_teacher_asked_again_agrees_with_itself(reader: str) -> None:
    output = call("data.jsonl", "--teacher", reader, "--twice").output
    assert re.search(r"reader asked again, attempts\s+│\s+6 │\s+1\.000 │\s+100\.0 %", output)
    assert len(asked()) == 2 * 6 * 3
    assert "reader (again)" not in json.loads(Path("critique/measurements.json").read_text())["measurements"]


def test_a_missing_score_is_shown_and_can_be_asked_for_again(reader: str) -> None:
    save_jsonl("late.jsonl", [attempt(0, "late", True), attempt(1, "4", False), attempt(2, "6", True)])
    output = call("late.jsonl", "--teacher", reader).output
    assert re.search(r"no number\s+│\s+22\.2 % timeout", output)
    assert "timeout" in Path("critique/critique.html").read_text()
    before = len(asked())
    call("late.jsonl", "--teacher", reader)
    assert len(asked()) == before
    call("late.jsonl", "--teacher", reader, "--retry")
    assert {line.split()[1] for line in asked()[before:]} == {"q0"}


def test_a_teacher_without_any_score_is_an_error(reader: str) -> None:
    rows = [attempt(n, "late", True).model_copy(update={"steps": attempt(n, "late", True).steps[1:]}) for n in range(2)]
    save_jsonl("late.jsonl", rows)
    with pytest.raises(TeacherError, match=r"reader gave no score at all: timeout, too \[red\]slow\[/red\] \[31m"):
        call("late.jsonl", "--teacher", reader)
    assert len(stored()) == 2


def test_gold_answers_are_shown_when_asked_for_and_only_then(reader: str) -> None:
    call("data.jsonl", "--teacher", reader)
    assert all(line.endswith("None") for line in asked())
    call("data.jsonl", "--teacher", reader, "--privileged", "--out", "told")
    assert sum(line.endswith("('42',)") for line in asked()) == 6 * 3
    assert all(critique.privileged for critique in stored("told"))
    with pytest.raises(ConfigError, match="unknown option of teacher 'math-rules': 'privileged'"):
        call("data.jsonl", "--teacher", "math-rules", "--privileged")


def test_a_calibration_is_made_and_used(reader: str) -> None:
    output = call("data.jsonl", "--teacher", reader, "--calibrate", "reader.json").output
    assert output.splitlines()[-1] == "reader.json"
    curve = Calibration.load("reader.json").trajectory
    assert curve is not None
    assert curve.count == 6
    calibrated = f"calibrated teacher={reader} calibration=reader.json"
    call("data.jsonl", "--teacher", calibrated, "--out", "calibrated")
    means = [critique.trajectory.mean for critique in stored("calibrated")]
    assert means == pytest.approx([9, 6, 0, 6, 0, 6])
    with pytest.raises(ConfigError, match="--calibrate is for one teacher, got 2"):
        call("data.jsonl", "--teacher", reader, "--teacher", "math-rules", "--calibrate", "x.json")


def episode(n: int) -> Trajectory:
    return Trajectory(
        id=f"e{n}",
        group_id="g",
        task=Task(id="t", question=f"q{n}", answers=("42",)),
        steps=(Step(text=str(n), start=0, end=1),),
        token_ids=(1,),
        logprobs=(-0.5,),
        reward=float(n % 2),
        answer="42",
        status="terminated",
    )


def test_a_run_is_judged_again_beside_its_own_critiques(reader: str) -> None:
    for folder in ("trajectories", "critiques"):
        Path("run", folder).mkdir(parents=True)
    save_jsonl("run/trajectories/step-00001.jsonl", map(episode, range(4)))
    own = [
        Critique(trajectory_id=f"e{n}", teacher="own", steps=(Score.of(n),), trajectory=Score.of(8 - n))
        for n in range(3)
    ]
    save_jsonl("run/critiques/step-00001.jsonl", own)
    output = call("run", "--teacher", reader).output
    assert re.search(r"attempts\s+│\s+4 │\s+3 │\s+4 │", output)
    assert re.search(r"reader / own \(in the run\), attempts\s+│\s+3 │\s+-1\.000 │", output)
    assert re.search(r"reader / own \(in the run\), steps\s+│\s+3 │\s+1\.000 │", output)


@pytest.mark.parametrize(
    ("arguments", "kind", "problem"),
    [
        (["data.jsonl", "--teacher", "math-rulez"], ConfigError, "did you mean 'math-rules'"),
        (
            ["data.jsonl", "--teacher", "math-rules depth=3"],
            ConfigError,
            "unknown option of teacher 'math-rules': 'depth'",
        ),
        (["data.jsonl", "--teacher", "math-rules 'x"], ConfigError, "expected a name and key=value options"),
        (["data.jsonl", "--teacher", ""], ConfigError, "expected a name and key=value options"),
        (["data.jsonl", "--teacher", "math-rules", "--options", "x"], ConfigError, "expected key=value"),
        (["data.jsonl", "--teacher", "math-rules", "--teacher", "math-rules"], ConfigError, "are the same"),
        (["data.jsonl", "data.jsonl", "--teacher", "math-rules"], DataError, "two attempts have the id 'a0'"),
        (["none.jsonl", "--teacher", "math-rules"], DataError, "cannot be read"),
        (["data.jsonl", "--source", "x", "--teacher", "math-rules"], DataError, "its sources: "),
        (["data.jsonl", "--teacher", "math-rules", "--out", "data.jsonl"], DataError, "cannot write to data.jsonl"),
    ],
)
def test_errors_are_explained(data: Path, arguments: list[str], kind: type[OvdGymError], problem: str) -> None:
    with pytest.raises(kind, match=re.escape(problem)):
        call(*arguments)


def test_a_folder_with_scores_of_something_else_is_refused(reader: str) -> None:
    call("data.jsonl", "--teacher", reader)
    save_jsonl("other.jsonl", [attempt(0, "3", True)])
    with pytest.raises(
        DataError, match="critique holds scores of another attempt with the id 'a0': choose another --out"
    ):
        call("other.jsonl", "--teacher", reader)


# A comparing teacher ---------------------------------------------------------------------------------------


class Comparing(Teacher):
    """Scores by the number of trajectories it sees at once."""

    relative = True

    def score(self, view: View) -> Score:
        raise AssertionError("asked one by one")

    def score_batch(self, views: list[View]) -> list[Score]:  # type: ignore[override]
        return [Score.of(sum(view.kind == "trajectory" for view in views))] * len(views)


def test_a_group_is_never_torn(tmp_path: Path) -> None:
    attempts = [attempt(n, "5", True).model_copy(update={"group": f"g{n % 2}"}) for n in range(6)]
    folder = CritiqueFolder(tmp_path, attempts)
    judge(Comparing(), attempts[:4], folder, batch=1)
    judged = judge(Comparing(), attempts, folder, batch=1)
    assert [critique.trajectory.value for critique in judged.critiques.values()] == [3] * 6
    assert judged.cost is not None
    assert judged.cost.attempts == 4 + 6


def test_critiques_of_attempts_line_up() -> None:
    (critique,) = score_attempts(Comparing(), [attempt(0, "5", True)])
    assert (critique.trajectory_id, critique.teacher, len(critique.steps)) == ("a0", "Comparing", 2)


# The page --------------------------------------------------------------------------------------------------

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="x">"\'{{ 7*7 }}\u202e\ud800&lt;'


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_hostile_text_is_inert_in_the_page() -> None:
    bad = Score.invalid("malformed", HOSTILE.replace("\ud800", ""))
    step = CaseStep(HOSTILE, HOSTILE, False, [Score.of(3, HOSTILE.replace("\ud800", "")), bad])
    case = Case(HOSTILE, HOSTILE, HOSTILE, [HOSTILE], True, HOSTILE, [step], [bad, Score.of(9)])
    table = Table(HOSTILE, [HOSTILE, HOSTILE], [[HOSTILE, HOSTILE]], {HOSTILE: HOSTILE})
    html = render_page(Page(HOSTILE, [HOSTILE, HOSTILE], [table], [], [Chapter(HOSTILE, HOSTILE, [case])]))
    parser = Tags()
    parser.feed(html)
    assert not {tag for tag, _ in parser.tags} & {"script", "img", "a", "link", "iframe", "form", "svg"}
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in parser.tags for name in attrs)
    assert "49" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert "default-src 'none'" in html
    assert html.count("alert(1)&lt;/script&gt;") > 5


def test_hostile_text_is_inert_in_the_terminal_and_in_the_file(reader: str) -> None:
    texts = {"question": "[red]q\x1b]0;owned\x07\nAUROC 1.000", "id": "x\x1b[2J"}
    save_jsonl("bad.jsonl", [attempt(0, "1", True).model_copy(update=texts)])
    output = call("bad.jsonl", "--teacher", reader, "--teacher", f"{reader} shift=5").output
    assert "\x1b" not in output
    assert "\x07" not in output
    assert "[red]q ]0;owned  AUROC 1.000" in output
    assert "prefers-color-scheme: dark" in Path("critique/critique.html").read_text()


def test_the_help_has_an_example() -> None:
    assert "Example: ovd-gym critique" in call("--help").output
