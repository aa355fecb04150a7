"""Whether the keys of a configuration go together: one that would have no effect, or could not be, is an error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ovd_gym.credit import FROM_SCORES, CreditConfig
from ovd_gym.records import Record

if TYPE_CHECKING:
    from ovd_gym.config import TrainConfig

__all__ = ["check", "no_effect"]


def check(config: TrainConfig) -> None:
    """Raise ValueError with a word on the first key that does not go with the others."""
    for rule in (_parts, _scale, _groups, _arm, _estimator, _learner, _engine, _limits):
        rule(config)


def _parts(config: TrainConfig) -> None:
    """Raise ValueError for a part that the arm needs and lacks, or has and does not ask."""
    if len(set(config.trackers)) < len(config.trackers):
        raise ValueError(f"trackers name one twice: {', '.join(config.trackers)}")
    if config.credit.arm == "score-reward" and config.teacher is None:
        raise ValueError("credit.arm 'score-reward' needs a teacher; set one, or choose arm 'grpo'")
    if config.teacher is not None and not config.teacher.canaries:
        no_effect(config.teacher, "teacher", {"max_canary_faults"}, "without teacher.canaries")
    if config.feedback is not None and config.teacher is None:
        raise ValueError("feedback is the teacher's: set a teacher, or remove feedback")
    if config.feedback is not None and config.feedback.when == "step":
        no_effect(config.feedback, "feedback", {"threshold"}, "with feedback.when 'step'")
    imitation = config.credit.arm == "imitation"
    taught = config.credit.arm in ("imitation", "ovd", "ovd-prefix")
    if taught != (config.demonstrator is not None):
        raise ValueError("a demonstrator belongs to the arms 'imitation', 'ovd', 'ovd-prefix', and they need one")
    distils = config.credit.arm == "token-opd"
    if distils != (config.distillation is not None):
        raise ValueError("the section distillation belongs to credit.arm 'token-opd', and that arm needs it")
    if imitation or distils:
        fields = set(CreditConfig.model_fields) - {"arm"}
        no_effect(config.credit, "credit", fields, f"with credit.arm {config.credit.arm!r}")


def _scale(config: TrainConfig) -> None:
    """Raise ValueError for workers that would have nothing to work with."""
    if config.scale is not None and config.scale.teachers and config.teacher is None:
        raise ValueError("scale.teachers judge with the teacher: set one, or remove the key")
    if config.scale is not None and config.scale.workers and config.engine.name == "vllm-server":
        raise ValueError(
            "scale.workers would each send their weights to the one server of engine.name 'vllm-server': take "
            "'vllm', which each worker has for itself, or remove scale.workers"
        )


def _groups(config: TrainConfig) -> None:
    """Raise ValueError for groups in which the arm finds nothing to compare."""
    credit, rollout = config.credit, config.rollout
    size = f"rollout.group_size is {rollout.group_size}"
    if credit.arm == "imitation" and rollout.group_size > 1:
        raise ValueError(f"{size}: arm 'imitation' takes 1, for a demonstration is the same every time")
    compares = credit.estimator == "group" and credit.arm not in ("imitation", "token-opd")
    if not compares or rollout.group_size > 1:
        return
    if credit.baseline != "batch" or rollout.tasks_per_step == 1:
        raise ValueError(
            f"{size}, which leaves nothing to compare: take at least 2, credit.estimator 'gae', or credit.baseline "
            "'batch' with at least 2 tasks_per_step"
        )
    if credit.step_term != "outcome" and (credit.step_term or credit.arm == "score-reward"):
        raise ValueError(f"{size}, but a step term compares a group's episodes: set credit.step_term to 'outcome'")
    no_effect(rollout, "rollout", {"resample"}, "with groups of 1: it compares the rewards of a group")


def _arm(config: TrainConfig) -> None:
    """Raise ValueError for what the arm needs and lacks, or has and does not read."""
    credit, arm = config.credit, f"with credit.arm {config.credit.arm!r}"
    filters = config.credit.arm in ("ovd", "ovd-prefix")
    if filters and config.teacher is None:
        raise ValueError(f"credit.arm {config.credit.arm!r} filters by the teacher's scores: set a teacher")
    if filters and config.rollout.group_size < 3:
        raise ValueError(f"rollout.group_size must be at least 3 {arm}: one of a group is replaced, two compare")
    if not filters:
        no_effect(config, "", {"selection"}, arm)
        no_effect(config.learner, "learner", {"teacher_tokens"}, arm)
    if config.credit.arm != "score-reward":
        no_effect(credit, "credit", {"trajectory_weight"}, arm)
        if credit.step_term in FROM_SCORES:
            raise ValueError(f"credit.step_term {credit.step_term!r} needs step scores, which arm 'score-reward' has")
    if credit.step_term == "outcome" or (credit.step_term is None and credit.arm != "score-reward"):
        no_effect(credit, "credit", {"step_weight"}, f"{arm} and no step term")
    if not filters and credit.arm != "score-reward" and config.teacher is not None:
        no_effect(config.teacher, "teacher", {"max_invalid_share"}, f"{arm}: it learns from no score")
    if credit.arm == "imitation":
        limits = {"entropy_floor", "likelihood_drop"}
        no_effect(config.health, "health", limits, f"{arm}: the student samples nothing")
    if credit.arm in ("imitation", "token-opd", "score-reward"):
        no_effect(config.rollout, "rollout", {"resample"}, f"{arm}: it learns from every group")
    if credit.overlong is not None and credit.overlong[0] >= credit.overlong[1]:
        raise ValueError(f"credit.overlong is (from, to) with from < to, got {credit.overlong}")


def _estimator(config: TrainConfig) -> None:
    """Raise ValueError for what the estimator of advantages does not read."""
    estimator = f"with credit.estimator {config.credit.estimator!r}"
    if config.credit.estimator == "group":
        no_effect(config, "", {"value"}, estimator)
        return
    if config.credit.arm not in ("grpo", "score-reward"):
        raise ValueError("credit.estimator 'gae' belongs to the arms 'grpo' and 'score-reward'")
    no_effect(config.credit, "credit", {"baseline", "normalize", "step_term", "clip"}, estimator)
    no_effect(config.rollout, "rollout", {"resample"}, f"{estimator}: it learns from every group")
    if config.learner.epochs == 1:
        no_effect(config.value, "value", {"clip"}, "with learner.epochs 1")


def _learner(config: TrainConfig) -> None:
    """Raise ValueError for an option of the learner that would change nothing."""
    learner = config.learner
    if config.credit.arm in ("imitation", "token-opd"):
        kept = {"learning_rate", "schedule", "warmup_steps", "lora_rank", "weight_decay", "max_grad_norm"}
        kept |= {"micro_batch_tokens", "gradient_checkpointing", "logit_chunk"}
        no_effect(learner, "learner", set(type(learner).model_fields) - kept, f"with credit.arm {config.credit.arm!r}")
    if learner.epochs == 1:
        no_effect(learner, "learner", {"clip_low", "clip_high", "safeguard_weight", "ratio"}, "with learner.epochs 1")
    if learner.kl_weight == 0:
        no_effect(learner, "learner", {"kl_estimator", "kl_in"}, "with learner.kl_weight 0")
    if learner.kl_estimator == "k1" and learner.kl_in == "loss" and learner.kl_weight > 0:
        raise ValueError("learner.kl_estimator 'k1' has no gradient on average as a loss; set kl_in 'reward'")
    if (learner.aggregation == "fixed-length") != (learner.fixed_length is not None):
        raise ValueError("learner.fixed_length belongs to aggregation 'fixed-length', which needs it")


def _engine(config: TrainConfig) -> None:
    """Raise ValueError for weights that could not be sent."""
    if config.engine.sync == "adapters" and config.learner.lora_rank == 0:
        raise ValueError("engine.sync 'adapters' needs some: set learner.lora_rank, or sync 'weights'")
    if config.engine.sync == "weights" and config.learner.lora_rank > 0 and config.student.dtype == "bfloat16":
        raise ValueError(
            "engine.sync 'weights' would fold adapters into bfloat16 weights, where rounding swallows what they "
            "have learned; use sync 'adapters'"
        )


def _limits(config: TrainConfig) -> None:
    """Raise ValueError for numbers and types that do not go together."""
    if not (config.health.entropy_floor or config.health.likelihood_drop):
        no_effect(config.health, "health", {"patience"}, "without a limit")
    if config.learner.lora_rank == 0 and config.student.quantization is not None:
        raise ValueError("student.quantization: weights in 4 bits are frozen; set learner.lora_rank above 0")
    if config.learner.lora_rank == 0 and config.student.dtype != "float32":
        raise ValueError(
            "student.dtype 'bfloat16' with learner.lora_rank 0 would lose most updates to rounding; "
            "train LoRA adapters, or use float32"
        )
    if config.evaluation is not None and config.evaluation.every > config.steps:
        raise ValueError(f"evaluation.every ({config.evaluation.every}) is beyond the last step ({config.steps})")
    if config.student.max_context is not None and config.student.max_turn_tokens >= config.student.max_context:
        raise ValueError(
            f"student.max_turn_tokens ({config.student.max_turn_tokens}) leaves no room for a prompt in "
            f"student.max_context ({config.student.max_context})"
        )
    if config.learner.warmup_steps >= config.steps:
        raise ValueError(f"learner.warmup_steps ({config.learner.warmup_steps}) must be below steps ({config.steps})")
    if config.student.plain is not None and config.student.chat != "plain":
        raise ValueError(f"student.plain has no effect with student.chat {config.student.chat!r}; use 'plain'")


def no_effect(section: Record, name: str, keys: set[str], why: str) -> None:
    """Raise ValueError if one of ``keys`` is set to something else than its default, although it has no effect."""
    for key in sorted(keys):
        if getattr(section, key) != type(section).model_fields[key].default:
            raise ValueError(f"{name}.{key}".lstrip(".") + f" has no effect {why}; remove it")
