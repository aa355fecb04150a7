"""vLLM in this process, played by transformers on a tiny model: the same readings, whatever goes wrong is a status."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import ChoiceModel, Prompt, make_choice_model

DIGITS = tuple("0123456789")
PROMPTS = [Prompt(system="Grade.", user=f"1 + {i}", prefill="SCORE: ") for i in range(3)]


class FakeLLM:
    """Answers like ``vllm.LLM`` (0.32) where its prefix cache holds blocks of 16 tokens."""

    made: dict[str, Any]
    params: Any
    broken = False

    def __init__(self, model: str, **options: Any) -> None:
        FakeLLM.made = options
        if "surprise" in options:
            raise TypeError("EngineArgs.__init__() got an unexpected keyword argument 'surprise'")
        if options.get("gpu_memory_utilization") == 0:
            raise RuntimeError("Engine core initialization failed.\nSee root cause above.")
        self._network: Any = AutoModelForCausalLM.from_pretrained(model)
        longest = options.get("max_model_len", self._network.config.max_position_embeddings)
        self.model_config = SimpleNamespace(dtype=torch.float32, max_model_len=longest)
        self._seen: set[tuple[int, ...]] = set()

    @torch.inference_mode()
    def generate(self, prompts: list[dict[str, list[int]]], params: Any, use_tqdm: bool = True) -> list[Any]:
        if FakeLLM.broken:
            raise RuntimeError("EngineCore encountered an issue.\nSee stack trace")
        assert not use_tqdm
        FakeLLM.params = params
        return [self._one(prompt["prompt_token_ids"], params) for prompt in prompts]

    def _one(self, ids: list[int], params: Any) -> Any:
        row = self._network(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        asked = {token: SimpleNamespace(logprob=float(row[token])) for token in params.logprob_token_ids}
        ends = [end for end in range(16, len(ids), 16) if tuple(ids[:end]) in self._seen]
        self._seen |= {tuple(ids[:end]) for end in range(16, len(ids), 16)}
        return SimpleNamespace(
            prompt_token_ids=ids,
            num_cached_tokens=max(ends, default=None),
            outputs=[SimpleNamespace(logprobs=[asked])],
        )


@pytest.fixture(autouse=True)
def fake_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeLLM, "broken", False)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(LLM=FakeLLM, SamplingParams=SimpleNamespace))


def vllm(folder: Path, **options: Any) -> ChoiceModel:
    return make_choice_model({"engine": "vllm", "model": str(folder), "min_mass": 0.0, **options})


def test_it_reads_what_transformers_reads(tiny_folder: Path) -> None:
    local = make_choice_model({"model": str(tiny_folder), "min_mass": 0.0, "device": "cpu"})
    model = vllm(tiny_folder, max_tokens=200)
    for reading, expected in zip(model.read(PROMPTS, DIGITS), local.read(PROMPTS, DIGITS), strict=True):
        assert reading.choice == expected.choice
        assert reading.probs == pytest.approx(expected.probs, abs=1e-5)
        assert reading.mass == pytest.approx(expected.mass, abs=1e-5)
    assert model.reserved == local.reserved
    assert model.reads_logits
    assert FakeLLM.made["enable_prefix_caching"]
    assert FakeLLM.made["logprobs_mode"] == "raw_logprobs"
    assert FakeLLM.made["trust_remote_code"] is False
    assert FakeLLM.made["load_format"] == "safetensors"
    assert FakeLLM.made["max_model_len"] == 201
    assert (FakeLLM.params.max_tokens, FakeLLM.params.temperature) == (1, 0.0)


def test_tokens_from_the_prefix_cache_are_not_counted(tiny_folder: Path) -> None:
    model = vllm(tiny_folder)
    model.read(PROMPTS[:1], DIGITS)
    first = model.usage()
    model.read(PROMPTS[:1], DIGITS)
    assert 0 < model.usage().prompt_tokens - first.prompt_tokens <= 16 < first.prompt_tokens
    assert (model.usage().requests, model.usage().completion_tokens) == (2, 2)


def test_a_long_prompt_is_over_budget_and_little_mass_no_choice(tiny_folder: Path) -> None:
    model = vllm(tiny_folder, max_tokens=100, min_mass=1.0)
    long = PROMPTS[0].model_copy(update={"user": "1" * 200})
    assert [reading.status for reading in model.read([PROMPTS[0], long], DIGITS)] == ["low_mass", "over_budget"]
    assert [model.fits(prompt) for prompt in (PROMPTS[0], long)] == [True, False]
    assert model.read([], DIGITS) == []


def test_an_engine_that_breaks_is_an_error(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = vllm(tiny_folder)
    monkeypatch.setattr(FakeLLM, "broken", True)
    readings = model.read(PROMPTS, DIGITS)
    assert [reading.status for reading in readings] == ["error"] * 3
    assert readings[0].text == "vLLM failed: RuntimeError: EngineCore encountered an issue. See stack trace"


def test_the_name_knows_the_weights(tiny_folder: Path, tmp_path: Path) -> None:
    assert vllm(tiny_folder).name == vllm(tiny_folder).name
    other = tmp_path / tiny_folder.name
    network = AutoModelForCausalLM.from_pretrained(tiny_folder)
    with torch.no_grad():
        network.model.norm.weight += 1
    network.save_pretrained(other)
    for path in tiny_folder.glob("tokenizer*"):
        (other / path.name).write_bytes(path.read_bytes())
    assert vllm(other).name != vllm(tiny_folder).name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_mass": 2.0}, "min_mass must be in"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"engine_options": {"dtype": "float16"}}, "options of vllm.LLM must not set dtype"),
        ({"engine_options": {"trust_remote_code": True}}, "options of vllm.LLM must not set trust_remote_code"),
        ({"engine_options": {"surprise": 1}}, "unexpected keyword argument 'surprise'"),
        ({"engine_options": {"gpu_memory_utilization": 0}}, "Engine core initialization failed."),
        ({"model": "no/such-folder/at-all"}, "no/such-folder/at-all"),
        ({"temperature": 1}, "unknown option of engine 'vllm'"),
    ],
)
def test_an_option_that_cannot_work_is_refused(tiny_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        vllm(tiny_folder, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_vllm_the_way_to_it_is_told(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"pip install 'ovd-gym\[vllm\]'"):
        vllm(tiny_folder)
