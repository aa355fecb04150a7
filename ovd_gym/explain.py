"""What a configuration will do, before it does it: data flow, batch, and an estimate of memory and time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import yaml
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM

from ovd_gym.accumulation import token_budget
from ovd_gym.agents.student import make_chat
from ovd_gym.build import make_envs
from ovd_gym.config import TrainConfig
from ovd_gym.envs.base import ToolEnv
from ovd_gym.learner import trainable_model
from ovd_gym.llm.models import load_tokenizer, resolve_model
from ovd_gym.placement import ScaleConfig

__all__ = ["Estimate", "data_flow", "estimate", "explain"]

_FLOWS = {
    "grpo": ("the environment's reward, relative to the group", "policy gradient"),
    "score-reward": (
        "the teacher's trajectory score mixed into the reward, its step scores as a step term",
        "policy gradient",
    ),
    "ovd": (
        "trajectories scored below selection.theta give way to demonstrations; the environment's reward",
        "policy gradient over the mixed group",
    ),
    "ovd-prefix": (
        "trajectories are cut at their first step below selection.theta and the demonstrator goes on; the "
        "environment's reward",
        "policy gradient over the mixed group",
    ),
    "imitation": ("the demonstrator's episodes that are right", "negative log-likelihood"),
    "token-opd": ("the teacher model's next-token distributions at the student's tokens", "divergence per token"),
}
OBSERVATION = 128
"""Tokens that an observation is taken to have."""
_BYTES = {"float32": 4, "bfloat16": 2}
_NF4 = 4.127 / 8
"""Bytes of a weight in 4 bits, its part of the scales included (QLoRA, arXiv 2305.14314, section 3)."""


class Estimate(NamedTuple):
    """Of one training step on this machine, if every episode takes all its turns."""

    parameters: int
    trained: int
    """Parameters."""
    weights: int
    """Bytes: weights, gradients and optimiser state."""
    activations: int
    """Bytes of one micro-batch's backward pass, with its chunk of logits."""
    cache: int
    """Bytes of the keys and values of all episodes at their longest."""
    sampled: int
    """Tokens sampled at most."""
    seconds: float
    """At the matrix speed measured here."""


def explain(config: TrainConfig, console: Console) -> None:
    """Print what ``config`` means. What has no effect has been refused when it was loaded."""
    tree = config.model_dump(mode="json")
    console.print("[bold]Configuration, defaults included[/bold]")
    console.print(Syntax(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), "yaml", background_color="default"))
    console.print(f"[bold]Data flow of arm {config.credit.arm}[/bold]")
    for line in data_flow(config):
        console.print(f"  {line}", highlight=False, markup=False)
    table = Table("one training step", "", title="Effective batch and estimates", title_justify="left")
    for name, value in _rows(config, estimate(config)):
        table.add_row(name, value)
    console.print(table)
    console.print(
        f"Estimates are for episodes that take all their turns and write all they may, with the first task's prompt "
        f"and observations of {OBSERVATION} tokens.",
        highlight=False,
    )


def data_flow(config: TrainConfig) -> list[str]:
    """One line per stage of a training step."""
    rollout, arm = config.rollout, config.credit.arm
    actor = "the demonstrator" if arm == "imitation" else "the student"
    signal, loss = _FLOWS[arm]
    if config.credit.estimator == "gae":
        signal = "a reward at each step's last token; advantages from a value head (GAE)"
    lines = [
        f"rollout    {rollout.tasks_per_step} tasks x {rollout.group_size} episodes of {config.env.id}, by {actor}",
        f"critique   {config.teacher.name}: one score per step and one per trajectory"
        if config.teacher
        else "critique   none",
        f"credit     {signal}",
        f"update     {loss}, {config.learner.epochs} optimiser step(s) on "
        + (f"LoRA adapters of rank {config.learner.lora_rank}" if config.learner.lora_rank else "all weights")
        + (" over weights in 4 bits" if config.student.quantization else "")
        + (", layers computed twice (gradient_checkpointing)" if config.learner.gradient_checkpointing else ""),
    ]
    if config.feedback is not None:
        lines.insert(
            1, f"feedback   the teacher speaks to the student ({config.feedback.when}); such episodes are helped"
        )
    if config.teacher is not None and arm in ("grpo", "imitation", "token-opd"):
        lines[-3] += " (recorded; this arm does not learn from them)"
    if config.scale is not None:
        lines.append("scale      " + ", ".join(_processes(config.scale)))
    return lines


def _processes(scale: ScaleConfig) -> Iterator[str]:
    """Who is there besides the trainer's process."""
    if scale.workers:
        yield f"{scale.workers} worker(s) play"
    if scale.teachers:
        yield f"{scale.teachers} worker(s) judge"
    if scale.learners > 1:
        yield f"{scale.learners} processes hold the trained weights in shards"


def estimate(config: TrainConfig) -> Estimate:
    """Sizes from the model's own configuration, without loading its weights; speed from a short measurement.

    Raises ConfigError for a model that cannot be found.
    """
    shape = AutoConfig.from_pretrained(resolve_model(config.student.model), trust_remote_code=False)
    with torch.device("meta"):
        made: Any = AutoModelForCausalLM
        model = trainable_model(made.from_config(shape), config.learner, config.seed)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = (p.numel() for name, p in model.named_parameters() if ".base_layer.weight" in name)
    packed = sum(frozen) if config.student.quantization else 0
    size = _BYTES[config.student.dtype]
    episodes = config.rollout.tasks_per_step * config.rollout.group_size
    prompt, turns = _opening(config)
    written = turns * config.student.max_turn_tokens
    longest = config.student.max_context or shape.max_position_embeddings
    context = min(longest, prompt + written + (turns - 1) * OBSERVATION)
    sampled = episodes * min(longest, written)
    heads = getattr(shape, "num_key_value_heads", None) or shape.num_attention_heads
    head_dim = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    per_token = shape.num_hidden_layers * (12 * shape.hidden_size + 3 * shape.intermediate_size) * size
    if config.learner.gradient_checkpointing:  # what goes into each layer, and all of one
        per_token = per_token // shape.num_hidden_layers + shape.num_hidden_layers * shape.hidden_size * size
    logits = 3 * 4 * config.learner.logit_chunk * shape.vocab_size
    read = (
        episodes * max(0, context - prompt) + config.rollout.tasks_per_step * prompt
    )  # a prompt is computed once a task
    backward = (6 if config.learner.lora_rank == 0 else 4) + 2 * config.learner.gradient_checkpointing
    passes = 2 * read + backward * read * config.learner.epochs
    return Estimate(
        parameters,
        trained,
        int((parameters - packed) * size + packed * _NF4) + trained * (size + 8),
        per_token * max(token_budget(config.learner.micro_batch_tokens, _device(config)), context) + logits,
        min(episodes, config.rollout.max_rows) * context * 2 * shape.num_hidden_layers * heads * head_dim * size,
        sampled,
        passes * parameters / _flops(config),
    )


def _opening(config: TrainConfig) -> tuple[int, int]:
    """Tokens of the first task's prompt, and turns of an episode."""
    (env,) = make_envs(config.env, 1)
    world = cast(ToolEnv, env.unwrapped)
    try:
        world.reset(seed=0, options={"task_index": 0})
        chat = make_chat(load_tokenizer(config.student.model), config.student.chat, config.student.plain)
        return len(chat.opening(world.opening())), world.max_turns
    finally:
        env.close()


def _rows(config: TrainConfig, found: Estimate) -> Iterator[tuple[str, str]]:
    episodes = config.rollout.tasks_per_step * config.rollout.group_size
    yield "episodes", f"{episodes} ({config.rollout.tasks_per_step} tasks x {config.rollout.group_size})"
    yield "tokens sampled", f"{found.sampled:,}"
    yield "parameters", f"{found.parameters:,}, of which {found.trained:,} are trained"
    yield "weights, gradients, optimiser", _size(found.weights)
    yield "keys and values while sampling", _size(found.cache)
    yield "activations of a micro-batch", _size(found.activations)
    yield (
        "time",
        f"{found.seconds:,.0f} s a step, {found.seconds * config.steps / 60:,.0f} min for {config.steps}",
    )


def _size(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.1f} GiB"


def _device(config: TrainConfig) -> torch.device:
    return torch.device(config.student.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _flops(config: TrainConfig) -> float:
    """Floating-point operations per second of a matrix product of the student's kind."""
    device = _device(config)
    dtype: Any = getattr(torch, config.student.dtype)
    a = torch.randn(512, 1024, device=device, dtype=dtype)
    b = torch.randn(1024, 1024, device=device, dtype=dtype)
    began, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - began < 0.2:
        float((a @ b)[0, 0])  # waits for a GPU
        count += 1
    return count * 2 * 512 * 1024 * 1024 / (time.perf_counter() - began)
