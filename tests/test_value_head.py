"""PPO with a value head: advantages of action tokens alone, and a head that learns beside the student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym import learner as learner_module
from ovd_gym.agents.student import Student, make_chat
from ovd_gym.batch import Batch, pack
from ovd_gym.config import LearnerConfig, ValueConfig
from ovd_gym.credit import Credit, CreditConfig, assign_credit
from ovd_gym.envs.base import ToolEnv
from ovd_gym.learner import Learner, Size
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.losses import clipped_value_loss, explained_variance, gae, whiten
from ovd_gym.records import Step, Task, Trajectory
from ovd_gym.rollout import rollout
from ovd_gym.value_head import ValueHead, estimate

FULL = LearnerConfig(lora_rank=0, learning_rate=1e-3)
PLAIN = ValueConfig(whiten=False)
TASK = Task(id="t", question="?", answers=("1",))


# GAE ----------------------------------------------------------------------------------------------------


def defined(values: list[float], rewards: list[float], gamma: float, lam: float) -> list[float]:
    """arXiv 1506.02438, equation 16, term by term; nothing follows the last token."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, after, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** m * delta for m, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (1.0, 0.95), (0.99, 0.9), (0.9, 0.0)])
def test_gae_equals_its_definition(seed: int, gamma: float, lam: float) -> None:
    g = torch.Generator().manual_seed(seed)
    lengths = [7, 1, 30, 12]
    rows = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    values, rewards = (torch.randn(50, generator=g, dtype=torch.float64) for _ in "ab")
    reference = [
        advantage
        for v, r in zip(values.split(lengths), rewards.split(lengths), strict=True)
        for advantage in defined(v.tolist(), r.tolist(), gamma, lam)
    ]
    assert torch.allclose(gae(values, rewards, rows, gamma, lam), torch.tensor(reference, dtype=torch.float64))
    single = gae(values.float(), rewards.float(), rows, gamma, lam)
    assert single.tolist() == pytest.approx(reference, abs=1e-4)


def test_gae_by_hand() -> None:
    values, rewards, rows = torch.tensor([0.5, 0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0, 0, 1])
    # deltas: 0 + .5 * 0 - .5 = -.5; 1 + 0 - 0 = 1; 2 - 1 = 1
    assert gae(values, rewards, rows, 0.5, 0.5).tolist() == [-0.25, 1.0, 1.0]


def episode(name: str, observations: list[int], reward: float = 1.0) -> Trajectory:
    """A prompt of two tokens, then actions of three, with observations of so many tokens between them."""
    ids, steps = [1, 2], []
    for k in range(len(observations) + 1):
        steps.append(Step(text="x", start=len(ids), end=len(ids) + 3))
        ids += [10 + k, 11 + k, 12 + k]
        ids += [3] * (observations[k] if k < len(observations) else 0)
    return Trajectory(
        id=name, group_id="g", task=TASK, steps=tuple(steps), token_ids=tuple(ids),
        logprobs=(0.0,) * len(ids), reward=reward, status="terminated",
    )  # fmt: skip


def rewarded(observations: list[int]) -> Batch:
    """Two episodes of three steps, the first with these observations."""
    episodes = [episode("a", observations), episode("b", [4, 1], reward=0.0)]
    rewards = [(0.5, -0.25, 1.0), (0.0, 0.125, 0.0)]
    return pack(
        episodes,
        [Credit(trajectory_id=t.id, advantages=(0.0,) * 3, rewards=r) for t, r in zip(episodes, rewards, strict=True)],
    )


def estimated(batch: Batch, config: ValueConfig) -> Batch:
    """``batch`` with made-up values of its 18 action tokens."""
    values = torch.randn(18, generator=torch.Generator().manual_seed(0))
    return estimate([batch], [values], [batch.rewards_BT[batch.mask_BT]], config)[0][0]


@pytest.mark.parametrize("config", [ValueConfig(gamma=0.9, lam=0.8), ValueConfig(gamma=0.99, whiten=False)])
def test_an_observation_of_500_tokens_counts_as_much_as_one_of_none(config: ValueConfig) -> None:
    short, long = estimated(rewarded([0, 2]), config), estimated(rewarded([500, 2]), config)
    assert long.token_ids_BT.shape[1] - short.token_ids_BT.shape[1] >= 490
    for name in ("advantages_BT", "values_BT", "returns_BT"):
        one, other = (getattr(batch, name) for batch in (short, long))
        assert torch.equal(one[short.mask_BT], other[long.mask_BT])
        assert not other[~long.mask_BT].any()


def test_rewards_stand_at_the_last_token_of_their_step() -> None:
    batch = rewarded([2, 0])
    assert batch.rewards_BT[0].tolist() == [0, 0, 0, 0, 0.5, 0, 0, 0, 0, -0.25, 0, 0, 1.0, 0, 0, 0]
    assert not batch.values_BT.any()


def test_whitening_is_over_action_tokens_alone() -> None:
    batch = estimated(rewarded([500, 2]), ValueConfig())
    advantages = batch.advantages_BT[batch.mask_BT]
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(advantages.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    raw = estimated(rewarded([500, 2]), PLAIN)
    assert torch.equal(raw.returns_BT, batch.returns_BT)
    assert torch.equal(whiten(raw.advantages_BT[raw.mask_BT]), advantages)
    assert not whiten(torch.full((5,), 0.3)).any()


def test_a_truncated_episode_ends_like_any_other() -> None:
    whole = episode("a", [2])
    truncated = whole.model_copy(update={"status": "truncated"})
    config = CreditConfig(arm="grpo", estimator="gae")
    one, other = (estimated_alone(t, config) for t in (whole, truncated))
    assert torch.equal(one, other)


def estimated_alone(trajectory: Trajectory, config: CreditConfig) -> torch.Tensor:
    batch = pack([trajectory], assign_credit([trajectory], [], config))
    (filled,), _ = estimate([batch], [torch.arange(6.0)], [batch.rewards_BT[batch.mask_BT]], PLAIN)
    return filled.advantages_BT


def test_the_value_loss_by_hand() -> None:
    values, old = torch.tensor([0.5, 0.5, 0.1], requires_grad=True), torch.tensor([0.0, 0.0, 0.0])
    loss = clipped_value_loss(values, old, torch.tensor([1.0, 0.0, 1.0]), clip=0.2)
    # moved .5 towards 1, only .2 of it count: .8^2 / 2; moved away: the full error; within the clip: the plain error
    assert loss.tolist() == pytest.approx([0.32, 0.125, 0.405])
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert gradient.tolist() == pytest.approx([0.0, 0.5, -0.9])


def test_explained_variance_by_hand() -> None:
    returns = torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.zeros(4), returns) == 0.0
    assert explained_variance(1 - returns, returns) == -3.0
    assert explained_variance(returns, torch.full((4,), 0.3)) is None


# The head and the learner -------------------------------------------------------------------------------


@pytest.fixture
def trajectories(
    tiny: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, adders: Callable[[int], list[ToolEnv]]
) -> list[Trajectory]:
    """Two groups of three; every answer to the first question is right, none to the second."""
    agent = Student(TransformersLM(Decoder(tiny), tokenizer), make_chat(tokenizer, "plain"), 6)
    envs = adders(6)
    sampled = rollout(envs[0].tasks[:2], envs, agent, group_size=3)
    return [t.model_copy(update={"reward": float(t.task.id == sampled[0].task.id)}) for t in sampled]


def batch_of(trajectories: list[Trajectory]) -> Batch:
    return pack(trajectories, assign_credit(trajectories, [], CreditConfig(arm="grpo", estimator="gae")))


def test_the_head_expects_nothing_at_first_and_draws_no_random_number() -> None:
    before = torch.get_rng_state()
    head = ValueHead(8, ValueConfig(), torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    hidden = torch.randn(5, 8, dtype=torch.bfloat16)
    assert not head(hidden).any()
    torch.nn.init.normal_(head.weight)
    assert head(hidden).dtype == torch.float32
    assert torch.allclose(head(hidden), head(100 * hidden), atol=0.02)


def test_the_first_update_is_reinforce(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    """Values of zero and lambda 1: the advantage of every token is the return, and the student feels no value loss."""
    evenly = [Credit(trajectory_id=t.id, advantages=(t.reward or 0.0,) * len(t.steps)) for t in trajectories]
    start = {name: p.clone() for name, p in tiny.state_dict().items()}
    results = []
    for batch, value in ((batch_of(trajectories), PLAIN), (pack(trajectories, evenly), None)):
        tiny.load_state_dict(start)
        metrics = Learner(Decoder(tiny.requires_grad_(True)), FULL, 1, value).update(batch, 0)
        results.append((metrics["grad_norm"], [p.detach().clone() for p in tiny.parameters()]))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_only_hidden_states_that_predict_action_tokens_have_a_gradient(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(Decoder(tiny.requires_grad_(True)), FULL, 1, ValueConfig())
    assert learner.value is not None
    torch.nn.init.normal_(learner.value.weight, std=0.1)
    batch = batch_of(trajectories[:1])
    (filled,), _ = learner._estimated([batch], learner.value)
    plain, seen = Decoder.hidden, []

    def kept(self: Decoder, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(plain(self, *args, **kwargs))
        seen[-1].retain_grad()
        return seen[-1]

    monkeypatch.setattr(Decoder, "hidden", kept)
    learner._policy_loss(filled, None, Size.of(filled))[0].backward()
    (hidden,) = seen
    assert hidden.grad is not None
    touched = hidden.grad[0].ne(0).any(dim=-1)
    assert torch.equal(touched[:-1], batch.mask_BT[0, 1:])
    assert not touched[-1]


def test_micro_batches_change_nothing(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    start = {name: p.clone() for name, p in tiny.state_dict().items()}
    results = []
    for budget in (1, 10_000):
        tiny.load_state_dict(start)
        config = FULL.model_copy(update={"micro_batch_tokens": budget})
        learner = Learner(Decoder(tiny.requires_grad_(True)), config, 2, ValueConfig())
        rows = [learner.update(batch_of(trajectories), step) for step in range(2)]
        results.append([row[name] for row in rows for name in ("grad_norm", "value_loss", "explained_variance")])
    assert results[0] == pytest.approx(results[1], rel=1e-3, abs=1e-5)


def test_advantages_are_estimated_once_for_all_epochs(
    tiny: LlamaForCausalLM, trajectories: list[Trajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[object] = []

    def counted(*given: Any) -> Any:
        calls.append(given)
        return estimate(*given)

    monkeypatch.setattr(learner_module, "estimate", counted)
    config = FULL.model_copy(update={"epochs": 3})
    metrics = Learner(Decoder(tiny.requires_grad_(True)), config, 1, ValueConfig()).update(batch_of(trajectories), 0)
    assert len(calls) == 1
    assert metrics["clip_fraction"] >= 0


def test_the_head_learns_which_question_ends_well(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    """The random student's hidden states hardly tell the questions apart; its weights learn to, from the value loss."""
    config, value = FULL.model_copy(update={"learning_rate": 3e-3}), ValueConfig(learning_rate=5e-3, loss_weight=1.0)
    learner = Learner(Decoder(tiny.requires_grad_(True)), config, 40, value)
    batch = batch_of(trajectories)
    rows = [learner.update(batch, step) for step in range(40)]
    assert rows[0]["explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["explained_variance"] > 0.4  # the mean return alone explains none
    assert rows[-1]["value_loss"] < 0.3 * rows[0]["value_loss"]


def test_a_kl_in_the_reward_is_earned_token_by_token(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    config = FULL.model_copy(update={"kl_weight": 0.5, "kl_estimator": "k1", "kl_in": "reward"})
    learner = Learner(Decoder(tiny.requires_grad_(True)), config, 1, PLAIN)
    assert learner.value is not None
    assert learner._frozen is not None
    with torch.no_grad():  # move the reference away, so that there is a KL
        for p in learner._frozen.model.parameters():
            p.mul_(1.05)
    batch = batch_of(trajectories[:1])
    (filled,), _ = learner._estimated([batch], learner.value)
    kl_N = learner._kl(batch, learner.logprobs(batch)[0].detach())
    later_N = kl_N.flip(0).cumsum(0).flip(0)
    assert float(kl_N.abs().max()) > 1e-3
    assert torch.allclose(filled.advantages_BT[batch.mask_BT], 1.0 - 0.5 * later_N, atol=1e-5)


def test_the_heads_learning_rate_follows_the_schedule(tiny: LlamaForCausalLM, trajectories: list[Trajectory]) -> None:
    config = FULL.model_copy(update={"schedule": "linear"})
    learner = Learner(Decoder(tiny.requires_grad_(True)), config, 4, ValueConfig(learning_rate=0.01))
    assert {"value.weight", "value.bias"} <= learner.parameters.keys()
    learner.update(batch_of(trajectories), 2)
    assert [group["lr"] for group in learner.optimizer.param_groups] == pytest.approx([5e-4, 5e-3])
