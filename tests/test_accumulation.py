"""What is shared, recomputed, split or tried again changes no gradient."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from ovd_gym.accumulation import out_of_memory
from ovd_gym.batch import Batch, pack
from ovd_gym.config import LearnerConfig
from ovd_gym.credit import Credit
from ovd_gym.errors import TrainingStopped
from ovd_gym.forward import checkpointing, predicting
from ovd_gym.learner import Learner
from ovd_gym.llm.decoder import Decoder
from ovd_gym.records import Step, Task, Trajectory
from ovd_gym.sharing import Sharing, micro_batches

FULL = LearnerConfig(lora_rank=0, learning_rate=1e-3)


def batch_of(*rows: tuple[Sequence[int], Sequence[int]]) -> Batch:
    """Rows of (prompt, sampled), each with an advantage of its own."""
    trajectories = [
        Trajectory(
            id=str(i),
            group_id="g",
            task=Task(id="t", question="?", answers=("1",)),
            steps=(Step(text="x", start=len(prompt), end=len(prompt) + len(sampled)),),
            token_ids=(*prompt, *sampled),
            logprobs=(*[0.0] * len(prompt), *[-5.0] * len(sampled)),
            reward=0.0,
            status="terminated",
        )
        for i, (prompt, sampled) in enumerate(rows)
    ]
    credits = [Credit(trajectory_id=t.id, advantages=(0.5 - i % 4,)) for i, t in enumerate(trajectories)]
    return pack(trajectories, credits)


def grouped(common: int, leads: Sequence[int], samples: int, rest: int) -> Batch:
    """``samples`` rows for each of ``leads`` prompts: ``common`` tokens that all share, then some of their own."""
    rng = random.Random(0)
    start = [rng.randrange(200) for _ in range(common)]
    prompts = [[*start, 200 + i, *(rng.randrange(200) for _ in range(n - 1))] for i, n in enumerate(leads)]
    sizes = [1 + (rest + k) % (rest + 1) for k in range(samples)]
    rows = [(prompt, [rng.randrange(200) for _ in range(size)]) for prompt in prompts for size in sizes]
    return batch_of(*rows)


GROUPS = grouped(12, (9, 5, 1), 3, 4)
NO_BEGINNING = grouped(0, (9, 12), 4, 3)
ONE_PROMPT = grouped(12, (4,), 5, 6)
ALONE = batch_of(([1, 2], [3]), ([4, 5, 6], [7, 8]), ([9], [10]))


@pytest.mark.parametrize(
    ("batch", "shared", "tokens"),
    [
        (GROUPS, "leads", 12 + 3 * 8 + 9 * 6),
        (NO_BEGINNING, "leads", 2 * 11 + 8 * 5),
        (ONE_PROMPT, "common", 15 + 5 * 8),
        (ALONE, "nothing", 3 * 5),
    ],
)
def test_what_rows_begin_with_is_computed_once(batch: Batch, shared: str, tokens: int) -> None:
    sharing = Sharing.of(batch)
    assert (sharing.best, sharing.tokens) == (shared, tokens)


@pytest.mark.parametrize("batch", [GROUPS, NO_BEGINNING, ONE_PROMPT, ALONE])
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_sharing_and_recomputing_change_no_state_and_no_gradient(
    tiny: LlamaForCausalLM, batch: Batch, recomputed: bool, attention: str
) -> None:
    tiny.set_attn_implementation(attention)
    parameters = list(tiny.requires_grad_(True).parameters())
    decoder = Decoder(tiny)
    rows = [batch.rows([i]) for i in range(len(batch))]
    plain = torch.cat([decoder.hidden(row.token_ids_BT)[0, :-1][row.mask_BT[0, 1:]] for row in rows])
    weights_ND = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad((plain * weights_ND).sum(), parameters)
    with checkpointing(decoder) if recomputed else nullcontext():
        hidden_ND, targets_N = predicting(decoder, batch)
        found = torch.autograd.grad((hidden_ND * weights_ND).sum(), parameters)
    assert torch.equal(targets_N, batch.token_ids_BT[batch.mask_BT])
    assert torch.allclose(hidden_ND, plain, atol=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-4 * float(b.abs().max()))


def test_a_row_sees_nothing_of_the_others(tiny: LlamaForCausalLM) -> None:
    """Whatever stands in one row, the states of the others stay as they are, bit for bit."""
    decoder = Decoder(tiny.requires_grad_(False))
    changed = GROUPS.token_ids_BT.clone()
    changed[0, -3:] = 7  # the last tokens of the longest row, all its own
    other = Batch(changed, *[getattr(GROUPS, name) for name in list(Batch.__dataclass_fields__)[1:]])
    mine, theirs = predicting(decoder, GROUPS)[0], predicting(decoder, other)[0]
    first = int(GROUPS.mask_BT[0].sum())
    assert not torch.equal(mine[:first], theirs[:first])
    assert torch.equal(mine[first:], theirs[first:])


def test_a_row_beyond_the_models_positions_is_refused(tiny: LlamaForCausalLM) -> None:
    """Shared or not, its last tokens would get probabilities that no sampler draws with."""
    batch = batch_of(([1] * 500, [2] * 12), ([1] * 500, [2] * 13))
    assert len(predicting(Decoder(tiny), batch.rows([0]))[0]) == 12
    with pytest.raises(TrainingStopped, match="a trajectory of 513 tokens, but LlamaForCausalLM has positions for 512"):
        predicting(Decoder(tiny), batch)


def test_threads_do_not_decide_the_last_bits_of_a_gradient(tiny: LlamaForCausalLM) -> None:
    """A resumed run ends with the same bits; so what sixteen rows add to one prompt is added up in one order."""
    batch, threads = grouped(10, (390,), 16, 4), torch.get_num_threads()
    parameters = list(tiny.requires_grad_(True).parameters())
    decoder = Decoder(tiny)
    try:
        torch.set_num_threads(4)
        found = [torch.autograd.grad(predicting(decoder, batch)[0].square().sum(), parameters) for _ in range(12)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("budget", [1, 40, 70, 10_000])
def test_micro_batches_compute_no_more_than_they_may(budget: int) -> None:
    pieces = list(micro_batches(GROUPS, budget))
    assert sorted(tuple(ids[:n]) for piece in pieces for ids, n in _ids(piece)) == sorted(
        tuple(ids[:n]) for ids, n in _ids(GROUPS)
    )
    assert all(len(piece) == 1 or Sharing.of(piece).tokens <= budget for piece in pieces)


def _ids(batch: Batch) -> list[tuple[list[int], int]]:
    return list(zip(batch.token_ids_BT.tolist(), batch.lengths_B.tolist(), strict=True))


def test_groups_stay_together_where_that_computes_less() -> None:
    """Long prompts and short answers: cut by length, every piece would compute all prompts."""
    pieces = list(micro_batches(grouped(0, (60, 60, 60, 60), 4, 3), 90))
    assert [len(piece) for piece in pieces] == [4] * 4
    assert all(len(Sharing.of(piece).leads) == 1 for piece in pieces)


# Out of memory ------------------------------------------------------------------------------------------


class Narrow(Learner):
    """A learner on a machine that cannot hold the backward pass of more than so many rows."""

    most = 2
    error: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    attempts = 0

    def _policy_loss(self, batch: Batch, old_N: Any, size: Any) -> Any:
        self.attempts += 1
        loss, logprobs_N, tally = super()._policy_loss(batch, old_N, size)
        if len(batch) > self.most:
            # The head's gradient arrives before the failure: what it has added has to be forgotten.
            next(iter(self.parameters.values())).grad = torch.full_like(next(iter(self.parameters.values())), 99.0)
            raise self.error
        return loss, logprobs_N, tally


def trained(model: LlamaForCausalLM, kind: type[Learner], **options: Any) -> tuple[Learner, list[dict[str, float]]]:
    twin = LlamaForCausalLM(model.config)
    twin.load_state_dict(model.state_dict())
    learner = kind(Decoder(twin.eval().requires_grad_(True)), FULL.model_copy(update=options), 4)
    return learner, [learner.update(GROUPS, step) for step in range(2)]


@pytest.mark.parametrize("epochs", [1, 2])
def test_what_does_not_fit_is_halved_and_trains_the_same(tiny: LlamaForCausalLM, epochs: int) -> None:
    whole, expected = trained(tiny, Learner, epochs=epochs)
    narrow, metrics = trained(tiny, Narrow, epochs=epochs)
    assert expected[0]["out_of_memory"] == 0
    assert metrics[0]["out_of_memory"] >= 3  # 9 rows, at most 2 at a time
    assert metrics[1]["out_of_memory"] < metrics[0]["out_of_memory"]  # it has learned from it
    for mine, theirs in zip(metrics, expected, strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    for name, parameter in whole.parameters.items():
        assert torch.allclose(parameter, narrow.parameters[name], atol=1e-5)


def test_a_row_that_does_not_fit_stops_the_run_with_advice(
    tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Narrow, "most", 0)
    with pytest.raises(TrainingStopped, match=r"does not fit into memory: set learner\.gradient_checkpointing"):
        trained(tiny, Narrow)


def test_other_errors_are_not_mistaken_for_it(tiny: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Narrow, "error", RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained(tiny, Narrow)
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)  # torch's own message on a CPU
    assert out_of_memory(caught.value)
    assert out_of_memory(MemoryError())
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
