"""Sequences that share prefixes: computed together they give what they give alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

from ovd_gym.llm.prefix_tree import FAMILIES, PackedModel, pack

SEQUENCES = [
    [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16],
    [5, 6, 7, 8, 9, 10, 11, 12, 13, 20, 21],
    [5, 6, 7, 8, 30],
    [5, 6, 7, 8],  # begins others
    [5, 6, 7, 8, 30],  # the same again
    [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50],
    [60],
]
TOGETHER = 12 + 2 + 1 + 11 + 1
"""Tokens of SEQUENCES with everything shared."""


def tiny_of(kind: str, attention: str = "eager", **changes: Any) -> PreTrainedModel:
    """A random model of two layers of the kind, with a sliding window of 6 where the kind knows one."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "pad_token_id": 0,
    }  # fmt: skip
    if kind.startswith("gemma"):
        options["head_dim"] = 8
    if FAMILIES.get(kind) == "window":
        options["sliding_window"] = 6
    if FAMILIES.get(kind) == "layers":
        options |= {"sliding_window": 6, "use_sliding_window": True}
        options["layer_types"] = ["sliding_attention", "full_attention"]
    config = AutoConfig.for_model(kind, **options | changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.eval()
    return model


def alone(model: PreTrainedModel, sequence: list[int]) -> torch.Tensor:
    """[N, V] log-probabilities of a pass of its own."""
    with torch.no_grad():
        logprobs: torch.Tensor = model(input_ids=torch.tensor([sequence])).logits[0].log_softmax(-1)
    return logprobs


def assert_equal_to_separate_passes(model: PreTrainedModel, packed: PackedModel) -> None:
    tokens = [3, 1, 90]
    following = packed.next_token_logprobs(SEQUENCES, tokens)
    starts = [1, 9, 4, 4, 5, 10, 1]
    inside = packed.token_logprobs(SEQUENCES, starts)
    hidden = packed.last_hidden(SEQUENCES)
    for i, (sequence, start) in enumerate(zip(SEQUENCES, starts, strict=True)):
        logprobs = alone(model, sequence)
        torch.testing.assert_close(following[i], logprobs[-1, tokens], atol=1e-4, rtol=0)
        expected = torch.stack([logprobs[t - 1, sequence[t]] for t in range(start, len(sequence))] or [logprobs[0, 0]])
        torch.testing.assert_close(inside[i], expected[: len(sequence) - start], atol=1e-4, rtol=0)
        with torch.no_grad():
            states = model.get_decoder()(input_ids=torch.tensor([sequence])).last_hidden_state
        torch.testing.assert_close(hidden[i], states[0, -1], atol=1e-4, rtol=0)


# The tree ---------------------------------------------------------------------------------------------------


def test_a_small_tree_by_hand() -> None:
    (tree,) = pack([[1, 2, 4], [1, 5], [1, 2, 3]], budget=10)
    assert tree.rows == [2, 0, 1]
    assert tree.ids == [1, 2, 3, 4, 5]
    assert tree.positions == [0, 1, 2, 2, 1]
    assert tree.paths == [[0, 1, 2], [0, 1, 3], [0, 4]]
    assert tree.visible().int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 0, 0, 0, 1],
    ]
    assert not tree.is_chain


WORDS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), max_size=12)


@settings(deadline=None)
@given(sequences=WORDS, budget=st.integers(0, 40))
def test_every_sequence_is_a_path_and_sees_only_itself(sequences: list[list[int]], budget: int) -> None:
    packs = pack(sequences, budget)
    assert sorted(row for tree in packs for row in tree.rows) == list(range(len(sequences)))
    for tree in packs:
        visible = tree.visible()
        for row, path in zip(tree.rows, tree.paths, strict=True):
            assert [tree.ids[node] for node in path] == sequences[row]
            assert [tree.positions[node] for node in path] == list(range(len(path)))
            assert visible[path[-1]].nonzero()[:, 0].tolist() == path
        assert len(tree.ids) <= budget or len({tuple(sequences[row]) for row in tree.rows}) == 1
        assert tree.is_chain == torch.equal(visible, torch.ones_like(visible).tril())


@settings(deadline=None)
@given(sequences=WORDS)
def test_without_a_limit_no_prefix_is_read_twice(sequences: list[list[int]]) -> None:
    prefixes = {tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)}
    assert sum(len(tree.ids) for tree in pack(sequences, budget=1000)) == len(prefixes)


def test_outputs_held_at_once_are_bounded() -> None:
    assert [tree.rows for tree in pack([[1, 2], [1, 3], [1, 4]], 100, outputs=[300, 212, 1])] == [[0, 1], [2]]
    assert [tree.rows for tree in pack([[1, 2], [1, 3]], 100, outputs=[9000, 1])] == [[0], [1]]


def test_an_empty_sequence_is_refused() -> None:
    with pytest.raises(ValueError, match="an empty token sequence"):
        pack([[1], []], 10)


# Models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_packed_equals_separate(kind: str) -> None:
    model = tiny_of(kind)
    packed = PackedModel(model)
    assert packed.separate is None
    assert_equal_to_separate_passes(model, packed)
    assert packed.tokens == 3 * TOGETHER


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("budget", [1, 14, 4096])
def test_with_fused_attention_and_any_budget(kind: str, budget: int) -> None:
    model = tiny_of(kind, "sdpa")
    packed = PackedModel(model, batch_tokens=budget)
    assert packed.separate is None
    assert_equal_to_separate_passes(model, packed)


def test_windows_matter_to_these_examples() -> None:
    wide, narrow = (tiny_of("mistral", sliding_window=window) for window in (128, 6))
    assert not torch.allclose(alone(wide, SEQUENCES[0]), alone(narrow, SEQUENCES[0]), atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("gpt2", {}, "not known to hold for models of kind 'gpt2'"),
        ("mamba", {}, "not known to hold for models of kind 'mamba'"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "bidirectional"),
    ],
)
def test_where_packing_is_not_known_to_hold_sequences_are_read_alone(
    kind: str, changes: dict[str, Any], why: str
) -> None:
    model = tiny_of(kind, **changes)
    packed = PackedModel(model)
    assert packed.separate is not None
    assert why in packed.separate
    following = packed.next_token_logprobs(SEQUENCES, [3, 1])
    for row, sequence in zip(following, SEQUENCES, strict=True):
        torch.testing.assert_close(row, alone(model, sequence)[-1, [3, 1]], atol=1e-4, rtol=0)
    assert packed.tokens == sum(len(each) for each in {tuple(sequence) for sequence in SEQUENCES})


def test_a_model_that_ignores_its_mask_is_found_out(tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = tiny.forward

    def careless(attention_mask: Any = None, **inputs: Any) -> Any:
        return forward(**inputs)

    monkeypatch.setattr(tiny, "forward", careless)
    packed = PackedModel(tiny)
    assert packed.separate is not None
    assert "differ from separate ones" in packed.separate


def test_attention_that_takes_no_mask(tiny: LlamaForCausalLM) -> None:
    tiny.config._attn_implementation = "flash_attention_2"
    assert "load the model with 'sdpa'" in str(PackedModel(tiny).separate)


def test_nothing_to_read_and_starts_out_of_range(tiny: LlamaForCausalLM) -> None:
    packed = PackedModel(tiny)
    assert packed.next_token_logprobs([], [1, 2]).shape == (0, 2)
    assert packed.token_logprobs([], []) == []
    assert packed.last_hidden([]).shape == (0, 32)
    assert packed.tokens == 0
    for start in (0, 3):
        with pytest.raises(ValueError, match="a start has to lie in"):
            packed.token_logprobs([[1, 2]], [start])


@pytest.mark.slow
def test_a_real_model_reads_the_same_packed() -> None:
    from ovd_gym.llm.models import load_model

    model, tokenizer = load_model("SmolLM2-135M-Instruct", device="cpu")
    texts = ["The capital of France is", "The capital of Spain is", "The capital of France is Paris, and that of"]
    sequences = [tokenizer(text * 20)["input_ids"] for text in texts]
    packed = PackedModel(model)
    following = packed.next_token_logprobs(sequences, range(1000))
    for row, sequence in zip(following, sequences, strict=True):
        torch.testing.assert_close(row, alone(model, sequence)[-1, :1000], atol=1e-3, rtol=0)
    assert packed.tokens < sum(map(len, sequences))
