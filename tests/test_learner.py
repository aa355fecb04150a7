"""The learner against plain references on a tiny model."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from ovd_gym.agents.student import Student, make_chat
from ovd_gym.batch import pack
from ovd_gym.config import DistillationConfig, LearnerConfig
from ovd_gym.credit import Credit, CreditConfig, assign_credit
from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError, TrainingStopped
from ovd_gym.learner import Learner, Size, learning_rate, trainable_model
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.records import Critique, Score, Trajectory
from ovd_gym.rollout import rollout
from ovd_gym.sharing import micro_batches

FULL = LearnerConfig(lora_rank=0, learning_rate=1e-3)


@pytest.fixture
def trajectories(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adders: Callable[[int], list[ToolEnv]]
) -> list[Trajectory]:
    agent = Student(TransformersLM(Decoder(tiny), tokenizer), make_chat(tokenizer, "plain"), 6)
    envs = adders(6)
    return rollout(envs[0].tasks[:2], envs, agent, group_size=3)


def credits_of(trajectories: list[Trajectory], scale: float = 0.25) -> list[Credit]:
    """Made-up advantages: a random model earns none."""
    return [
        Credit(trajectory_id=t.id, advantages=tuple(scale * ((i + k) % 5 - 2) for k in range(len(t.steps))))
        for i, t in enumerate(trajectories)
    ]


def plain_logprobs(model: LlamaForCausalLM, trajectory: Trajectory) -> torch.Tensor:
    ids = torch.tensor([trajectory.token_ids])
    logprobs = torch.log_softmax(model(ids).logits[0, :-1].float(), -1)
    picked = logprobs[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
    return picked[torch.tensor(trajectory.mask[1:])]


def test_logprobs_and_gradients_equal_the_plain_ones(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    """The shared prefix computed once, the padding and the chunks change nothing."""
    batch = pack(trajectories, credits_of(trajectories))
    learner = Learner(Decoder(tiny.requires_grad_(True)), FULL, 1)
    mine, _ = learner.logprobs(batch)
    reference = torch.cat([plain_logprobs(tiny, t) for t in trajectories])
    assert torch.allclose(mine, reference, atol=1e-5)
    parameters = list(tiny.parameters())
    for a, b in zip(
        torch.autograd.grad(mine.square().mean(), parameters),
        torch.autograd.grad(reference.square().mean(), parameters),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-5)


def test_one_update_equals_the_policy_gradient_by_hand(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    credits = credits_of(trajectories)
    batch = pack(trajectories, credits)
    tiny.requires_grad_(True)
    loss = torch.zeros(())
    for trajectory, credit in zip(trajectories, credits, strict=True):
        sizes = [s.end - s.start for s in trajectory.steps]
        advantages = torch.tensor(credit.advantages).repeat_interleave(torch.tensor(sizes))
        loss = loss - (plain_logprobs(tiny, trajectory) * advantages).sum()
    (loss / batch.num_trained).backward()
    expected = {n: p.grad.clone() for n, p in tiny.named_parameters() if p.grad is not None}
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected.values()))
    tiny.zero_grad()
    learner = Learner(Decoder(tiny), FULL.model_copy(update={"micro_batch_tokens": 300}), 1)
    metrics = learner.update(batch, 0)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-3)
    assert metrics["logprob_gap"] < 1e-4
    assert metrics["weight_mean"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["trained_tokens"] == batch.num_trained
    assert metrics["clip_fraction"] == 0.0


def test_only_sampled_tokens_are_trained(trajectories: list[Trajectory]) -> None:
    batch = pack(trajectories, credits_of(trajectories, scale=1.0))
    for row, trajectory in enumerate(trajectories):
        for position, sampled in enumerate(trajectory.mask):
            assert bool(batch.mask_BT[row, position]) == sampled
            assert sampled or float(batch.advantages_BT[row, position]) == 0.0
        assert not batch.mask_BT[row, len(trajectory.token_ids) :].any()


@pytest.mark.parametrize("budget", [1, 100, 250, 10_000])
def test_micro_batches_hold_every_row_once(trajectories: list[Trajectory], budget: int) -> None:
    batch = pack(trajectories, credits_of(trajectories))
    pieces = list(micro_batches(batch, budget))
    assert sum(map(len, pieces)) == len(batch)
    assert sum(piece.num_trained for piece in pieces) == batch.num_trained
    assert all(len(piece) == 1 or piece.token_ids_BT.numel() <= budget for piece in pieces)


def test_accumulation_equals_one_pass(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    batch = pack(trajectories, credits_of(trajectories))
    losses = []
    for budget in (1, 10_000):
        learner = Learner(Decoder(tiny.requires_grad_(True)), FULL.model_copy(update={"micro_batch_tokens": budget}), 1)
        for piece in micro_batches(batch, budget):
            learner._policy_loss(piece, None, Size.of(batch))[0].backward()
        losses.append([p.grad.clone() for p in tiny.parameters() if p.grad is not None])
        tiny.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*losses, strict=True))


def test_zero_advantage_rows_are_skipped_without_changing_the_loss(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory]
) -> None:
    credits = credits_of(trajectories)
    credits[0] = Credit(trajectory_id=credits[0].trajectory_id, advantages=(0.0,) * len(trajectories[0].steps))
    batch = pack(trajectories, credits)
    learner = Learner(Decoder(tiny.requires_grad_(True)), FULL, 1)
    informative = batch.informative()
    assert informative is not None
    assert len(informative) == len(batch) - 1
    with_all = learner._policy_loss(batch, None, Size.of(batch))[0]
    without = learner._policy_loss(informative, None, Size.of(batch))[0]
    assert float(with_all.detach()) == pytest.approx(float(without.detach()), abs=1e-7)


def test_nothing_to_learn_changes_nothing(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    before = {n: p.clone() for n, p in tiny.named_parameters()}
    learner = Learner(Decoder(tiny.requires_grad_(True)), FULL, 1)
    metrics = learner.update(pack(trajectories, credits_of(trajectories, scale=0.0)), 0)
    assert metrics["trained_tokens"] == 0
    assert all(torch.equal(p, before[n]) for n, p in tiny.named_parameters())


def test_no_sampled_token_is_an_error(trajectories: list[Trajectory]) -> None:
    empty = [t.model_copy(update={"steps": ()}) for t in trajectories]
    with pytest.raises(TrainingStopped, match="nothing to train on"):
        pack(empty, [Credit(trajectory_id=t.id, advantages=()) for t in empty])


def test_later_epochs_are_clipped(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    config = FULL.model_copy(update={"epochs": 8, "learning_rate": 0.02, "clip_low": 0.05, "clip_high": 0.05})
    learner = Learner(Decoder(tiny.requires_grad_(True)), config, 1)
    assert learner.update(pack(trajectories, credits_of(trajectories)), 0)["clip_fraction"] > 0


@pytest.mark.parametrize("rank", [0, 4])
def test_kl_starts_at_zero_and_holds_the_policy_back(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory], rank: int
) -> None:
    batch = pack(trajectories, credits_of(trajectories))
    config = LearnerConfig(lora_rank=rank, learning_rate=5e-3, kl_weight=0.1)
    learner = Learner(Decoder(trainable_model(tiny, config, 0)), config, 10)
    kls = [learner.update(batch, step)["kl"] for step in range(3)]
    assert kls[0] == pytest.approx(0.0, abs=1e-6)
    assert kls[2] > 1e-4


def test_reinforced_tokens_become_likelier(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    batch = pack(trajectories, credits_of(trajectories, scale=1.0))
    advantages = batch.advantages_BT[batch.mask_BT]
    config = LearnerConfig(lora_rank=4, learning_rate=1e-2)
    learner = Learner(Decoder(trainable_model(tiny, config, 0)), config, 10)
    before = learner.logprobs(batch)[0].detach()
    for step in range(5):
        learner.update(batch, step)
    after = learner.logprobs(batch)[0].detach()
    assert float(((after - before) * advantages).sum()) > 0.5


def test_merging_adapters_changes_the_cost_and_nothing_else(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory]
) -> None:
    batch = pack(trajectories, credits_of(trajectories, scale=1.0))
    config = LearnerConfig(lora_rank=4, learning_rate=1e-2)
    learner = Learner(Decoder(trainable_model(tiny, config, 0)), config, 10)
    untrained = learner.logprobs(batch)[0].detach()
    learner.update(batch, 0)
    before = {n: p.clone() for n, p in learner.decoder.model.named_parameters()}
    trained = learner.logprobs(batch)[0].detach()
    with learner.decoder.merged(), torch.no_grad():
        merged = learner.logprobs(batch)[0]
    assert torch.allclose(merged, trained, atol=1e-5)
    assert not torch.allclose(merged, untrained, atol=1e-3)
    assert all(torch.equal(p, before[n]) for n, p in learner.decoder.model.named_parameters())
    assert torch.equal(learner.logprobs(batch)[0].detach(), trained)


def test_a_merge_that_fails_leaves_the_weights(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LearnerConfig(lora_rank=4, learning_rate=1e-2)
    learner = Learner(Decoder(trainable_model(tiny, config, 0)), config, 10)
    learner.update(pack(trajectories, credits_of(trajectories, scale=1.0)), 0)
    before = {n: p.clone() for n, p in learner.decoder.model.named_parameters()}
    calls = iter(range(100))

    def fail_at_the_fifth(self: Any, adapter: str) -> torch.Tensor:
        if next(calls) == 4:
            raise MemoryError
        return torch.ones(1)

    monkeypatch.setattr("peft.tuners.lora.Linear.get_delta_weight", fail_at_the_fifth)
    with pytest.raises(MemoryError), learner.decoder.merged():
        raise AssertionError("unreachable")
    assert all(torch.equal(p, before[n]) for n, p in learner.decoder.model.named_parameters())


def test_bfloat16_with_adapters_samples_what_it_trains(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adders: Callable[[int], list[ToolEnv]]
) -> None:
    config = LearnerConfig(lora_rank=4, learning_rate=1e-2)
    decoder = Decoder(trainable_model(tiny.bfloat16(), config, 0))
    agent = Student(TransformersLM(decoder, tokenizer), make_chat(tokenizer, "plain"), 6)
    envs = adders(4)
    learner = Learner(decoder, config, 10)
    for step in range(2):
        sampled = rollout(envs[0].tasks[:2], envs, agent, group_size=2, seed=(step,))
        metrics = learner.update(pack(sampled, credits_of(sampled, scale=1.0)), step)
        assert metrics["logprob_gap"] < 0.2  # eight bits of mantissa


@pytest.mark.parametrize("kind", ["eager", "sliding"])
def test_other_attention_is_exact_too(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, adders: Callable[[int], list[ToolEnv]], kind: str
) -> None:
    if kind == "eager":
        model: Any = LlamaForCausalLM.from_pretrained(tiny_folder, attn_implementation="eager")
    else:
        shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = MistralConfig(vocab_size=len(tokenizer), num_key_value_heads=2, sliding_window=250, **shape)  # type: ignore[arg-type]
        model = MistralForCausalLM(config)
    lm = TransformersLM(Decoder(model), tokenizer)
    assert lm.max_context == (512 if kind == "eager" else 250)
    envs = adders(4)
    sampled = rollout(envs[0].tasks[:2], envs, Student(lm, make_chat(tokenizer, "plain"), 20), group_size=2)
    batch = pack(sampled, credits_of(sampled))
    with torch.no_grad():
        logprobs, _ = Learner(lm.decoder, FULL, 1).logprobs(batch)
    assert float((logprobs - batch.rollout_logprobs_BT[batch.mask_BT]).abs().max()) < 1e-4
    assert max(len(t.token_ids) for t in sampled) <= lm.max_context


SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    "config",
    [
        GraniteConfig(logits_scaling=8.0, initializer_range=0.3, num_key_value_heads=2, **SHAPE),  # type: ignore[arg-type]
        CohereConfig(logit_scale=0.25, initializer_range=0.3, num_key_value_heads=2, **SHAPE),  # type: ignore[arg-type]
        Gemma2Config(final_logit_softcapping=2.0, head_dim=8, initializer_range=0.3, num_key_value_heads=2, **SHAPE),  # type: ignore[arg-type]
    ],
    ids=lambda config: config.model_type,
)
def test_scaled_and_capped_logits_are_sampled_and_trained_as_the_model_has_them(
    config: Any, tokenizer: PreTrainedTokenizerFast, adders: Callable[[int], list[ToolEnv]]
) -> None:
    config.vocab_size, config.pad_token_id, config.eos_token_id = len(tokenizer), None, None
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    decoder = Decoder(model)
    ids = torch.arange(30)[None]
    with torch.no_grad():
        raw = decoder.head.linear(decoder.hidden(ids, use_cache=False))
        assert torch.allclose(decoder.head(decoder.hidden(ids, use_cache=False)), model(ids).logits, atol=1e-5)
        assert not torch.allclose(raw, model(ids).logits, atol=0.1)
    envs = adders(4)
    agent = Student(TransformersLM(decoder, tokenizer), make_chat(tokenizer, "plain"), 6)
    sampled = rollout(envs[0].tasks[:2], envs, agent, group_size=2)
    metrics = Learner(Decoder(model.requires_grad_(True)), FULL, 1).update(pack(sampled, credits_of(sampled)), 0)
    assert metrics["logprob_gap"] < 1e-4
    assert metrics["grad_norm"] > 0


def test_models_that_are_no_plain_decoders_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    with pytest.raises(ConfigError):
        TransformersLM(Decoder(MambaForCausalLM(MambaConfig(**shape))), tokenizer)  # type: ignore[arg-type]


def test_a_bad_gradient_stops_the_run_and_leaves_the_weights(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory]
) -> None:
    before = {n: p.clone() for n, p in tiny.named_parameters()}
    batch = pack(trajectories, credits_of(trajectories))
    broken = replace(batch, advantages_BT=batch.advantages_BT * math.inf)
    with pytest.raises(TrainingStopped, match="gradient norm"):
        Learner(Decoder(tiny.requires_grad_(True)), FULL, 1).update(broken, 0)
    assert all(torch.equal(p, before[n]) for n, p in tiny.named_parameters())


@pytest.mark.parametrize("teacher", ["weightless", "all invalid"])
def test_losses_equal_grpo_bit_for_bit(tiny: LlamaForCausalLM, trajectories: list[Trajectory], teacher: str) -> None:
    """Arm score-reward without weights, or with a teacher that never answers, is arm grpo."""
    rewarded = [t.model_copy(update={"reward": float(i % 2)}) for i, t in enumerate(trajectories)]
    score = Score.of(7) if teacher == "weightless" else Score.invalid("timeout")
    critiques = [
        Critique(trajectory_id=t.id, teacher="t", steps=(score,) * len(t.steps), trajectory=score) for t in rewarded
    ]
    bare = CreditConfig(trajectory_weight=0.0, step_weight=0.0)
    runs = []
    for config in (CreditConfig(arm="grpo"), bare if teacher == "weightless" else CreditConfig()):
        model = LlamaForCausalLM(tiny.config)
        model.load_state_dict(tiny.state_dict())
        learner = Learner(Decoder(model.eval()), FULL, 3)
        batch = pack(rewarded, assign_credit(rewarded, critiques, config))
        losses = [learner.update(batch, step)["loss"] for step in range(3)]
        runs.append((losses, [p.detach() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert runs[0][0][0] != runs[0][0][2]


def test_schedules_by_hand() -> None:
    cosine = LearnerConfig(learning_rate=1.0, schedule="cosine", warmup_steps=2)
    assert [learning_rate(cosine, s, 10) for s in (0, 1, 2, 6, 10)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.0])
    linear = LearnerConfig(learning_rate=1.0, schedule="linear")
    assert [learning_rate(linear, s, 4) for s in range(4)] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert learning_rate(LearnerConfig(learning_rate=0.3), 99, 100) == 0.3


@pytest.mark.parametrize("mode", ["shaped", "as-student", "nll"])
def test_a_demonstrators_tokens_are_trained_apart(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory], mode: Any
) -> None:
    """By hand: the student's tokens by the policy gradient, the teacher's by their own term, nothing else."""
    taught = trajectories[0].model_copy(
        update={
            "steps": tuple(s.model_copy(update={"source": "teacher"}) for s in trajectories[0].steps),
            "logprobs": (0.0,) * len(trajectories[0].token_ids),
        }
    )
    both = [taught, trajectories[1]]
    credits = [Credit(trajectory_id=t.id, advantages=(0.5,) * len(t.steps)) for t in both]
    batch = pack(both, credits)
    tiny.requires_grad_(True)
    teacher, student = plain_logprobs(tiny, taught), plain_logprobs(tiny, trajectories[1])
    term = {
        "shaped": -(teacher.exp() / (teacher.exp() + 0.1) * 0.5).sum(),
        "as-student": -(torch.exp(teacher - teacher.detach()) * 0.5).sum(),
        "nll": -0.1 * teacher.sum(),
    }[mode]
    total = (term - (torch.exp(student - student.detach()) * 0.5).sum()) / batch.num_trained
    expected = torch.autograd.grad(total, list(tiny.parameters()))
    learner = Learner(Decoder(tiny), FULL.model_copy(update={"teacher_tokens": mode}), 1)
    loss, _, tally = learner._policy_loss(batch, None, Size.of(batch))
    mine = torch.autograd.grad(loss, list(tiny.parameters()))
    assert float(loss.detach()) == pytest.approx(float(total.detach()), rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(mine, expected, strict=True))
    assert tally["tokens"] == trajectories[1].num_sampled  # metrics speak of what was sampled
    assert tally["weight_max"] == pytest.approx(1.0, abs=1e-4)


def test_nll_trains_demonstrations_without_any_advantage(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory]
) -> None:
    taught = [
        t.model_copy(update={"steps": tuple(s.model_copy(update={"source": "teacher"}) for s in t.steps)})
        for t in trajectories
    ]
    batch = pack(taught, credits_of(taught, scale=0.0))
    for mode, trained in (("nll", batch.num_trained), ("shaped", 0)):
        config = FULL.model_copy(update={"teacher_tokens": mode})
        metrics = Learner(Decoder(tiny.requires_grad_(True)), config, 1).update(batch, 0)
        assert metrics["trained_tokens"] == trained


@pytest.mark.parametrize("aggregation", ["token-mean", "sequence-mean", "fixed-length"])
def test_micro_batches_and_skipped_rows_change_no_aggregation(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory], aggregation: Any
) -> None:
    credits = credits_of(trajectories)
    credits[0] = Credit(trajectory_id=credits[0].trajectory_id, advantages=(0.0,) * len(trajectories[0].steps))
    batch = pack(trajectories, credits)
    norms = []
    for budget in (1, 10_000):
        config = FULL.model_copy(
            update={"aggregation": aggregation, "fixed_length": 20, "micro_batch_tokens": budget, "learning_rate": 1e-9}
        )
        norms.append(Learner(Decoder(tiny.requires_grad_(True)), config, 1).update(batch, 0)["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_an_entropy_bonus_raises_the_entropy(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    batch = pack(trajectories, credits_of(trajectories, scale=0.0))
    config = LearnerConfig(lora_rank=4, learning_rate=1e-2, entropy_weight=1.0)
    learner = Learner(Decoder(trainable_model(tiny, config, 0)), config, 10)
    entropies = [learner.update(batch, step)["trained_entropy"] for step in range(5)]
    assert entropies[-1] > entropies[0] + 0.05


def test_kl_in_the_reward_holds_the_policy_back_like_kl_in_the_loss(
    tiny_folder: Path, trajectories: list[Trajectory]
) -> None:
    """The expected gradients agree (k1 as reward, k2 as loss); here on one batch, token by token."""
    batch = pack(trajectories, credits_of(trajectories))
    norms = {}
    for kind, place in (("k1", "reward"), ("k2", "loss")):
        model = LlamaForCausalLM.from_pretrained(tiny_folder)
        assert isinstance(model, LlamaForCausalLM)
        config = FULL.model_copy(update={"kl_weight": 0.5, "kl_estimator": kind, "kl_in": place, "learning_rate": 1e-9})
        learner = Learner(Decoder(model.eval().requires_grad_(True)), config, 1)
        assert learner._frozen is not None
        with torch.no_grad():  # move the reference away, so that there is a KL
            for p in learner._frozen.model.parameters():
                p.mul_(1.05)
        norms[kind] = learner.update(batch, 0)["grad_norm"]
    assert norms["k1"] == pytest.approx(norms["k2"], rel=1e-4)


@pytest.mark.parametrize("variant", ["full", "top-k", "sampled"])
def test_distillation_brings_the_student_to_the_teacher(
    tiny: LlamaForCausalLM, tiny_folder: Path, trajectories: list[Trajectory], variant: Any
) -> None:
    other = LlamaForCausalLM.from_pretrained(tiny_folder)
    assert isinstance(other, LlamaForCausalLM)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.2)
    batch = pack(trajectories, credits_of(trajectories))
    learner = Learner(Decoder(tiny.requires_grad_(True)), FULL, 30)
    config = DistillationConfig(model="-", variant=variant)
    seen = [learner.distill(batch, step, Decoder(other), config)["divergence"] for step in range(20)]
    assert abs(seen[-1]) < 0.7 * abs(seen[0])


@pytest.mark.parametrize(("variant", "factor"), [("sampled", 1.5), ("full", 1.0)])
def test_distillation_of_sampled_tokens_corrects_for_who_sampled_them(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory], variant: Any, factor: float
) -> None:
    """Tokens that came a third less often than the student draws them count half as much again."""
    teacher = Decoder(deepcopy(tiny).requires_grad_(False))
    with torch.no_grad():
        for p in teacher.model.parameters():
            p.mul_(1.2)
    batch = pack(trajectories, credits_of(trajectories))
    rarer = replace(batch, rollout_logprobs_BT=batch.rollout_logprobs_BT - math.log(1.5) * batch.mask_BT)
    config = DistillationConfig(model="-", variant=variant)
    norms = [
        Learner(Decoder(deepcopy(tiny).requires_grad_(True)), FULL, 1).distill(b, 0, teacher, config)["grad_norm"]
        for b in (batch, rarer)
    ]
    assert norms[1] == pytest.approx(factor * norms[0], rel=1e-4)


def test_a_student_like_its_teacher_has_nothing_to_learn(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory]
) -> None:
    batch = pack(trajectories, credits_of(trajectories))
    learner = Learner(Decoder(tiny.requires_grad_(True)), FULL, 1)
    twin = Decoder(deepcopy(tiny).requires_grad_(False))
    for variant in ("full", "top-k", "sampled"):
        metrics = learner.distill(batch, 0, twin, DistillationConfig(model="-", variant=variant))
        assert metrics["divergence"] == pytest.approx(0.0, abs=1e-3)
        twin = Decoder(deepcopy(learner.decoder.model).requires_grad_(False))


def test_adapters_over_weights_in_four_bits(
    tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, adders: Callable[[int], list[ToolEnv]]
) -> None:
    """They sample what they train, move, and the reference is the model without them."""
    pytest.importorskip("bitsandbytes", reason="weights in 4 bits need bitsandbytes")
    model, _ = load_model(str(tiny_folder), four_bit=True, device="cpu")
    config = LearnerConfig(lora_rank=4, learning_rate=1e-2, kl_weight=0.01)
    decoder = Decoder(trainable_model(model, config, 0))
    packed = {n: p.clone() for n, p in decoder.model.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 2 * 7  # the linear layers of both blocks
    agent = Student(TransformersLM(decoder, tokenizer), make_chat(tokenizer, "plain"), 6)
    envs = adders(4)
    learner = Learner(decoder, config, 10)
    for step in range(3):
        sampled = rollout(envs[0].tasks[:2], envs, agent, group_size=2, seed=(step,))
        metrics = learner.update(pack(sampled, credits_of(sampled, scale=1.0)), step)
        assert metrics["logprob_gap"] < 1e-4
    assert metrics["kl"] > 1e-5
    assert all(torch.equal(p, packed[n]) for n, p in decoder.model.named_parameters() if n in packed)
