"""What `ovd-gym explain` says is what the run would do."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from ovd_gym.cli import app
from ovd_gym.config_files import load_config
from ovd_gym.errors import ConfigError
from ovd_gym.explain import data_flow, estimate


def test_sizes_are_those_of_the_model(tiny_folder: Path) -> None:
    config = load_config(
        {"student": {"model": str(tiny_folder), "max_turn_tokens": 10}, "env": {"options": {"max_turns": 3}}},
        {"learner.lora_rank": 0, "rollout.tasks_per_step": 2, "rollout.group_size": 4},
    )
    found = estimate(config)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder)
    assert found.parameters == found.trained == sum(p.numel() for p in model.parameters())
    assert found.weights == found.parameters * (4 + 4 + 8)
    assert found.sampled == 2 * 4 * 3 * 10
    assert (
        found.cache == 8 * 512 * 2 * 2 * 2 * 8 * 4
    )  # episodes, its 512 positions, k and v, layers, heads, size, bytes
    assert found.seconds > 0
    fewer = config.model_copy(update={"rollout": config.rollout.model_copy(update={"max_rows": 2})})
    assert estimate(fewer).cache == found.cache / 4


def test_adapters_are_counted(tiny_folder: Path) -> None:
    found = estimate(load_config({"student": {"model": str(tiny_folder)}, "learner": {"lora_rank": 4}}))
    assert 0 < found.trained < found.parameters


def test_what_saves_memory_is_counted(tiny_folder: Path) -> None:
    tree = {"student": {"model": str(tiny_folder)}, "learner": {"lora_rank": 4}}
    plain, leaner = (
        estimate(load_config(tree, laid))
        for laid in ({}, {"student.quantization": "4bit", "learner.gradient_checkpointing": True})
    )
    assert leaner.activations < plain.activations
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)  # q and o, k and v, the three of the MLP; two layers
    assert plain.weights - leaner.weights == pytest.approx(linear * (4 - 4.127 / 8), abs=1)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"learner": {"gradient_checkpointing": True}}, "layers computed twice"),
        ({"credit": {"arm": "grpo"}}, "does not learn from them"),
        ({"credit": {"arm": "ovd"}, "demonstrator": {"policy": "a:b"}}, "give way to demonstrations"),
        ({"feedback": {"when": "retry"}}, "helped"),
    ],
)
def test_the_flow_is_that_of_the_arm(tree: dict[str, object], words: str) -> None:
    assert words in "\n".join(data_flow(load_config({"student": {"model": "m"}, **tree})))


def test_the_command(tiny_folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(f"student: {{model: {tiny_folder}}}\n")
    shown = CliRunner().invoke(app, ["explain", str(config), "--set", "rollout.group_size=4"])
    assert shown.exit_code == 0
    assert "32 (8 tasks x 4)" in shown.output
    assert "group_size: 4" in shown.output
    refused = CliRunner().invoke(app, ["explain", str(config), "--set", "learner.clip_low=0.1"])
    assert isinstance(refused.exception, ConfigError)
    assert "no effect" in str(refused.exception)
