"""``ovd-gym eval``: figures worked by hand, the same twice, the same after a kill, refusals, comparison."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ovd_gym import cli_eval, train
from ovd_gym.cli import app
from ovd_gym.envs.math_qa.tasks import BENCHMARKS as MATH
from ovd_gym.envs.web_search.env import SearchEnv
from ovd_gym.errors import ConfigError, DataError, InfrastructureError, OvdGymError
from ovd_gym.eval_results import Figures, Sheet, figures, markdown
from ovd_gym.eval_setup import Plan, Settings, contests, entrant, open_contest
from ovd_gym.evals import Episode, EvalFolder
from ovd_gym.records import Step, Task, Trajectory, load_jsonl
from ovd_gym.statistics import pass_at_k, sign_test

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "qa"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared evaluation data: ../shared/data")

WORLD = '''
"""A world and its players, of this test."""
import os, signal
from pathlib import Path
import gymnasium as gym
from ovd_gym import Task, ToolEnv, tool
from ovd_gym.errors import InfrastructureError

TASKS = [Task(id=f"t{i}", question=f"{i} + 1", answers=(str(i + 1),)) for i in range(10)]

class Sums(ToolEnv):
    """Adds; breaks while a file says so."""
    def __init__(self, tasks=TASKS, **options):
        super().__init__(tasks, action_format="line", **options)

    @tool
    def add(self, text: str) -> str:
        """Add numbers."""
        if text == "7 1" and Path("broken").exists():
            raise InfrastructureError("the adder is on fire")
        return str(sum(map(int, text.split())))

    def grade(self, task: Task, answer: str) -> float:
        """Right or wrong."""
        return float(answer == task.answers[0])

def calculate(tasks, wrong=(), stop_at=None, kill=False):
    """Add, then answer; some questions wrongly."""
    def policy(messages):
        question = messages[1].content
        with Path("asked.txt").open("a") as log:
            print(question, len(messages), file=log)
        if question == stop_at and Path("armed").exists():
            os.kill(os.getpid(), signal.SIGKILL if kill else signal.SIGINT)
        if len(messages) == 2:
            return "add: " + question.replace(" + ", " ")
        return "answer: 0" if question in wrong else f"answer: {messages[-1].content}"
    return policy

gym.register("EvalSums-v0", f"{__name__}:Sums")
'''
PLAYER = "evals_of_this_test:calculate"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a module that registers a world of ten sums."""
    import gymnasium

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "evals_of_this_test", raising=False)
    Path("evals_of_this_test.py").write_text(WORLD)
    Path("one.jsonl").write_text('{"question": "q", "answers": ["a"]}\n')
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
    yield tmp_path
    signal.signal(signal.SIGINT, before)
    gymnasium.registry.pop("EvalSums-v0", None)


def call(*arguments: str, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["eval", *arguments], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done


def sums(*arguments: str, player: str = PLAYER, out: str = "eval", code: int = 0) -> Result:
    return call(player, "--env", "evals_of_this_test:EvalSums-v0", "--batch", "4", "--out", out, *arguments, code=code)


def results(out: str = "eval") -> Figures:
    (found,) = load_jsonl(f"{out}/results.jsonl", Figures)
    return found


# Figures ---------------------------------------------------------------------------------------------------


def test_pass_at_k_is_what_counting_all_subsets_gives() -> None:
    for right in range(6):
        outcomes = [i < right for i in range(5)]
        for k in range(1, 6):
            drawn = [any(subset) for subset in combinations(outcomes, k)]
            assert pass_at_k(5, right, k) == pytest.approx(sum(drawn) / len(drawn))
    with pytest.raises(ValueError, match="k at least 1"):
        pass_at_k(4, 5, 2)


def test_the_sign_test_is_mcnemar_s() -> None:
    # Two-sided binomial: 2 * (1 + 10) / 2**10.
    assert sign_test(1, 9) == sign_test(9, 1) == pytest.approx(22 / 1024)
    assert sign_test(0, 0) == 1.0


def episode(question: str, sample: int, reward: float | None, **more: object) -> Episode:
    usual = {"turns": 2, "tool_calls": 1, "invalid_calls": 0, "tokens": 10, "context": 50}
    status = "failed" if reward is None else "terminated"
    measures = {} if reward is None else {"f1": reward}
    plain = {"batch": 0, "answer": "a", "status": status, "reason": "", "measures": measures, **usual, **more}
    return Episode.model_validate({"question": question, "sample": sample, "reward": reward, **plain})


def test_figures_of_several_samples() -> None:
    rewards: dict[str, list[float | None]] = {
        "q1": [1.0, 0.0, 0.0, 0.0],
        "q2": [1.0, 1.0, 1.0, 1.0],
        "q3": [0.0, 0.0, 0.0, None],
    }
    episodes = [episode(q, n, reward, turns=n + 1) for q, row in rewards.items() for n, reward in enumerate(row)]
    found = figures("sums", episodes)
    assert (found.questions, found.episodes, found.failed, found.samples) == (3, 12, 1, 4)
    assert found.shares["accuracy"].value == pytest.approx((1 / 4 + 1 + 0) / 3)
    # Of the pairs of four, three hold the one that is right. q3 has three episodes: none are right.
    assert found.shares["pass@2"].value == pytest.approx((1 / 2 + 1 + 0) / 3)
    # q3 has no four to draw.
    assert (found.shares["pass@4"].value, found.shares["pass@4"].count) == (1.0, 2)
    assert found.means["turns"] == pytest.approx((1 + 2 + 3 + 4 + 1 + 2 + 3 + 4 + 1 + 2 + 3) / 11)


def test_single_right_and_wrong_answers_have_wilson_s_interval() -> None:
    found = figures("sums", [episode(f"q{n}", 0, 1.0) for n in range(20)]).shares["accuracy"]
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(1 - 0.1611, abs=1e-4)


def test_what_a_search_world_measures() -> None:
    steps = (
        Step(text="search", start=0, end=1, observation="It was Ada Lovelace, of London."),
        Step(text="answer", start=1, end=2, observation="Lovelace"),
    )
    task = Task(id="q", question="who?", answers=("Ada Lovelace", "Countess of Lovelace"))
    whole = Trajectory(
        id="a", group_id="a", task=task, steps=steps, token_ids=(1, 2), logprobs=(0.0, 0.0), reward=0.0,
        answer="Lovelace", status="terminated",
    )  # fmt: skip
    env = SearchEnv(task_options={"count": 2, "size": 100})
    assert env.measures(whole) == {"em": 0.0, "f1": pytest.approx(2 / 3), "cover_em": 0.0, "found": 1.0}
    silent = whole.model_copy(update={"answer": None, "steps": steps[1:]})
    assert env.measures(silent) == {"em": 0.0, "f1": 0.0, "cover_em": 0.0, "found": 0.0}


# On disk ---------------------------------------------------------------------------------------------------


def test_a_table_and_files(world: Path) -> None:
    output = sums(player=f"{PLAYER} wrong='[3 + 1]'").output
    assert output.splitlines()[-2:] == ["eval/results.jsonl", "eval/results.md"]
    found = results()
    assert (found.data, found.questions, found.episodes) == ("EvalSums-v0", 10, 10)
    assert found.shares["accuracy"].value == 0.9
    assert (found.means["turns"], found.means["tool_calls"]) == (2.0, 1.0)
    assert "| accuracy | 0.900 [0.596, 0.982] |" in Path("eval/results.md").read_text()
    settings = Settings.model_validate_json(Path("eval/EvalSums-v0/settings.json").read_bytes())
    assert settings.agent == {"policy": PLAYER, "options": {"wrong": ["3 + 1"]}}
    assert settings.world["action_format"] == "line"
    assert "add: " in str(settings.prompt["text"])
    kept = list(load_jsonl("eval/EvalSums-v0/trajectories.jsonl", Trajectory))
    assert [t.task.id for t in kept] == [f"t{i}" for i in range(10)]


def test_a_second_run_gives_the_same_and_plays_nothing(world: Path) -> None:
    sums()
    first = {path: path.read_bytes() for path in Path("eval").rglob("*") if path.is_file()}
    asked = Path("asked.txt").read_text()
    sums()
    assert {path: path.read_bytes() for path in Path("eval").rglob("*") if path.is_file()} == first
    assert Path("asked.txt").read_text() == asked
    sums(out="again")
    same = ("results.jsonl", "results.md", "EvalSums-v0/episodes.jsonl", "EvalSums-v0/trajectories.jsonl")
    assert [Path("again", name).read_bytes() for name in same] == [Path("eval", name).read_bytes() for name in same]


def test_ctrl_c_keeps_finished_batches(world: Path) -> None:
    player = f"{PLAYER} stop_at='5 + 1'"
    Path("armed").touch()
    stopped = sums(player=player, code=130)
    assert "stopped: EvalSums-v0 has 4 of 10 episodes; the same command goes on" in stopped.output
    Path("armed").unlink()
    sums(player=player)
    asked = Path("asked.txt").read_text().splitlines()
    assert [asked.count(f"{i} + 1 2") for i in (0, 3, 4, 9)] == [1, 1, 2, 1]
    sums(player=player, out="whole")
    assert Path("eval/results.jsonl").read_bytes() == Path("whole/results.jsonl").read_bytes()


def test_killed_at_half_it_goes_on_and_gives_the_same(world: Path) -> None:
    arguments = ["eval", f"{PLAYER} stop_at='5 + 1' kill=true", "--env", "evals_of_this_test:EvalSums-v0"]
    command = [sys.executable, "-m", "ovd_gym", *arguments, "--batch", "4"]
    Path("armed").touch()
    paths = os.pathsep.join([str(world), *sys.path])
    killed = subprocess.run(command, capture_output=True, cwd=world, env={**os.environ, "PYTHONPATH": paths})
    assert killed.returncode == -signal.SIGKILL
    assert not Path("eval/results.jsonl").exists()
    # What a kill in the middle of writing leaves: episodes of a batch without its line, the last one cut short.
    folder = Path("eval/EvalSums-v0")
    for name in ("trajectories.jsonl", "episodes.jsonl"):
        lines = (folder / name).read_text().splitlines(keepends=True)
        torn = [line.replace("/000000/", "/000001/").replace('"batch":0', '"batch":1') for line in lines[:2]]
        (folder / name).write_text("".join([*lines, *torn])[:-7])
    Path("armed").unlink()
    player = f"{PLAYER} stop_at='5 + 1' kill=true"
    sums(player=player)
    sums(player=player, out="whole")
    for name in ("results.jsonl", "EvalSums-v0/episodes.jsonl", "EvalSums-v0/trajectories.jsonl"):
        assert Path("eval", name).read_bytes() == Path("whole", name).read_bytes()


def test_failed_episodes_are_left_out_and_can_be_played_again(world: Path) -> None:
    Path("broken").touch()
    output = sums(code=3).output
    assert "1 episodes failed and are left out" in output
    assert (results().failed, results().shares["accuracy"].count) == (1, 9)
    Path("broken").unlink()
    sums(code=3)
    sums("--retry")
    assert (results().failed, results().shares["accuracy"].value) == (0, 1.0)
    asked = Path("asked.txt").read_text().splitlines()
    assert [asked.count(f"{i} + 1 2") for i in (0, 4, 7, 9)] == [1, 2, 2, 1]
    sums(out="whole")
    assert Path("eval/results.jsonl").read_bytes() == Path("whole/results.jsonl").read_bytes()


def test_an_evaluation_without_any_episode_is_an_error(world: Path) -> None:
    Path("broken").touch()
    Path("evals_of_this_test.py").write_text(WORLD.replace("range(10)", "range(7, 8)"))
    with pytest.raises(InfrastructureError, match="no episode of EvalSums-v0 could be played"):
        sums()


def test_a_folder_with_other_settings_is_refused(world: Path) -> None:
    sums()
    with pytest.raises(ConfigError, match=r"played with agent.options.wrong None, this command has \['1 \+ 1'\]"):
        sums(player=f"{PLAYER} wrong='[1 + 1]'")
    with pytest.raises(ConfigError, match=r"played with plan\.seed 0, this command has 1: choose another --out"):
        sums("--seed", "1")
    Path("eval/EvalSums-v0/settings.json").write_text("{}")
    with pytest.raises(DataError, match=r"settings.json: not the settings of an evaluation"):
        sums()


@pytest.mark.parametrize("name", ["results.md", "results.jsonl", "EvalSums-v0", "EvalSums-v0/.episodes.new"])
def test_an_evaluation_is_not_written_through_a_link(world: Path, name: str) -> None:
    sums()
    (precious := world / "precious").write_text("first\nlast")
    link = world / "eval" / name
    if link.is_dir():
        link.rename(world / "moved")
    link.unlink(missing_ok=True)
    link.symlink_to(precious)
    with pytest.raises(DataError, match="is a link"):
        sums()
    assert precious.read_text() == "first\nlast"


HOSTILE = "a|b\n<img src=x>[x](http://evil.test)\x1b[2J\x9b1m[red]"
"""A name out of somebody else's folder."""


def test_names_are_only_text_in_markdown() -> None:
    shown = markdown(Sheet("t", ["", HOSTILE], [[HOSTILE, "0.5 [0.1, 0.9]"]])).splitlines()
    assert len(shown) == 3
    assert shown[2].count(" | ") == 1
    assert shown[2].endswith("| 0.5 [0.1, 0.9] |")
    assert not {text for text in ("<img", "](") if text in "".join(shown)}


def test_names_are_only_text_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    cli_eval._print(Sheet(HOSTILE, ["", HOSTILE], [[HOSTILE, "1"]]))
    shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\x9b")
    assert shown.count("[red]") == 3


def test_a_choice_of_questions_is_fixed(world: Path) -> None:
    sums("--limit", "4")
    chosen = [e.question for e in load_jsonl("eval/EvalSums-v0/episodes.jsonl", Episode)]
    assert len(set(chosen)) == 4
    assert chosen == sorted(chosen)
    assert chosen != ["t0", "t1", "t2", "t3"]


# Refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give an agent"),
        ([PLAYER], "say which questions: --data NAME or --env ID; only a run folder brings its own"),
        ([PLAYER, "--compare", "a", "b"], "--compare reads two evaluations"),
        ([PLAYER, "--data", "nosuch.jsonl"], "which environment is it for"),
        ([PLAYER, "--data", "nq", "--env", "ovd_gym/Math-v0"], "belongs to ovd_gym/Search-v0"),
        ([PLAYER, "--data", "one.jsonl", "--env", "ovd_gym/Search-v0"], "'one.jsonl' need a search backend"),
        (["no/such/model", "--data", "world", "--data", "nq"], "'nq' need a search backend, and none was given: set"),
        ([PLAYER, "--data", "world conut=3"], "conut"),
        ([PLAYER, "--data", "world count"], "expected key=value"),
        ([f"{PLAYER} wrnog=1", "--data", "world"], "did you mean 'wrong'"),
        (["ovd_gym.agents.searchers:single_search", "--data", "world"], "must take the questions"),
        (["evals_of_this_test:nosuch", "--data", "world"], "cannot import"),
        (["no/such/model", "--data", "world"], "no model 'no/such/model'"),
        ([PLAYER, "--data", "world count=3 size=100", "--samples", "2"], "says the same every time"),
        ([PLAYER, "--data", "world", "--samples", "2", "--temperature", "0"], "all samples are the same"),
        ([PLAYER, "--data", "world", "--top-p", "0.5"], "top_p has no effect at temperature 0"),
        ([PLAYER, "--data", "world", "--temperature", "1", "--top-p", "0"], "top_p in (0, 1]"),
        (["--compare", "a", "b"], "nothing to compare: a holds no evaluation"),
    ],
)
def test_what_cannot_be_is_refused(world: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(OvdGymError) as caught:
        call(*arguments)
    assert message in str(caught.value)


def test_a_file_of_questions_is_asked_in_a_world_of_ones_own(world: Path) -> None:
    Path("one.jsonl").write_text('{"question": "4 + 1", "answers": ["5"]}\n')
    sums("--data", "one.jsonl")
    assert (results().data, results().questions) == ("one", 1)
    assert results().shares["accuracy"].value == 1.0


def test_names_lead_to_worlds() -> None:
    asked = ["gsm8k", "reasoning_gym:gcd size=5", "world", "closed:nq_open data_folder=here"]
    found = contests(asked, None, None)
    assert [(c.label, c.env.id) for c in found] == [
        ("gsm8k", "ovd_gym/Math-v0"),
        ("reasoning_gym-gcd", "ovd_gym/Math-v0"),
        ("world", "ovd_gym/Search-v0"),
        ("closed-nq_open", "ovd_gym/Search-v0"),
    ]
    assert found[1].env.options == {"tasks": "reasoning_gym:gcd", "task_options": {"size": 5}}
    twice = contests(["a.jsonl", "b/a.jsonl"], "ovd_gym/Math-v0 max_turns=2", None)
    assert [c.label for c in twice] == ["a", "a-2"]
    assert twice[0].env.options["max_turns"] == 2


# Models ----------------------------------------------------------------------------------------------------


def tiny_run(tiny_folder: Path, path: Path, lora_rank: int) -> Path:
    config = {
        "student": {"model": str(tiny_folder), "chat": "plain", "max_turn_tokens": 6},
        "env": {"options": {"action_format": "line", "max_turns": 2, "task_options": {"size": 20, "seed": 1}}},
        "evaluation": {"episodes": 5, "options": {"task_options": {"seed": 5, "size": 5}}},
        "rollout": {"tasks_per_step": 1, "group_size": 2},
        "learner": {"lora_rank": lora_rank},
        "steps": 1,
        "run_dir": str(path),
    }
    return train(config).path


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_a_run_folder_plays_its_held_out_questions(tiny_folder: Path, tmp_path: Path, lora_rank: int) -> None:
    run = tiny_run(tiny_folder, tmp_path / "run", lora_rank)
    call(str(run), "--out", str(tmp_path / "eval"))
    (found,) = load_jsonl(tmp_path / "eval" / "results.jsonl", Figures)
    assert (found.data, found.questions) == ("held-out", 5)
    then = list(load_jsonl(run / "trajectories" / "eval-00001.jsonl", Trajectory))
    now = list(load_jsonl(tmp_path / "eval" / "held-out" / "trajectories.jsonl", Trajectory))
    assert [t.token_ids for t in now] == [t.token_ids for t in then]
    (settings,) = (tmp_path / "eval" / "held-out").glob("settings.json")
    agent = json.loads(settings.read_text())["agent"]
    assert ("base" in agent["weights"]) == (lora_rank > 0)
    assert len(agent["weights"]["sha256"]) == 64


def test_samples_of_a_model(tiny_folder: Path, tmp_path: Path) -> None:
    env = "ovd_gym/Math-v0 action_format=line max_turns=1"
    data = ("--data", "reasoning_gym:gcd size=5", "--data", "reasoning_gym:lcm size=3")
    for out, batch in (("one", "8"), ("two", "8")):
        model = f"{tiny_folder} max_turn_tokens=4 chat=plain"
        call(model, *data, "--env", env, "--samples", "4", "--batch", batch, "--out", str(tmp_path / out))
    first, second = (list(load_jsonl(tmp_path / out / "results.jsonl", Figures)) for out in ("one", "two"))
    assert first == second
    assert [(f.data, f.questions, f.episodes, f.samples) for f in first] == [
        ("reasoning_gym-gcd", 5, 20, 4),
        ("reasoning_gym-lcm", 3, 12, 4),
    ]
    assert {"accuracy", "pass@2", "pass@4"} <= first[0].shares.keys()
    played = list(load_jsonl(tmp_path / "one" / "reasoning_gym-gcd" / "trajectories.jsonl", Trajectory))
    assert len({t.token_ids for t in played if t.task.id == played[0].task.id}) > 1


def test_a_run_without_a_model_and_a_model_s_wrong_options(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"student: {{model: {tiny_folder}}}\n")
    with pytest.raises(ConfigError, match="holds no finished model"):
        entrant(str(tmp_path))
    with pytest.raises(ConfigError, match="did you mean 'max_turn_tokens'"):
        entrant(f"{tiny_folder} max_turns_tokens=3")
    with pytest.raises(ConfigError, match="greater than or equal to 1"):
        entrant(f"{tiny_folder} max_turn_tokens=0")


# Comparison ------------------------------------------------------------------------------------------------


def test_two_evaluations_are_compared_by_question(world: Path) -> None:
    sums(player=f"{PLAYER} wrong='[0 + 1, 1 + 1, 2 + 1, 3 + 1, 4 + 1, 5 + 1]'", out="a")
    sums("--env", "evals_of_this_test:EvalSums-v0 max_turns=5", player=f"{PLAYER} wrong='[9 + 1]'", out="b")
    output = call("--compare", "a", "b").output
    # B is right on 0-5 where A is not, and wrong on 9: 2 * (1 + 7) / 2**7.
    assert "10 questions: B better on 6, worse on 1, p = 0.12 (sign test)" in output
    assert "accuracy" in output
    assert "+0.500" in output
    assert "not the same: data.env.options.max_turns: None / 5" in output
    assert "not the same: agent" not in output
    assert "10 questions: B better on 1, worse on 6" in call("--compare", "b", "a").output


# Data ------------------------------------------------------------------------------------------------------

ROWS = {
    "gsm8k": ({"question": "How many?", "answer": "so\n#### 1,042"}, "1042"),
    "math500": ({"problem": "p", "solution": r"\boxed{\frac12}", "answer": r"\frac12", "level": 2}, r"\frac12"),
    "aime24": ({"id": 60, "problem": "p", "solution": "s", "answer": "204", "url": "u", "year": "2024"}, "204"),
    "aime25": ({"problem": "p", "answer": "070", "id": "0"}, "070"),
    "amc23": ({"id": 0, "answer": "27.0", "question": "q", "url": "u"}, "27.0"),
    "minerva": ({"question": "q", "answer": "1.6"}, "1.6"),
    "olympiadbench": (
        {"id": 1606, "question": "q", "solution": ["s"], "final_answer": ["2"], "context": None, "is_multiple_answer":
         False, "unit": None, "answer_type": "Numerical", "error": None},
        "2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MATH)
def test_benchmarks_of_mathematics_from_local_files_of_the_same_schema(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    row, answer = ROWS[name]
    home = MATH[name]
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "rows.jsonl").write_text(json.dumps(row) + "\n")
    parts = f"configs:\n- config_name: {home.config or 'default'}\n  data_files:\n  - split: {home.split}\n"
    (mirror / "README.md").write_text(f"---\n{parts}    path: rows.jsonl\n---\n")
    (contest,) = contests([f"{name} repository={mirror}"], None, None)
    envs, (task,), settings = open_contest(contest, entrant("ovd_gym.agents.searchers:follow_questions"), Plan(batch=1))
    assert task.answers == (answer,)
    assert settings.data["loaded_from"] == {
        "name": str(mirror), "config": home.config, "split": home.split, "revision": None,
    }  # fmt: skip
    assert "math-verify" in str(settings.world["answers"])
    envs[0].close()


@needs_shared
def test_scripted_searchers_reach_their_figures_on_a_closed_set(tmp_path: Path) -> None:
    data = f"closed:hotpotqa data_folder={SHARED}"
    player = "ovd_gym.agents.searchers:follow_titles open_top=1"
    call(player, "--data", data, "--out", str(tmp_path))
    (found,) = load_jsonl(tmp_path / "results.jsonl", Figures)
    assert (found.questions, found.shares["em"].value) == (98, 89 / 98)
    settings = Settings.model_validate_json((tmp_path / "closed-hotpotqa" / "settings.json").read_bytes())
    retriever = settings.world["retriever"]
    assert isinstance(retriever, dict)
    assert retriever["documents"] == 12_766
    assert len(str(retriever["corpus_hash"])) == 64
    whole = (tmp_path / "results.jsonl").read_bytes()
    batches = tmp_path / "closed-hotpotqa" / "batches.jsonl"
    batches.write_text(batches.read_text().splitlines(keepends=True)[0])  # as if killed after the first of two
    call(player, "--data", data, "--out", str(tmp_path))
    assert (tmp_path / "results.jsonl").read_bytes() == whole


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (contest,) = contests(["reasoning_gym:gcd size=2"], None, None)
    envs, _, settings = open_contest(contest, entrant("ovd_gym.agents.searchers:follow_questions"), Plan(batch=1))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="make room and give the same command"):
        EvalFolder(tmp_path / "file" / "sums", settings)
    envs[0].close()
