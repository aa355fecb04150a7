"""The cache of many sequences: what is read through it is what a plain forward pass gives, whoever comes and goes."""

from __future__ import annotations

import gc
import random
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.shelf import PADDING_TOKENS, PASS_TOKENS, Shelf, passes


@torch.no_grad()
def test_sequences_come_grow_and_go(tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ovd_gym.llm.shelf.PASS_TOKENS", 40)  # several passes at a time
    monkeypatch.setattr("ovd_gym.llm.shelf.PADDING_TOKENS", 5)
    draw, decoder = random.Random(0), Decoder(tiny)
    shelf, feed = Shelf(decoder), decoder.hidden
    held: dict[int, list[int]] = {}
    fed = hidden = 0

    def counted(ids: torch.Tensor, **kwargs: object) -> torch.Tensor:
        nonlocal hidden
        hidden += 1
        return feed(ids, **kwargs)

    monkeypatch.setattr(decoder, "hidden", counted)
    stems = [[draw.randrange(200) for _ in range(n)] for n in (3, 12, 12)]
    for _ in range(25):
        fresh = {(*draw.choice(stems)[: draw.randint(1, 12)], draw.randrange(200)) for _ in range(3)}
        placed = shelf.place(sorted(fresh))
        parts = dict(placed)
        assert not parts.keys() & held.keys()
        fed += sum(map(len, fresh)) - sum(map(len, parts.values()))
        growing = draw.sample(sorted(held), min(3, len(held)))
        parts |= {slot: [draw.randrange(200) for _ in range(draw.randint(1, 9))] for slot in growing}
        held |= {slot: list(prompt) for (slot, _), prompt in zip(placed, sorted(fresh), strict=True)}
        for slot in growing:
            held[slot] += parts[slot]
        slots = draw.sample(sorted(parts), len(parts))
        read = shelf.feed(slots, [parts[slot] for slot in slots])
        for slot, found in zip(slots, read, strict=True):
            expected = feed(torch.tensor([held[slot]]), use_cache=False)[0, -1]
            assert torch.allclose(found, expected, atol=1e-4)
        for slot in draw.sample(sorted(held), len(held) // 2):
            shelf.release(slot)
            del held[slot]
    assert fed > 100  # tokens of prompts that were taken from other sequences
    assert hidden > 40


@torch.no_grad()
def test_a_prompt_that_was_read_before_is_read_from_its_last_token_on(tiny: LlamaForCausalLM) -> None:
    shelf = Shelf(Decoder(tiny))
    (slot, rest), (other, more) = shelf.place([(1, 2, 3, 4), (1, 2, 3, 9)])
    assert (list(rest), list(more)) == ([4], [9])  # what both share is there already
    shelf.feed([slot, other], [rest, more])
    assert shelf.twins(slot, 2) == [2, 3]
    ((again, rest),) = shelf.place([(1, 2, 3, 4)])
    assert (again, list(rest)) == (4, [4])
    shelf.release(other)
    ((reused, rest),) = shelf.place([(1, 2, 3, 9, 7)])
    assert (reused, list(rest)) == (other, [7])  # the slot of the one it goes on from


@given(st.lists(st.integers(1, 9000), min_size=1, max_size=40))
def test_passes_cover_everything_and_waste_little(lengths: list[int]) -> None:
    groups = list(passes(lengths))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        tokens, padded = sum(lengths[i] for i in group), len(group) * max(lengths[i] for i in group)
        assert padded <= PASS_TOKENS or len(group) == 1
        assert padded - tokens <= max(PADDING_TOKENS, tokens)


@torch.no_grad()
def test_what_a_rollout_cached_is_gone_when_it_ends(tiny: LlamaForCausalLM) -> None:
    """Without waiting for a collection of cycles, which may come many rollouts later."""
    gc.collect()
    gc.disable()
    try:
        shelf = Shelf(Decoder(tiny))
        ((slot, ids),) = shelf.place([[1, 2, 3]])
        shelf.feed([slot], [ids])
        held = weakref.ref(shelf._cache._layers[0].keys)
        assert held() is not None
        del shelf
        assert held() is None
    finally:
        gc.enable()
