"""The arms that learn from a demonstrator: it plays in place of the trajectories that the teacher rejects.

- arm ``ovd``: a trajectory whose score S is below theta is rejected, worst first; a demonstration of the same task,
  played in the same environment, takes its place or is put beside it.
- arm ``ovd-prefix``: a trajectory is cut before its first step whose score is below theta; the environment is brought
  back to there and the demonstrator goes on. The student's good beginning is kept, token by token.

The reward is the environment's own in both (arXiv 2601.21968).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ovd_gym.players import OnTurn, Players, Round
from ovd_gym.records import Critique, Trajectory
from ovd_gym.rollout import Prefix, episode_seed
from ovd_gym.selection import SelectionConfig, cut, rejected, to_replace

__all__ = ["Selection", "select"]


@dataclass(frozen=True)
class Selection:
    """What is learned from."""

    trajectories: list[Trajectory]
    """Those accepted, and the demonstrations; a demonstration has its group's id."""
    demonstrations: list[Trajectory]
    """Those among them that a demonstrator played, wholly or from a step on."""
    metrics: dict[str, float | None]
    """``rejected`` (share of the student's trajectories below theta), ``replaced`` (share that a demonstration was
    played for), ``demonstrator_em`` (share of the demonstrations that are right)."""


def select(
    trajectories: Sequence[Trajectory],
    critiques: Sequence[Critique],
    config: SelectionConfig,
    *,
    arm: Literal["ovd", "ovd-prefix"],
    players: Players,
    seed: Sequence[int],
    step: int,
    on_turn: OnTurn = lambda done, tokens: None,
) -> Selection:
    """Filter the groups of one training step and have the demonstrator fill the gaps.

    Args:
        trajectories: a round of the student's.
        critiques: aligned with them.
        players: with a demonstrator.
        seed: that of the round.
        step: training step, from 0, for annealing.

    A demonstration that failed for a reason outside the demonstrator's power is left out, and what it was for stays.
    """
    below = rejected(trajectories, critiques, config, arm)
    chosen = to_replace(below, trajectories, critiques, config, step)
    played: list[Trajectory] = []
    if chosen:
        originals = [trajectories[i] for i in chosen]
        starts = [cut(t, critiques[i], config.theta) for i, t in zip(chosen, originals, strict=True)]
        seeds = [episode_seed(seed, i) for i in chosen]
        prefixes = [Prefix(*parts) for parts in zip(originals, starts, seeds, strict=True)]
        demonstrations = Round(
            tasks=tuple(t.task for t in originals),
            seed=(*seed, 1),
            label="demonstration",
            policy_version=originals[0].policy_version,
            player="demonstrator",
            prefixes=tuple(prefixes) if arm == "ovd-prefix" else None,
        )
        demonstrated = players.play(demonstrations, on_turn)
        played = [
            new.model_copy(update={"id": f"{old.id}/taught", "group_id": old.group_id})
            for new, old in zip(demonstrated, originals, strict=True)
        ]
    filled = {i: new for i, new in zip(chosen, played, strict=True) if new.status != "failed"}
    if config.mode == "replace":
        kept = [filled.get(i, trajectory) for i, trajectory in enumerate(trajectories)]
    else:
        kept = [*trajectories, *filled.values()]
    return Selection(kept, list(filled.values()), _metrics(trajectories, below, filled))


def _metrics(
    trajectories: Sequence[Trajectory], below: Sequence[int], filled: dict[int, Trajectory]
) -> dict[str, float | None]:
    right = [t.reward == 1.0 for t in filled.values()]
    return {
        "rejected": len(below) / len(trajectories),
        "replaced": len(filled) / len(trajectories),
        "demonstrator_em": sum(right) / len(right) if right else None,
    }
