"""The configuration of a training run: one typed section per component. A key that would have no effect is refused."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from ovd_gym.config_rules import check, no_effect
from ovd_gym.credit import CreditConfig
from ovd_gym.health import HealthConfig
from ovd_gym.llm.engine_config import EngineConfig
from ovd_gym.placement import ScaleConfig
from ovd_gym.records import Record
from ovd_gym.schedule import Schedule
from ovd_gym.selection import SelectionConfig

__all__ = [
    "DemonstratorConfig",
    "DistillationConfig",
    "EnvConfig",
    "EvaluationConfig",
    "FeedbackConfig",
    "LearnerConfig",
    "PlainTemplate",
    "RolloutConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainConfig",
    "ValueConfig",
]


class EnvConfig(Record):
    """The world: a Gymnasium id (``module:id`` imports the module that registers it) and its arguments."""

    id: str = "ovd_gym/Math-v0"
    options: dict[str, JsonValue] = {}


class PlainTemplate(Record):
    """Layout of a plain-text conversation; ``{content}`` stands for the message.

    ``few_shot`` is put before everything, as it is; with an empty ``system`` it replaces the instructions. What
    surrounds ``{content}`` keeps an empty message from leaving the student nothing to go on from.
    """

    few_shot: str = ""
    system: str = "{content}\n\n"
    user: str = "Question: {content}\n"
    tool: str = "Result: {content}\n"
    turn_end: str = "\n"
    """Closes a turn that did not end with it by itself."""

    @model_validator(mode="after")
    def _placeholders(self) -> Self:
        for name in ("user", "tool", *(["system"] if self.system else [])):
            if getattr(self, name).count("{content}") != 1:
                raise ValueError(f"plain.{name} must hold {{content}} exactly once, got {getattr(self, name)!r}")
        # A turn may have ended with turn_end by itself, so that after it nothing but `tool` is left.
        if self.tool == "{content}":
            raise ValueError(
                "plain.tool must hold text besides {content}, such as '{content}\\n': an empty result would leave the "
                "student nothing to go on from"
            )
        if self.few_shot + self.system + self.user == "{content}":
            raise ValueError(
                "plain.user must hold text besides {content}, such as '{content}\\n', where few_shot and system are "
                "empty: an empty question would leave the student nothing to begin with"
            )
        return self


class StudentConfig(Record):
    """The student model and how it talks."""

    model: str
    """A local folder, an installed model package (``SmolLM2-135M-Instruct``), or a Hugging Face hub id."""
    chat: Literal["auto", "template", "plain"] = "auto"
    """``auto``: the model's chat template if it is prefix-preserving, else plain text."""
    plain: PlainTemplate | None = None
    """Layout of a plain-text conversation (``chat: plain``)."""
    max_turn_tokens: Annotated[int, Field(ge=1)] = 256
    max_context: Annotated[int, Field(ge=2)] | None = None
    """Tokens per episode; None takes what the model supports."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    quantization: Literal["4bit"] | None = None
    """Keep the frozen weights in 4 bits (NF4) under LoRA adapters, computing in ``dtype``: QLoRA (arXiv 2305.14314),
    through bitsandbytes. Made for GPUs; on a CPU it works, slowly."""
    device: str | None = None
    """None takes a GPU if there is one."""


class TeacherConfig(Record):
    """The critic: a known name, ``package.module:Class``, or an entry point of the group ``ovd_gym.teachers``."""

    name: str = "math-rules"
    options: dict[str, JsonValue] = {}
    max_invalid_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Training stops when a larger share of a step's scores is missing."""
    canaries: bool = True
    """Try the teacher on its world's canary set, if there is one, at the start and at every evaluation."""
    max_canary_faults: Annotated[int, Field(ge=0)] | None = None
    """Training stops when more canaries fail or injected texts move a score; None: a fault is only reported."""


class FeedbackConfig(Record):
    """The teacher speaks to the student while it acts (:class:`~ovd_gym.wrappers.TeacherFeedback`).

    Metrics and evaluations say which share of the episodes was ``helped``.
    """

    when: Literal["step", "retry"]
    """After every step, or when an answer is scored too low, for one more attempt."""
    threshold: Annotated[float, Field(ge=0, le=9)] = 5.0
    """An answer scored below it may be given once more (``retry``)."""
    evaluation: bool = False
    """Help in the held-out episodes, too; False measures what the student can do alone."""


class DemonstratorConfig(Record):
    """Who shows how it is done (arms ``ovd``, ``ovd-prefix`` and ``imitation``): a function, or a model."""

    policy: str | None = None
    """``package.module:function``, called as ``function(tasks, **options)``; returns a policy for a ScriptedAgent, or
    an agent, such as a model behind a server (``ovd_gym.agents.served:served``)."""
    options: dict[str, JsonValue] = {}
    model: str | None = None
    """A stronger model, named like ``student.model``; it speaks in its own template, and its words are written in the
    student's tokens."""
    max_turn_tokens: Annotated[int, Field(ge=1)] = 256
    """Of the model, per turn."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.policy is None) == (self.model is None):
            raise ValueError("a demonstrator is either a policy or a model: give one of them")
        no_effect(self, "demonstrator", {"options"} if self.model else {"max_turn_tokens"}, "with this demonstrator")
        return self


class DistillationConfig(Record):
    """Token-level distillation, for comparison (arm ``token-opd``): the student's rollouts, the teacher's logits."""

    model: str
    """The teacher, named like ``student.model``; its tokenizer must be the student's."""
    variant: Literal["full", "top-k", "sampled"] = "full"
    """Compare whole distributions, the teacher's likeliest tokens, or the sampled token alone."""
    beta: Annotated[float, Field(ge=0, le=1)] = 1.0
    """1: reverse KL; 0: forward KL; between: generalised Jensen-Shannon (:func:`~ovd_gym.losses.divergence`)."""
    top_k: Annotated[int, Field(ge=1)] = 64

    @model_validator(mode="after")
    def _used(self) -> Self:
        unused = {"full": {"top_k"}, "top-k": set(), "sampled": {"top_k", "beta"}}[self.variant]
        no_effect(self, "distillation", unused, f"with distillation.variant {self.variant!r}")
        return self


class RolloutConfig(Schedule):
    """How much is sampled per step, and how (the keys of :class:`~ovd_gym.schedule.Schedule`)."""

    tasks_per_step: Annotated[int, Field(ge=1)] = 8
    group_size: Annotated[int, Field(ge=1)] = 8
    """Episodes per task; advantages compare them."""
    staleness: Annotated[int, Field(ge=0)] = 0
    """Updates by which the weights that sample a step may be behind those that learn from it. Above 0, steps are
    gathered in a thread of their own, ahead of the updates, and the numbers depend on timing (:mod:`ovd_gym.pipeline`);
    the mismatch weight of :mod:`ovd_gym.learner` corrects for the difference."""
    resample: Annotated[int, Field(ge=0)] = 0
    """How often a step's groups without any difference in reward are dropped and other tasks asked instead."""


class LearnerConfig(Record):
    """How the student is trained; the objective stands in :mod:`ovd_gym.learner`."""

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: stay, or fall to zero at the last step."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    lora_rank: Annotated[int, Field(ge=0)] = 16
    """Rank of the LoRA adapters on all linear layers (arXiv 2106.09685); 0 trains every weight."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    epochs: Annotated[int, Field(ge=1)] = 1
    """Optimiser steps per batch. The ratio is exactly 1 in the first; clipping acts from the second on."""
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Annotated[float, Field(gt=0)] = 0.28
    ratio: Literal["token", "sequence"] = "token"
    """Whether each token is clipped by its own ratio, or by the mean of its trajectory (GSPO)."""
    aggregation: Literal["token-mean", "sequence-mean", "fixed-length"] = "token-mean"
    """How token losses are added up: see :func:`~ovd_gym.losses.token_weights`."""
    fixed_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens, for ``aggregation: fixed-length``: the most that an episode may sample, say."""
    teacher_tokens: Literal["as-student", "shaped", "nll"] = "as-student"
    """How a demonstrator's tokens are trained (:mod:`ovd_gym.learner`). Arms ``ovd`` and ``ovd-prefix``."""
    kl_weight: Annotated[float, Field(ge=0)] = 0.0
    """beta. Above 0, the untrained model is the reference (with LoRA: the adapters switched off, no copy)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """See :func:`~ovd_gym.losses.kl_estimate`."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether beta times the KL is added to a token's loss, or taken from its advantage (with ``credit.estimator: gae``
    from its reward, once per batch)."""
    entropy_weight: Annotated[float, Field(ge=0)] = 0.0
    """eta, the weight of an entropy bonus."""
    safeguard_weight: Annotated[float, Field(ge=0)] = 0.0
    """mu. Above 0, right trajectories are kept from becoming less likely; acts from the second epoch on."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens of one forward and backward pass, padding included; gradients are accumulated over a batch's passes. None:
    1,024 on a CPU, 8,192 on a GPU. A pass that runs out of memory is halved and tried again."""
    gradient_checkpointing: bool = False
    """Keep only what goes into each layer for the backward pass and compute the rest again: a third more time, a
    fraction of the memory."""
    logit_chunk: Annotated[int, Field(ge=1)] = 512
    """Tokens whose logits exist at the same time."""


class ValueConfig(Record):
    """PPO's value head (``credit.estimator: gae``), a linear layer on the student's hidden states.

    It is trained with the student, on the same pass; see :mod:`ovd_gym.value_head`.
    """

    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount per action token."""
    lam: Annotated[float, Field(ge=0, le=1)] = 1.0
    """lambda of GAE. Below 1, a reward fades over the tokens before it, which in long episodes is nearly all of them
    (arXiv 2503.01491); 1 has no such bias, and more variance."""
    whiten: bool = True
    """Advantages are given mean 0 and standard deviation 1 over the batch's action tokens. When all returns are alike,
    this enlarges what is left, the errors of the value head."""
    loss_weight: Annotated[float, Field(gt=0)] = 0.1
    """Of the value loss. It matters to the student's weights: the head has an optimiser step of its own scale."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """A value's loss does not reward moving further than this from where it was before the update."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Of the head; it follows the schedule of ``learner``."""


class EvaluationConfig(Record):
    """Held-out episodes, played greedily before training, after it, and every so often."""

    options: dict[str, JsonValue] = {}
    """Laid over ``env.options``; say here what makes the tasks held out."""
    episodes: Annotated[int, Field(ge=1)] = 64
    """The first so many tasks are asked once each."""
    every: Annotated[int, Field(ge=0)] = 0
    """Training steps between evaluations; 0: only before and after."""


class TrainConfig(Record):
    """Everything a run depends on; the same configuration and machine give the same numbers."""

    env: EnvConfig = EnvConfig()
    student: StudentConfig
    teacher: TeacherConfig | None = TeacherConfig()
    feedback: FeedbackConfig | None = None
    demonstrator: DemonstratorConfig | None = None
    distillation: DistillationConfig | None = None
    credit: CreditConfig = CreditConfig()
    selection: SelectionConfig = SelectionConfig()
    rollout: RolloutConfig = RolloutConfig()
    engine: EngineConfig = EngineConfig()
    learner: LearnerConfig = LearnerConfig()
    value: ValueConfig = ValueConfig()
    evaluation: EvaluationConfig | None = None
    health: HealthConfig = HealthConfig()
    scale: ScaleConfig | None = None
    steps: Annotated[int, Field(ge=1)] = 100
    seed: Annotated[int, Field(ge=0)] = 0
    run_dir: str | None = None
    """Where the run is written; must not exist yet. None: ``runs/<time>-<four digits>``."""
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()
    """Where the figures go besides TensorBoard; each is set up in its own environment variables."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 10
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2

    @model_validator(mode="after")
    def _checked(self) -> Self:
        check(self)
        return self

    @property
    def sends_adapters(self) -> bool:
        """Whether an engine is sent LoRA adapters, or else whole weights."""
        return self.engine.sync == "adapters" if self.engine.sync else self.learner.lora_rank > 0
