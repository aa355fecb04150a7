"""Models from scratch: a tokenizer and a Llama with random weights, small enough to try an environment or a loop with.

>>> tokenizer = byte_tokenizer()
>>> tokenizer.decode(tokenizer("añb").input_ids)
'añb'
>>> tiny_llama(tokenizer, hidden_size=32, intermediate_size=64).num_parameters()
28864
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.llm.models import quiet

__all__ = ["END", "byte_tokenizer", "learned_tokenizer", "save_model", "tiny_llama", "tokenizer_of"]

END = "<|end|>"
"""The text of the one special token; a turn may end with it."""
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.03,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte, and one for the end: every text is some tokens and comes back from them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return tokenizer_of(core)


def learned_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Byte pairs learned from ``texts``, the end included in ``vocab_size``. Digits stand alone."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return tokenizer_of(core)


def tokenizer_of(core: Tokenizer) -> PreTrainedTokenizerFast:
    """``core`` as transformers wants it, with :data:`END` as its end and padding."""
    core.add_special_tokens([END])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)  # type: ignore[no-untyped-call]


def tiny_llama(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **shape: Any) -> LlamaForCausalLM:
    """A Llama over the tokens of ``tokenizer``, with weights drawn with ``seed``.

    Args:
        tokenizer: its end token ends a turn of the model.
        seed: the same one gives the same weights; the global generators stay as they are.
        shape: fields of ``transformers.LlamaConfig``; without them it is two layers, 128 wide.
    """
    config = LlamaConfig(
        **(SHAPE | {"vocab_size": len(tokenizer), "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id} | shape)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save_model(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: str | Path) -> None:
    """Write both as a transformers folder; the tokenizer last, so that a folder that has one is complete."""
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
