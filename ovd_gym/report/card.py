"""A finished run folder to the README of its exported model: what it was made from, how, and what was measured."""

from __future__ import annotations

from typing import Any

import yaml

from ovd_gym.recorder import Recorder

__all__ = ["model_card"]


def model_card(recorder: Recorder) -> str:
    """Markdown with the front matter that model hubs read. Held-out accuracies come with their 95 % intervals."""
    config = recorder.config
    teacher = config.teacher.name if config.teacher else "none"
    front = {"library_name": "transformers" if config.learner.lora_rank == 0 else "peft", "tags": ["ovd-gym"]}
    helped = (
        f"\nThe teacher spoke to the student while it trained (`{config.feedback.when}`).\n" if config.feedback else ""
    )
    return "\n".join(
        [
            "---",
            yaml.safe_dump(front, sort_keys=False).strip(),
            "---",
            f"# {config.student.model}, trained in {config.env.id}",
            "",
            f"Arm `{config.credit.arm}`, teacher `{teacher}`, {config.steps} steps of "
            f"{config.rollout.tasks_per_step} tasks x {config.rollout.group_size} episodes, seed {config.seed}.",
            helped,
            "## Held-out questions",
            "",
            "| after steps | accuracy | 95 % interval | episodes |",
            "|---|---|---|---|",
            *map(_row, recorder.evaluations()),
            "",
            "## Configuration",
            "",
            "```yaml",
            yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True), sort_keys=False).strip(),
            "```",
            "",
            "Made with " + ", ".join(f"{name} {version}" for name, version in recorder.versions().items()) + ".",
            "",
        ]
    )


def _row(row: dict[str, Any]) -> str:
    accuracy = "none could be graded" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
    note = " (helped by the teacher)" if row.get("helped") else ""
    return f"| {row['step']} | {accuracy}{note} | {row['low']:.3f} - {row['high']:.3f} | {row['episodes']} |"
