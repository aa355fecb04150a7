"""The configuration: laid over, checked, and refused in one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ovd_gym.config import TrainConfig
from ovd_gym.config_files import load_config, parse_setting
from ovd_gym.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]
MINIMAL: dict[str, Any] = {"student": {"model": "m"}}
PPO: dict[str, Any] = {"credit.estimator": "gae"}
PLAIN: dict[str, Any] = {"student.chat": "plain"}
SFT: dict[str, Any] = {"credit.arm": "imitation", "demonstrator.policy": "m:f", "rollout.group_size": 1}
ALONE: dict[str, Any] = {"credit.baseline": "batch", "credit.step_term": "outcome", "rollout.group_size": 1}


def test_defaults_and_settings() -> None:
    config = load_config(MINIMAL, {"learner.learning_rate": 1e-5, "env.options.max_turns": 3, "steps": 7})
    assert config.learner.learning_rate == 1e-5
    assert config.env.options == {"max_turns": 3}
    assert (config.steps, config.credit.arm) == (7, "score-reward")


@pytest.mark.parametrize("arm", ["grpo", "score-reward"])
@pytest.mark.parametrize("group_size", [1, 8])
def test_groups_may_be_of_one_with_a_value_head(arm: str, group_size: int) -> None:
    config = load_config(MINIMAL, {**PPO, "credit.arm": arm, "rollout.group_size": group_size, "value.lam": 0.95})
    assert config.rollout.group_size == group_size


@pytest.mark.parametrize(("arm", "step_term"), [("grpo", None), ("score-reward", "outcome")])
def test_groups_may_be_of_one_with_the_baseline_of_the_batch(arm: str, step_term: str | None) -> None:
    assert load_config(MINIMAL, {**ALONE, "credit.arm": arm, "credit.step_term": step_term}).rollout.group_size == 1


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.name)
def test_every_example_is_valid(file: Path) -> None:
    config = load_config(file)
    assert load_config(config.model_dump(mode="json")) == config


def test_a_configuration_survives_its_own_file(tmp_path: Path) -> None:
    config = load_config(MINIMAL, {"learner.learning_rate": 3e-7, "student.model": "träg: [x]"})
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [("a=0.5", 0.5), ("a=1", 1), ("a=x=y", "x=y"), ("a=", None), ("a=[1, 2]", [1, 2]), ("a=enable", "enable")],
)
def test_settings_are_yaml(text: str, value: object) -> None:
    assert parse_setting(text) == ("a", value)


def test_numbers_in_scientific_notation_are_numbers_where_numbers_belong() -> None:
    settings = dict(map(parse_setting, ["learner.learning_rate=1e-4", "run_dir=1e-4"]))
    config = load_config(MINIMAL, settings)
    assert (config.learner.learning_rate, config.run_dir) == (1e-4, "1e-4")


@pytest.mark.parametrize("text", ["a", "=1", "a..b=1", "a=[1"])
def test_malformed_settings(text: str) -> None:
    with pytest.raises(ConfigError, match="setting"):
        parse_setting(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lerner.epochs": 2}, "unknown configuration key 'lerner': did you mean 'learner'?"),
        ({"learner.learning_rat": 1}, "did you mean 'learner.learning_rate'?"),
        ({"teacher.nam": "x"}, "did you mean 'teacher.name'?"),
        ({"student.plain.usr": "x", "student.chat": "plain"}, "did you mean 'student.plain.user'?"),
        ({"steps": 0}, "steps: Input should be greater than or equal to 1, got 0"),
        ({"steps.x": 1, "steps": 3}, None),
        ({"credit.arm": "grop"}, "credit.arm"),
        ({"teacher": None}, "needs a teacher"),
        ({"credit.arm": "grpo", "credit.step_weight": 0.1}, "credit.step_weight has no effect"),
        ({"credit.step_term": "outcome", "credit.step_weight": 0.1}, "credit.step_weight has no effect"),
        ({"credit.arm": "grpo", "teacher.max_invalid_share": 0.5}, "teacher.max_invalid_share has no effect"),
        ({"health.patience": 9}, "health.patience has no effect without a limit"),
        (SFT | {"health.entropy_floor": 0.1}, "health.entropy_floor has no effect with credit.arm 'imitation'"),
        (ALONE | {"credit.step_term": "min-form"}, "set credit.step_term to 'outcome'"),
        (ALONE | {"credit.step_term": None}, "set credit.step_term to 'outcome'"),
        (ALONE | {"rollout.tasks_per_step": 1}, "leaves nothing to compare"),
        (ALONE | {"credit.arm": "grpo", "rollout.resample": 1}, "rollout.resample has no effect"),
        ({"learner.clip_high": 0.3}, "learner.clip_high has no effect with learner.epochs 1"),
        ({"student.dtype": "bfloat16", "learner.lora_rank": 0}, "would lose most updates"),
        ({"student.quantization": "4bit", "learner.lora_rank": 0}, "weights in 4 bits are frozen"),
        ({"evaluation.every": 200}, "beyond the last step"),
        ({"student.max_context": 64}, "leaves no room for a prompt"),
        ({"learner.warmup_steps": 100}, "must be below steps"),
        ({"student.plain.few_shot": "x"}, "student.plain has no effect"),
        ({"student.chat": "plain", "student.plain.user": "no placeholder"}, "exactly once"),
        (PLAIN | {"student.plain.tool": "{content}"}, "plain.tool must hold text besides {content}"),
        (PLAIN | {"student.plain.tool": "{content}", "student.plain.turn_end": "\n"}, "plain.tool must hold text"),
        (PLAIN | {"student.plain.system": "", "student.plain.user": "{content}"}, "plain.user must hold text"),
        ({"rollout.group_size": 1}, "rollout.group_size"),
        ({"demonstrator.policy": "m:f"}, "belongs to the arms 'imitation'"),
        ({"credit.arm": "imitation"}, "they need one"),
        ({"credit.arm": "ovd"}, "they need one"),
        ({"credit.arm": "ovd-prefix", "demonstrator": {}}, "either a policy or a model"),
        ({"credit.arm": "ovd", "demonstrator.policy": "m:f", "selection.theta": 11}, "selection.theta"),
        ({"credit.arm": "ovd", "demonstrator.policy": "m:f", "selection.theta": -1}, "selection.theta"),
        ({"credit.arm": "ovd", "demonstrator.policy": "m:f", "selection.theta": float("nan")}, "selection.theta"),
        ({"credit.arm": "ovd", "demonstrator.policy": "m:f", "teacher": None}, "set a teacher"),
        ({"credit.arm": "ovd", "demonstrator.policy": "m:f", "rollout.group_size": 2}, "at least 3"),
        ({"credit.arm": "imitation", "demonstrator.policy": "m:f"}, "group_size is 8: arm 'imitation' takes 1"),
        ({"learner.learning_rate": float("nan")}, "learner.learning_rate"),
        ({"value.lam": 0.9}, "value has no effect with credit.estimator 'group'"),
        (PPO | {"credit.baseline": "batch"}, "credit.baseline has no effect with credit.estimator 'gae'"),
        (PPO | {"credit.normalize": True}, "credit.normalize has no effect"),
        (PPO | {"credit.step_term": "potential"}, "credit.step_term has no effect"),
        (PPO | {"credit.clip": 5.0}, "credit.clip has no effect"),
        (PPO | {"value.clip": 0.5}, "value.clip has no effect with learner.epochs 1"),
        (PPO | {"value.lam": 1.5}, "value.lam"),
        (PPO | {"credit.arm": "grpo", "credit.step_weight": 0.1}, "credit.step_weight has no effect"),
        (PPO | {"credit.arm": "grpo", "rollout.resample": 1}, "rollout.resample has no effect"),
        (PPO | {"credit.arm": "ovd", "demonstrator.policy": "m:f"}, "belongs to the arms 'grpo' and 'score-reward'"),
        (PPO | {"credit.arm": "token-opd", "distillation.model": "m"}, "credit.estimator has no effect"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(settings: dict[str, Any], message: str | None) -> None:
    if message is None:
        assert load_config(MINIMAL, settings).steps == 3
        return
    with pytest.raises(ConfigError) as caught:
        load_config(MINIMAL, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "missing.yaml")
    for text, problem in (("a: [", "not valid YAML"), ("- 1", "mapping of sections"), ("{}", "student is required")):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ConfigError, match=problem) as caught:
            load_config(path)
        assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("student: {model: a}\nsteps: 3\nsteps: 4\n")
    with pytest.raises(ConfigError, match="'steps' is given twice"):
        load_config(path)


def test_a_configuration_file_can_execute_nothing(tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"student: !!python/object/apply:os.mkdir [{str(tmp_path / 'made')!r}]")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)
    assert not (tmp_path / "made").exists()


LAUGHS = "\n".join(f"    a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'ha'}]" for n in range(30))
MERGES = "\n".join(f"    m{n}: &m{n} {{{f'<<: [*m{n - 1}, *m{n - 1}]' if n else 'a: 1'}}}" for n in range(60))
DAMAGED = {
    "an alias for millions": f"student: {{model: a}}\nenv:\n  id: x\n  options:\n{LAUGHS}",
    "merges for millions": f"student: {{model: a}}\nenv:\n  id: x\n  options:\n{MERGES}",
    "a value that holds itself": "student: {model: a}\nenv: &a {id: x, options: *a}",
    "deep nesting": "a: " + "[" * 5000 + "]" * 5000,
    "a huge number": "student: {model: a}\nsteps: " + "1" * 5000,
    "a date that is none": "student: {model: a}\nsteps: 2001-99-99",
    "a tag that does not fit": "student: {model: a}\nsteps: !!bool maybe",
    "a timestamp that is none": "student: {model: a}\nsteps: !!timestamp x",
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_what_yaml_chokes_on_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="is not valid YAML") as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_aliases_are_read(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("student: {model: a}\nenv: {id: x, options: {a: &a {k: 1}, b: *a, c: {<<: *a, l: 2}}}\n")
    assert load_config(path).env.options == {"a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "l": 2}}


YAML_PIECES = (
    "student: ", "env: ", "steps: ", "{", "}", "[", "]", "- ", "\n", "  ", "&a ", "*a", "<<: ", "? ", ": ", "!!int ",
    "!!timestamp ", "!!python/name:os.system ", "!!set ", "1:2:3", "2001-01-32", "0o9", ".inf", "|", ">", "'", '"', "#",
    "%TAG ! x\n", "---\n", "\ufeff", "a", "model",
)  # fmt: skip


@given(text=st.lists(st.sampled_from(YAML_PIECES) | st.text(max_size=3), max_size=30).map("".join))
def test_any_file_is_a_configuration_or_refused_in_one_line(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8", errors="replace")
    problem = ""
    try:
        load_config(path)
    except ConfigError as error:
        problem = str(error)
    assert len(problem.splitlines()) <= 1


def test_a_setting_can_execute_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_setting(f"student=!!python/object/apply:os.mkdir [{str(tmp_path / 'made')!r}]")
    assert not (tmp_path / "made").exists()


def test_schema_documents_itself() -> None:
    assert set(TrainConfig.model_fields) >= {"env", "student", "teacher", "credit", "rollout", "learner", "evaluation"}
