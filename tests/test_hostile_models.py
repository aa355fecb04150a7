"""A model folder is data from somewhere: loading it runs no code, whatever it holds."""

from __future__ import annotations

import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from ovd_gym.config_files import load_config
from ovd_gym.errors import ConfigError
from ovd_gym.explain import explain
from ovd_gym.llm.models import load_model, load_tokenizer

HOSTILE = "import pathlib\npathlib.Path({mark!r}).write_text('ran')\n"


def with_code(folder: Path, file: str, auto_map: dict[str, str], mark: Path) -> None:
    """Make ``file`` of ``folder`` ask for code that leaves ``mark`` behind when it is imported."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map, "model_type": "hostile"}))
    (folder / "hostile.py").write_text(HOSTILE.format(mark=str(mark)))


def test_code_that_comes_with_a_model_is_not_run(tiny_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = copied(tiny_folder, tmp_path / "model"), tmp_path / "mark"
    with_code(folder, "config.json", {"AutoConfig": "hostile.C", "AutoModelForCausalLM": "hostile.M"}, mark)
    with pytest.raises(ConfigError, match="cannot load model"):
        load_model(str(folder))
    assert not mark.exists()


def test_code_that_comes_with_a_tokenizer_is_not_run(tiny_folder: Path, tmp_path: Path) -> None:
    folder, mark = copied(tiny_folder, tmp_path / "model"), tmp_path / "mark"
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "hostile.T"]}}
    path.write_text(json.dumps({**settings, "tokenizer_class": "Hostile"}))
    (folder / "hostile.py").write_text(HOSTILE.format(mark=str(mark)))
    with suppress(ConfigError):  # transformers may fall back on a class of its own; that is as good as a refusal
        load_tokenizer(str(folder))
    assert not mark.exists()


class Payload:
    """What a pickle can do when it is read."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (os.environ["OVD_GYM_TEST_MARK"],)


def test_weights_in_a_pickle_are_refused(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, mark = copied(tiny_folder, tmp_path / "model"), tmp_path / "mark"
    monkeypatch.setenv("OVD_GYM_TEST_MARK", str(mark))
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_model(str(folder))
    assert not mark.exists()


def test_even_honest_weights_in_a_pickle_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = copied(tiny_folder, tmp_path / "model")
    model, _ = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        load_model(str(folder))


def test_adapters_in_a_pickle_are_refused(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark, folder = tmp_path / "mark", tmp_path / "adapters"
    monkeypatch.setenv("OVD_GYM_TEST_MARK", str(mark))
    folder.mkdir()
    for file in tiny_folder.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(tiny_folder), "target_modules": ["q_proj"], "r": 2}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    torch.save({"base_model.model.lm_head.lora_A.weight": Payload()}, folder / "adapter_model.bin")
    with pytest.raises(ConfigError, match=r"no adapter_model.safetensors in it"):
        load_model(str(folder))
    assert not mark.exists()


def test_explaining_a_configuration_runs_no_code_of_its_model(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, mark = copied(tiny_folder, tmp_path / "model"), tmp_path / "mark"
    with_code(folder, "config.json", {"AutoConfig": "hostile.C"}, mark)
    with suppress(Exception):  # what it makes of such a folder does not matter here
        explain(load_config({"student": {"model": str(folder)}}), Console(file=io.StringIO()))
    assert not mark.exists()


def copied(source: Path, target: Path) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target
