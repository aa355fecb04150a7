"""Models from scratch: any text comes back, the same seed gives the same weights, and a saved one trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.llm.models import load_model
from ovd_gym.llm.tiny import END, byte_tokenizer, learned_tokenizer, save_model, tiny_llama

BYTES, LEARNED = byte_tokenizer(), learned_tokenizer(["answer: yes\n", "answer: no\n"] * 4, vocab_size=270)


@given(st.text())
def test_every_text_comes_back(text: str) -> None:
    for tokenizer in (BYTES, LEARNED):
        ids = tokenizer(text, split_special_tokens=True).input_ids
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.eos_token_id not in ids


def test_frequent_text_becomes_few_tokens_and_digits_stand_alone() -> None:
    assert 257 < len(LEARNED) <= 270
    assert len(LEARNED("answer: no\n").input_ids) < len("answer: no\n")
    assert [LEARNED.decode([i]) for i in LEARNED("1921").input_ids] == ["1", "9", "2", "1"]


@pytest.mark.parametrize("tokenizer", [BYTES, LEARNED])
def test_a_seed_gives_weights_and_touches_no_global_generator(tokenizer: PreTrainedTokenizerFast) -> None:
    before = torch.get_rng_state()
    first, same, other = (tiny_llama(tokenizer, seed, hidden_size=16).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_saved_model_is_loaded_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_llama(BYTES, num_hidden_layers=1)
    save_model(model, BYTES, tmp_path)
    assert capfd.readouterr() == ("", "")  # no bar of transformers' own
    loaded, tokenizer = load_model(str(tmp_path))
    assert isinstance(loaded, LlamaForCausalLM)
    assert (loaded.config.num_hidden_layers, loaded.generation_config.eos_token_id) == (1, BYTES.eos_token_id)
    assert tokenizer.eos_token == tokenizer.pad_token == END
    assert all(torch.equal(weight, model.state_dict()[key]) for key, weight in loaded.state_dict().items())
