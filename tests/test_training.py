"""The loop on a tiny model: learns, records, resumes to the same numbers, stops cleanly, refuses bad input."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ovd_gym import recorder, records
from ovd_gym.config_files import load_config
from ovd_gym.credit import Credit, assign_credit
from ovd_gym.envs.math_qa import MathEnv
from ovd_gym.errors import ConfigError, DataError, OvdGymError, TrainingStopped
from ovd_gym.experience import task_batch
from ovd_gym.progress import Display
from ovd_gym.records import Critique, Score, Task, Trajectory, load_jsonl
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.training import RunResult, train


class Brevity(Teacher):
    """Likes short attempts; a stand-in that always has an opinion."""

    def score(self, view: View) -> Score:
        return Score.of(9 - min(9, len(view.attempt) // 4))


class Mute(Teacher):
    """Never answers."""

    def score(self, view: View) -> Score:
        raise RuntimeError("out of order")


class Loud(Brevity):
    def __init__(self) -> None:
        raise RuntimeError("too loud")


class Idle(Teacher):
    """Forgot its one method."""


def settings(model: Path, run_dir: Path, **more: Any) -> dict[str, Any]:
    return {
        "student.model": str(model),
        "student.chat": "plain",
        "student.max_turn_tokens": 6,
        "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 2},
        "evaluation": {"options": {"task_options": {"size": 4, "seed": 99}}, "episodes": 4, "every": 2},
        "rollout": {"tasks_per_step": 2, "group_size": 3},
        "learner": {"lora_rank": 2, "learning_rate": 0.01},
        "steps": 4,
        "checkpoint_every": 2,
        "run_dir": str(run_dir),
        **more,
    }


def quiet(steps: int = 4) -> Display:
    return Display(steps, Console(file=io.StringIO()))


def run(model: Path, run_dir: Path, teacher: Teacher | None = None, **more: Any) -> RunResult:
    return train(teacher=teacher or Brevity(), settings=settings(model, run_dir, **more), display=quiet())


def numbers(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    measured = ("seconds", "tokens_per_s", "peak_memory_gib")
    return [{k: v for k, v in row.items() if k not in measured} for row in rows]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(tiny_folder, tmp_path_factory.mktemp("runs") / "whole")


def same_run(a: Path, b: Path) -> None:
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert numbers(a / name) == numbers(b / name)
    for folder in ("trajectories", "critiques", "credits"):
        assert sorted(f.name for f in (a / folder).iterdir()) == sorted(f.name for f in (b / folder).iterdir())
        assert all((a / folder / f.name).read_text() == f.read_text() for f in (b / folder).iterdir())
    last = "checkpoints/step-00004"
    for name in ("weights.safetensors", "optimizer.safetensors"):
        one, other = load_file(a / last / name), load_file(b / last / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_run_folder_holds_everything(finished: RunResult) -> None:
    assert finished.steps == 4
    assert [row["step"] for row in finished.evaluations] == [0, 2, 4]
    assert [row["step"] for row in numbers(finished.path / "metrics.jsonl")] == [1, 2, 3, 4]
    assert [p.name for p in finished.outputs] == ["model", "curve.png", "report.html"]
    assert all(p.stat().st_size > 1000 for p in finished.outputs[1:])
    assert [p.name for p in sorted((finished.path / "checkpoints").iterdir())] == ["step-00002", "step-00004"]
    assert list((finished.path / "tensorboard").iterdir())
    trajectories = list(load_jsonl(finished.path / "trajectories" / "step-00003.jsonl", Trajectory))
    critiques = list(load_jsonl(finished.path / "critiques" / "step-00003.jsonl", Critique))
    assert [t.id for t in trajectories] == [c.trajectory_id for c in critiques]
    credits = list(load_jsonl(finished.path / "credits" / "step-00003.jsonl", Credit))
    assert credits == assign_credit(trajectories, critiques, load_config(finished.path / "config.yaml").credit)
    tokenizer = AutoTokenizer.from_pretrained(finished.path / "tokenizer")
    step = trajectories[0].steps[0]
    assert step.text in tokenizer.decode(list(trajectories[0].token_ids[step.start : step.end]))
    assert min(row["peak_memory_gib"] for row in recorder.Recorder.resume(finished.path).metrics()) > 0
    assert {t.policy_version for t in trajectories} == {2}
    assert Counter(t.group_id for t in trajectories) == {"step-00003/0": 3, "step-00003/1": 3}
    assert load_config(finished.path / "config.yaml").steps == 4
    card = (finished.path / "model" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {"library_name": "peft", "tags": ["ovd-gym"]}
    assert "Arm `score-reward`, teacher `object:Brevity`, 4 steps of 2 tasks x 3 episodes, seed 0." in text
    assert all(f"| {row['step']} | {row['accuracy']:.3f} |" in text for row in finished.evaluations)
    assert load_config(yaml.safe_load(text.split("```yaml")[1].split("```")[0])).steps == 4


def test_weights_change_and_the_exported_model_loads(finished: RunResult, tiny_folder: Path) -> None:
    first = load_file(finished.path / "checkpoints/step-00002/weights.safetensors")
    last = load_file(finished.path / "checkpoints/step-00004/weights.safetensors")
    assert any(not torch.equal(first[k], last[k]) for k in first)
    assert (finished.path / "model" / "adapter_model.safetensors").is_file()
    assert (finished.path / "model" / "tokenizer.json").is_file()


def test_the_learner_agrees_with_the_sampler_in_every_step(finished: RunResult) -> None:
    """Adapters folded into the weights for sampling give the log-probabilities they give in training."""
    rows = [row for row in numbers(finished.path / "metrics.jsonl") if row["trained_tokens"]]
    assert len(rows) >= 3
    assert max(row["logprob_gap"] for row in rows) < 1e-4
    assert min(row["grad_norm"] for row in rows) > 0


def test_the_same_seed_gives_the_same_run(finished: RunResult, tiny_folder: Path, tmp_path: Path) -> None:
    same_run(finished.path, run(tiny_folder, tmp_path / "again").path)


def test_another_seed_gives_another_run(finished: RunResult, tiny_folder: Path, tmp_path: Path) -> None:
    other = run(tiny_folder, tmp_path / "other", seed=1)
    assert numbers(other.path / "metrics.jsonl") != numbers(finished.path / "metrics.jsonl")


def test_resuming_gives_the_uninterrupted_run(finished: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "resumed"
    shutil.copytree(finished.path, path)
    shutil.rmtree(path / "checkpoints" / "step-00004")  # as if killed after step 3, mid-write
    for name in ("trajectories", "critiques"):
        (path / name / "eval-00004.jsonl").unlink()
    metrics = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(metrics[:3]) + metrics[3][:40])
    evaluations = (path / "evaluations.jsonl").read_text().splitlines(keepends=True)
    (path / "evaluations.jsonl").write_text("".join(evaluations[:2]))
    train(teacher=Brevity(), resume=path, display=quiet())
    same_run(finished.path, path)


def test_resuming_with_another_teacher_is_refused(finished: RunResult, tiny_folder: Path, tmp_path: Path) -> None:
    before = (finished.path / "metrics.jsonl").read_text()
    for other in (None, Mute()):
        with pytest.raises(ConfigError, match="began with the Teacher object 'Brevity': give it again"):
            train(resume=finished.path, teacher=other, display=quiet())
    named = train(settings=settings(tiny_folder, tmp_path / "named", steps=2), display=quiet())
    with pytest.raises(ConfigError, match="began with teacher 'math-rules', so give no other"):
        train(resume=named.path, teacher=Brevity(), display=quiet())
    assert (finished.path / "metrics.jsonl").read_text() == before


def test_resuming_with_another_shape_of_model_is_refused(finished: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "reshaped"
    shutil.copytree(finished.path, path)
    config = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(config.replace("lora_rank: 2", "lora_rank: 3"))
    with pytest.raises(DataError, match="belongs to another model"):
        train(teacher=Brevity(), resume=path, display=quiet())


def test_resuming_without_any_checkpoint_starts_over(finished: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "early"
    shutil.copytree(finished.path, path)
    shutil.rmtree(path / "checkpoints")
    train(teacher=Brevity(), resume=path, display=quiet())
    same_run(finished.path, path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "state", "no sums"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(finished: RunResult, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(finished.path, path)
    folder = path / "checkpoints" / "step-00004"
    weights = folder / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "cut":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "missing":
        weights.unlink()
    elif damage == "no sums":  # nothing to compare with is no reason to trust it
        (folder / "state.json").write_text('{"step": 4, "sha256": {}}')
    else:
        (folder / "state.json").write_text("{")
    screen = io.StringIO()
    train(teacher=Brevity(), resume=path, display=Display(4, Console(file=screen)))
    said = " ".join(screen.getvalue().split())
    assert "step-00004 is damaged" in said
    assert "going on from the one before" in said
    assert {p.name for p in folder.parent.iterdir()} == {"step-00002", "step-00004", "damaged-step-00004"}
    same_run(finished.path, path)


def test_when_no_checkpoint_is_whole_nothing_is_changed(finished: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(finished.path, path)
    for folder in (path / "checkpoints").iterdir():
        (folder / "optimizer.safetensors").write_bytes(b"")
    before = (path / "metrics.jsonl").read_text()
    with pytest.raises(DataError, match=r"step-00002 is damaged .*none before it is whole: delete .*checkpoints"):
        train(teacher=Brevity(), resume=path, display=quiet())
    assert (path / "metrics.jsonl").read_text() == before


def test_full_fine_tuning_exports_a_plain_model(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    learner = {"lora_rank": 0, "learning_rate": 1e-3}
    evaluation = {"options": {"task_options": {"size": 4, "seed": 99}}, "episodes": 4}
    result = run(tiny_folder, tmp_path / "full", learner=learner, steps=1, checkpoint_every=1, evaluation=evaluation)
    assert capfd.readouterr() == ("", "")  # the display is the test's, and transformers shows none
    model = AutoModelForCausalLM.from_pretrained(result.path / "model")
    start = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))


def adds(tasks: list[Task]) -> Any:
    """A demonstrator that calculates and answers."""
    answers = {task.question: task.answers[0] for task in tasks}
    return lambda messages: f"answer: {answers[messages[1].content]}\n"


def blunders(tasks: list[Task]) -> Any:
    return lambda messages: "answer: wrong\n"


def imitation(model: Path, run_dir: Path, policy: str, **more: Any) -> RunResult:
    laid = settings(model, run_dir, **{"learner.learning_rate": 0.02, "teacher": None, **more})
    laid |= {"rollout": {"tasks_per_step": 4, "group_size": 1}, "credit": {"arm": "imitation"}}
    return train(settings={**laid, "demonstrator.policy": f"{__name__}:{policy}"}, display=quiet())


def test_imitation_learns_the_demonstrators_tokens_and_resumes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[adds.__module__])
    whole = imitation(tiny_folder, tmp_path / "whole", "adds")
    rows = numbers(whole.path / "metrics.jsonl")
    assert [row["em"] for row in rows] == [1.0] * 4
    assert rows[3]["nll"] < rows[0]["nll"] - 0.5
    assert all(row["trained_tokens"] > 0 for row in rows)
    assert all(row["entropy"] is row["correct_logprob"] is None for row in rows)  # the student sampled nothing
    shutil.copytree(whole.path, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00004")
    train(resume=tmp_path / "resumed", display=quiet())
    same_run(whole.path, tmp_path / "resumed")
    with pytest.raises(TrainingStopped, match="none of 4 demonstrations is right"):
        imitation(tiny_folder, tmp_path / "wrong", "blunders")
    with pytest.raises(TrainingStopped, match="none of 4 demonstrations is right"):
        imitation(tiny_folder, tmp_path / "long", "adds", **{"student.max_context": 40})  # none has room
    with pytest.raises(ConfigError, match="cannot import"):
        imitation(tiny_folder, tmp_path / "none", "nobody")


def test_a_mute_teacher_stops_the_run_with_its_reason(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingStopped, match=r"100% of the teacher's scores are missing.*out of order"):
        run(tiny_folder, tmp_path / "mute", Mute())


def test_a_mute_teacher_allowed_to_be_mute_is_grpo(tiny_folder: Path, tmp_path: Path) -> None:
    mute = run(tiny_folder, tmp_path / "mute", Mute(), **{"teacher.max_invalid_share": 1.0})
    grpo = run(tiny_folder, tmp_path / "grpo", credit={"arm": "grpo"})
    for a, b in zip(numbers(mute.path / "metrics.jsonl"), numbers(grpo.path / "metrics.jsonl"), strict=True):
        assert {k: a.get(k) for k in ("reward", "loss", "grad_norm")} == {
            k: b.get(k) for k in ("reward", "loss", "grad_norm")
        }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env.id": "ovd_gym/Maths-v0"}, "did you mean 'ovd_gym/Math-v0'"),
        ({"env.id": "CartPole-v1", "env.options": {}, "evaluation": None}, "is not an ovd_gym"),
        ({"env.options": {"max_turn": 2}}, "max_turn"),
        ({"env.options": {"max_turns": "many"}}, "max_turns must be a whole number"),
        ({"env.id": "no_such_module:World-v0"}, "no_such_module"),
        ({"env.options": {"tasks": "missing.jsonl"}}, "missing.jsonl"),
        ({"student.model": "no/such-folder/at-all"}, "no/such-folder/at-all"),
        ({"student.chat": "template", "student.max_context": 1_000_000}, "max_context"),
        ({"evaluation": {"episodes": 4, "options": {"task_options": {"size": 2}}}}, "only 2 held-out tasks"),
        ({"env.options.task_options": {"size": 4}, "evaluation": {"episodes": 4}}, "every training task"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tiny_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(OvdGymError) as caught:
        run(tiny_folder, tmp_path / "run", **change)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("os:system", "no subclass"),
        ("test_training:Loud", "RuntimeError: too loud"),
        ("test_training:Idle", "lacks score"),
    ],
)
def test_a_teacher_that_cannot_be_made_is_one_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, "test_training", sys.modules[Loud.__module__])
    laid = settings(tiny_folder, tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        train(settings={**laid, "teacher.name": name}, display=quiet())
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stops_the_run_with_advice_and_it_goes_on(
    finished: RunResult, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = records.save_jsonl

    def full(path: Path, rows: Any) -> None:
        if path.name == "step-00003.jsonl":
            raise OSError(28, "No space left on device")
        real(path, rows)

    monkeypatch.setattr(recorder, "save_jsonl", full)
    with pytest.raises(TrainingStopped, match=r"No space left on device.*continue with --resume"):
        run(tiny_folder, tmp_path / "full")
    monkeypatch.undo()
    train(teacher=Brevity(), resume=tmp_path / "full", display=quiet())
    same_run(finished.path, tmp_path / "full")


def test_a_damaged_metrics_file_is_named(finished: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    shutil.copytree(finished.path, path)
    rows = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text("{nonsense\n" + rows)
    with pytest.raises(DataError, match=r"metrics.jsonl:1: not JSON"):
        train(teacher=Brevity(), resume=path, display=quiet())


def test_nothing_is_overwritten(finished: RunResult, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write the run"):
        run(tiny_folder, Path("/dev/null/run"))
    with pytest.raises(ConfigError, match="cannot write the run"):
        run(tiny_folder, Path("/proc/run"))  # a folder that only says so when it is tried
    with pytest.raises(ConfigError, match="exists already"):
        run(tiny_folder, finished.path)
    with pytest.raises(ConfigError, match="not a run folder"):
        train(resume=tmp_path, display=quiet())
    with pytest.raises(ConfigError, match="keeps its configuration, except for scale"):
        train({}, resume=finished.path, display=quiet())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_cleanly_and_the_run_continues_to_the_same_numbers(
    finished: RunResult, tiny_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """A separate process gets a real Ctrl-C, or what a scheduler sends, in the middle of a step."""
    path = tmp_path / "stopped"
    script = (
        "import sys, json; sys.path.insert(0, sys.argv[1]);"
        "from test_training import Brevity, quiet, train;"
        "train(teacher=Brevity(), settings=json.loads(sys.argv[2]), display=quiet())"
    )
    arguments = json.dumps(settings(tiny_folder, path))
    process = subprocess.Popen([sys.executable, "-c", script, str(Path(__file__).parent), arguments])
    deadline = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    done = len(numbers(path / "metrics.jsonl"))
    assert 1 <= done <= 4
    assert (path / "checkpoints" / f"step-{done:05d}").is_dir()
    if done < 4:
        train(teacher=Brevity(), resume=path, display=quiet())
    kept = {p.name for p in (path / "checkpoints").iterdir()}
    assert "step-00004" in kept
    same_run(finished.path, path)


def test_training_environments_are_told_the_updates_and_held_out_ones_are_not(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[MathEnv, int]] = []
    monkeypatch.setattr(MathEnv, "at_update", lambda env, updates: told.append((env, updates)), raising=False)
    run(tiny_folder, tmp_path / "run", steps=2)
    assert [updates for _, updates in told] == [0] * 6 + [1] * 6 + [2] * 6
    assert len({id(env) for env, _ in told}) == 6


def test_task_order_passes_over_all_tasks() -> None:
    tasks = [Task(id=str(i), question="?", answers=("1",)) for i in range(10)]
    seen = [t.id for step in range(5) for t in task_batch(tasks, step, 4, seed=3)]
    assert Counter(seen[:10]) == Counter(seen[10:]) == Counter(t.id for t in tasks)
    assert seen[:10] != seen[10:]
    assert [t.id for t in task_batch(tasks, 4, 4, seed=3)] == seen[16:]


def filtered(model: Path, run_dir: Path, arm: str, **more: Any) -> RunResult:
    laid = settings(model, run_dir, **{"credit.arm": arm, "rollout": {"tasks_per_step": 2, "group_size": 4}, **more})
    laid |= {"demonstrator.policy": f"{__name__}:adds"} if arm != "grpo" else {}
    return train(teacher=Brevity(), settings=laid, display=quiet())


@pytest.mark.parametrize("arm", ["ovd", "ovd-prefix"])
def test_theta_zero_is_arm_grpo(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[adds.__module__])
    plain = filtered(tiny_folder, tmp_path / "grpo", "grpo")
    other = filtered(tiny_folder, tmp_path / arm, arm, **{"selection.theta": 0})
    extra = ("rejected", "replaced", "demonstrator_em")
    rows = [{k: v for k, v in row.items() if k not in extra} for row in numbers(other.path / "metrics.jsonl")]
    assert rows == numbers(plain.path / "metrics.jsonl")
    weights = [load_file(r.path / "checkpoints/step-00004/weights.safetensors") for r in (plain, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("arm", ["ovd", "ovd-prefix"])
def test_demonstrations_train_a_student_that_never_succeeds(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    monkeypatch.setitem(sys.modules, __name__, sys.modules[adds.__module__])
    result = filtered(tiny_folder, tmp_path / arm, arm, **{"selection.theta": 10, "selection.max_replaced": 1})
    rows = numbers(result.path / "metrics.jsonl")
    assert all((row["rejected"], row["replaced"], row["demonstrator_em"]) == (1.0, 0.25, 1.0) for row in rows)
    assert all(row["em"] == 0.0 and row["trained_tokens"] > 0 for row in rows)
    stored = list(load_jsonl(result.path / "trajectories" / "step-00001.jsonl", Trajectory))
    assert [t.id for t in stored if t.steps[-1].source == "teacher"] == [t.id for t in stored[8:]]
    assert len(stored) == 10
    shutil.copytree(result.path, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00004")
    train(resume=tmp_path / "resumed", teacher=Brevity(), display=quiet())
    same_run(result.path, tmp_path / "resumed")


def test_groups_that_say_nothing_are_asked_again(tiny_folder: Path, tmp_path: Path) -> None:
    laid: dict[str, Any] = {"credit.arm": "grpo", "evaluation": None}
    laid["rollout"] = {"tasks_per_step": 2, "group_size": 3, "resample": 2}
    result = run(tiny_folder, tmp_path / "again", steps=1, checkpoint_every=1, **laid)
    (row,) = numbers(result.path / "metrics.jsonl")
    assert (row["zero_variance_share"], row["resampled"], row["trained_tokens"]) == (1.0, 4.0, 0.0)
    stored = list(load_jsonl(result.path / "trajectories" / "step-00001.jsonl", Trajectory))
    assert len({t.id for t in stored}) == 18
    assert len({t.task.id for t in stored}) == 6  # other tasks each time


def test_token_level_distillation_runs_from_the_same_configuration(tiny_folder: Path, tmp_path: Path) -> None:
    laid = {"credit.arm": "token-opd", "distillation.model": str(tiny_folder), "teacher": None}
    result = train(settings=settings(tiny_folder, tmp_path / "opd", **laid), display=quiet())
    first, *_ = numbers(result.path / "metrics.jsonl")
    assert abs(first["divergence"]) < 1e-3  # its own teacher
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("<|im_start|>", "<|im_begin|>"))
    with pytest.raises(ConfigError, match="another tokenizer"):
        train(settings=settings(tiny_folder, tmp_path / "x", **(laid | {"distillation.model": str(other)})))


class Obedient(Teacher):
    """Gives what it is told to give."""

    def score(self, view: View) -> Score:
        return Score.of(9 if "9" in view.model_dump_json() else 5)


def test_the_teacher_is_tried_on_canaries(tiny_folder: Path, tmp_path: Path, finished: RunResult) -> None:
    rows = numbers(finished.path / "evaluations.jsonl")
    assert all(row["canary_failed"] > 0 for row in rows)  # brevity is no virtue
    stored = json.loads((finished.path / "canaries" / "step-00002.json").read_text())
    assert stored["teacher"] == "Brevity"
    strict: dict[str, Any] = {"teacher.max_canary_faults": 3}
    with pytest.raises(TrainingStopped, match="not to be trusted"):
        run(tiny_folder, tmp_path / "obedient", Obedient(), **strict)
    laid: dict[str, Any] = {"teacher.canaries": False, "steps": 2}
    off = run(tiny_folder, tmp_path / "off", **laid)
    assert "canary_failed" not in numbers(off.path / "evaluations.jsonl")[0]
    assert not (off.path / "canaries").exists()


def test_rules_hold_their_canaries_in_a_run(tiny_folder: Path, tmp_path: Path) -> None:
    laid = settings(tiny_folder, tmp_path / "rules", **{"teacher.max_canary_faults": 0, "evaluation": None, "steps": 1})
    result = train(settings=laid | {"checkpoint_every": 1}, display=quiet())
    assert (result.path / "canaries" / "step-00000.json").exists()


def test_ppo_records_its_values_and_resumes_exactly(tiny_folder: Path, tmp_path: Path) -> None:
    laid: dict[str, Any] = {"credit.estimator": "gae", "rollout": {"tasks_per_step": 6, "group_size": 1}}
    laid |= {"learner.epochs": 2, "value.learning_rate": 5e-3}
    whole = run(tiny_folder, tmp_path / "whole", **laid)
    rows = numbers(whole.path / "metrics.jsonl")
    assert all(row["value_loss"] > 0 and row["trained_tokens"] > 0 for row in rows)
    assert rows[0]["explained_variance"] == pytest.approx(0.0, abs=1e-6)  # the head has predicted zero
    assert rows[-1]["value_loss"] < rows[0]["value_loss"]
    saved = load_file(whole.path / "checkpoints/step-00004/weights.safetensors")
    assert saved["value.weight"].any()
    exported = load_file(whole.path / "model" / "adapter_model.safetensors")
    assert not [name for name in exported if "value" in name]
    shutil.copytree(whole.path, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00004")
    train(resume=tmp_path / "resumed", teacher=Brevity(), display=quiet())
    same_run(whole.path, tmp_path / "resumed")
