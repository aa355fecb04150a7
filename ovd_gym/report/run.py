"""A finished run folder to two files for reading: the learning curve and the episodes."""

from __future__ import annotations

from pathlib import Path

from ovd_gym.recorder import Kind, Recorder
from ovd_gym.report.curve import write_curve
from ovd_gym.report.transcripts import Section, write_transcripts

__all__ = ["write_report"]

_EPISODES = 24
"""Episodes shown of each evaluation and training step."""


def write_report(recorder: Recorder) -> list[Path]:
    """Write ``curve.png`` and ``transcripts.html`` into the run folder and return their paths.

    The transcripts show the first and last evaluation and the first, middle and last training step.
    """
    metrics, evaluations = recorder.metrics(), recorder.evaluations()
    title = f"{recorder.config.student.model} in {recorder.config.env.id}"
    curve, page = recorder.path / "curve.png", recorder.path / "transcripts.html"
    write_curve(curve, metrics, evaluations, title)
    steps = sorted({metrics[i]["step"] for i in (0, len(metrics) // 2, -1)})
    held_out = sorted({evaluations[i]["step"] for i in (0, -1)}) if evaluations else []
    sections = [
        *(_section(recorder, "eval", step) for step in held_out[:1]),
        *(_section(recorder, "step", step) for step in steps),
        *(_section(recorder, "eval", step) for step in held_out[1:]),
    ]
    write_transcripts(page, sections, title)
    return [curve, page]


def _section(recorder: Recorder, kind: Kind, step: int) -> Section:
    label = f"Held out, after {step} steps" if kind == "eval" else f"Training step {step}"
    episodes = recorder.episodes(kind, step)
    if len(episodes) > _EPISODES:
        label += f" (the first {_EPISODES} of {len(episodes)} episodes)"
    return label, episodes[:_EPISODES]
