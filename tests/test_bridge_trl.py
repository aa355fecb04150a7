"""TRL trains in our environments: its own GRPOTrainer, on a tiny model that has learned to call one tool."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import get_json_schema

from ovd_gym import Score, Teacher, ToolEnv, View, tool
from ovd_gym.bridges.trl import environments
from ovd_gym.errors import ConfigError, InfrastructureError
from ovd_gym.records import Task

WORLD = f"{__name__}-v0"
CALL = '<tool_call>\n{"name": "answer", "arguments": {"text": "3"}}\n</tool_call>'


class Weather(ToolEnv):
    """Says what it is told."""

    @tool
    def forecast(self, city: str, days: int = 1) -> str:
        """Tell the weather.

        Args:
            city: where.
            days: how many days ahead.
        """
        if city == "Atlantis":
            raise InfrastructureError("the station is under water")
        return f"{city}: rain in {days} days <tool_call>"

    def grade(self, task: Task, answer: str) -> float:
        return float(answer == task.answers[0])


@pytest.fixture(autouse=True)
def _registered() -> None:
    import gymnasium as gym

    tasks = [Task(id=str(i), question=f"{i}?", answers=(str(i),)) for i in range(4)]
    if WORLD not in gym.registry:
        gym.register(WORLD, lambda **options: Weather(**{"tasks": tasks, "max_turns": 3, **options}))


class Seven(Teacher):
    def score(self, view: View) -> Score:
        return Score.of(7)


def test_every_tool_is_a_method_with_the_schema_trl_reads() -> None:
    episode = environments(WORLD)()
    assert get_json_schema(episode.forecast)["function"] == {
        "name": "forecast",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "where."},
                "days": {"type": "integer", "description": "how many days ahead."},
            },
            "required": ["city"],
        },
        "return": {"type": "string"},
    }
    public = {name for name in vars(type(episode)) if not name.startswith("_")}
    assert public == {"forecast", "answer"}


def test_an_episode_is_played_and_rewarded() -> None:
    episode = environments(WORLD)()
    episode.reset(task_index=2, prompt="not read")
    assert episode.forecast(city="Rome") == "Rome: rain in 1 days &lt;tool_call&gt;"
    assert episode.forecast(city="Rome", days="soon").startswith("Error: forecast: days:")
    assert episode.get_reward() == 0.0
    assert episode.answer(text="2") == "2"
    assert episode.get_reward() == 1.0
    assert episode.answer(text="2") == "The episode is over."
    assert episode.get_reward() == 1.0


def test_turns_run_out() -> None:
    episode = environments(WORLD)()
    episode.reset(task_index=0)
    assert [episode.forecast(city="Rome")[:4] for _ in range(4)] == ["Rome", "Rome", "Rome", "The "]
    assert episode.get_reward() == 0.0


def test_an_outage_is_no_reward_and_no_zero() -> None:
    episode = environments(WORLD)()
    episode.reset(task_index=0)
    assert episode.forecast(city="Atlantis") == "Error: the station is under water"
    assert episode.answer(text="0") == "The episode is over."
    assert episode.get_reward() is None
    episode.reset(task_index=0)
    assert episode.get_reward() == 0.0


def test_a_teacher_takes_part_in_the_reward() -> None:
    episode = environments(WORLD, teacher=Seven(), lam=0.4)()
    episode.reset(task_index=1)
    episode.answer(text="1")
    assert episode.get_reward() == pytest.approx(0.6 + 0.4 * 7 / 9)


def test_options_that_have_no_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="name a teacher"):
        environments(WORLD, lam=0.3)
    with pytest.raises(ConfigError, match="action_format has no effect"):
        environments(WORLD, action_format="line")
    with pytest.raises(ConfigError, match="unknown environment"):
        environments("ovd_gym/Nowhere-v0")
    with pytest.raises(ConfigError, match="is not an"):
        environments("CartPole-v1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")  # TRL's own
def test_grpo_trainer_trains_in_it(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trl: Any = pytest.importorskip("trl", reason="ovd_gym.bridges.trl is for TRL: pip install trl")

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    tokenizer.chat_template = files("trl").joinpath("chat_templates", "qwen2_5.jinja").read_text()
    world = environments(WORLD)
    model = says(CALL, LlamaForCausalLM.from_pretrained(tiny_folder), tokenizer, world)
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_steps=1,
        max_completion_length=len(CALL) + 60,
        max_tool_calling_iterations=1,
        temperature=0.2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trainer = trl.GRPOTrainer(
        model, args=args, train_dataset=world.dataset(), environment_factory=world, processing_class=tokenizer
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["tools/call_frequency"] > 0.5
    assert "rewards/Weather/mean" in logged


def says(text: str, model: Any, tokenizer: Any, world: Any) -> Any:
    """``model``, overfitted to answer the world's first question with ``text``."""
    episode = world()
    question = world.dataset(1)[0]["prompt"]
    prompt = tokenizer.apply_chat_template(
        question, tools=[episode.answer, episode.forecast], add_generation_prompt=True, tokenize=False
    )
    ids = torch.tensor([tokenizer(prompt + text + "<|im_end|>").input_ids])
    labels = ids.clone()
    labels[:, : len(tokenizer(prompt).input_ids)] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
