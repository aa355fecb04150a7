"""Rounds of episodes as data, and who plays them: this process, or the workers of a cluster.

A round holds everything that decides what its episodes are. Who plays it, where and in how many parts decides only
what is computed side by side, and with it the last bits of the log-probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, cast

from ovd_gym.agents.base import Agent
from ovd_gym.envs.base import ToolEnv
from ovd_gym.llm.base import GREEDY, TRAINING
from ovd_gym.records import Task, Trajectory
from ovd_gym.rollout import LOCK_STEP, Env, Prefix, Schedule, rollout

if TYPE_CHECKING:
    from torch import Tensor

    from ovd_gym.llm.decoder import Decoder
    from ovd_gym.llm.weights import WeightSender

__all__ = ["LocalPlayers", "OnTurn", "Players", "Round", "Stage"]

OnTurn = Callable[[int, int], None]
"""Told the number of finished episodes and of sampled tokens of a round so far; may raise to stop it."""


@dataclass(frozen=True)
class Round:
    """A round of episodes; fields not explained here are arguments of :func:`~ovd_gym.rollout.rollout`."""

    tasks: tuple[Task, ...]
    seed: tuple[int, ...]
    label: str
    policy_version: int
    group_size: int = 1
    player: Literal["student", "demonstrator"] = "student"
    held_out: bool = False
    """In the environments of the evaluation, greedily."""
    prefixes: tuple[Prefix, ...] | None = None
    first: int = 0
    """Number of this part's first group in the whole round."""

    def parts(self, episodes: int) -> Iterator[Round]:
        """Parts of at most ``episodes`` episodes, but of one whole group at least."""
        groups = max(1, episodes // self.group_size)
        for start in range(0, len(self.tasks), groups):
            prefixes = self.prefixes and self.prefixes[start * self.group_size : (start + groups) * self.group_size]
            yield replace(self, tasks=self.tasks[start : start + groups], prefixes=prefixes, first=self.first + start)


class Players(Protocol):
    """Those who play rounds."""

    def play(self, played: Round, on_turn: OnTurn = ...) -> list[Trajectory]:
        """The trajectories in task order, group after group; a failed episode is there, with its reason."""

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """Give the student these trainable weights by name; rounds of policy version ``version`` come next."""

    def close(self) -> None:
        """Let go of environments and workers."""


class Stage:
    """A supply of environments of one kind, made when they are first needed.

    Args:
        make: makes one more.
        envs: those that are there already.
    """

    def __init__(self, make: Callable[[], Env], envs: Iterable[Env] = ()) -> None:
        self._make = make
        self._envs = list(envs)
        self._updates: int | None = None

    def take(self, count: int) -> list[Env]:
        """``count`` instances; they are the caller's until the next call."""
        while len(self._envs) < count:
            self._envs.append(self._make())
            if self._updates is not None:
                _told(self._envs[-1], self._updates)
        return self._envs[:count]

    def at_update(self, updates: int) -> None:
        """Tell all instances, those to come as well, how many learner updates there have been."""
        self._updates = updates
        for env in self._envs:
            _told(env, updates)

    def close(self) -> None:
        """Close all instances."""
        for env in self._envs:
            env.close()


class LocalPlayers:
    """Agents and environments of this process.

    Args:
        student, demonstrator: who plays.
        decoder: the student's model; None if the student is none that learns.
        training: where training rounds are played.
        held_out: where the others are; None without an evaluation.
        schedule: how the episodes of a round wait for each other.
        sender: sends ``decoder``'s weights to the engine that samples; None where the student samples with ``decoder``.
        max_context: tokens that an episode of the demonstrator may hold; None: any number.
    """

    def __init__(
        self,
        student: Agent,
        demonstrator: Agent | None,
        decoder: Decoder | None,
        training: Stage,
        held_out: Stage | None = None,
        schedule: Schedule = LOCK_STEP,
        sender: WeightSender | None = None,
        max_context: int | None = None,
    ) -> None:
        self.student = student
        self.training = training
        self._agents = {"student": student, "demonstrator": demonstrator}
        self._decoder = decoder
        self._held_out = held_out
        self._schedule = schedule
        self._sender = sender
        self._max_context = max_context

    def play(self, played: Round, on_turn: OnTurn = lambda done, tokens: None) -> list[Trajectory]:
        """See :class:`Players`."""
        agent = self._agents[played.player]
        stage = self._held_out if played.held_out else self.training
        assert agent is not None, "the configuration has no demonstrator"
        assert stage is not None, "the configuration has no evaluation"
        return rollout(
            played.tasks,
            stage.take(min(len(played.tasks) * played.group_size, self._schedule.max_rows)),
            agent,
            group_size=played.group_size,
            seed=played.seed,
            label=played.label,
            policy_version=played.policy_version,
            decoding=GREEDY if played.held_out else TRAINING,
            source="teacher" if played.player == "demonstrator" else "student",
            prefixes=played.prefixes,
            first=played.first,
            max_context=self._max_context if played.player == "demonstrator" else None,
            schedule=self._schedule,
            on_turn=on_turn,
        )

    def load_weights(self, weights: Mapping[str, Tensor], version: int) -> None:
        """See :class:`Players`. Weights that a learner shares with the student stay where they are."""
        if self._decoder is not None:
            self._decoder.load(weights)
        if self._sender is not None:
            self._sender.send(version)
        self.training.at_update(version)

    def close(self) -> None:
        """Close all environments, and let go of the engine."""
        for stage in (self.training, self._held_out):
            if stage is not None:
                stage.close()
        if self._sender is not None:
            self._sender.close()


def _told(env: Env, updates: int) -> None:
    cast(ToolEnv, env.unwrapped).at_update(updates)
