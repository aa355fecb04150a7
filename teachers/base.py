"""The ``Teacher`` protocol: what a critic is shown, and the one method it has to have.

A teacher of one's own is a class with one method::

    class Brevity(Teacher):
        def score(self, view):
            return Score.of(9 if len(view.attempt) < 200 else 4)

Whatever goes wrong inside ``score`` becomes a :class:`~ovd_gym.records.Score` with a status, never a number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Literal, cast, get_args

from pydantic import Field, JsonValue

from ovd_gym.errors import TeacherError
from ovd_gym.llm.choice import Usage
from ovd_gym.records import Critique, Record, Score, ScoreStatus, ToolCall, Trajectory

__all__ = ["StepText", "Teacher", "View", "step_view", "trajectory_view"]


class StepText(Record):
    """One step as the teacher reads it."""

    text: str
    observation: str
    tool: str | None = None
    """Name of the tool the step called; None for an invalid call or a paragraph."""
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """What it was called with."""

    @classmethod
    def of(cls, text: str, observation: str, call: ToolCall | None) -> StepText:
        """The step that wrote ``text``, made ``call`` (None if there was no valid one) and read ``observation``."""
        if call is None:
            return cls(text=text, observation=observation)
        return cls(text=text, observation=observation, tool=call.name, arguments=call.arguments)


class View(Record):
    """What a teacher may see when it gives one digit, and nothing more.

    ``kind="step"``: the steps up to and including the judged one (the last), nothing later.
    ``kind="trajectory"``: every step and the final answer.
    """

    kind: Literal["step", "trajectory"]
    question: str
    steps: tuple[StepText, ...]
    answer: str | None = None
    """The student's final answer, if this view reaches it."""
    gold: tuple[str, ...] | None = None
    """Gold answers; only for a privileged teacher."""
    group: str = ""
    """Says which trajectories answer the same task, for a teacher that compares them; it is never shown to a model."""

    @property
    def attempt(self) -> str:
        """The student's own words, step after step."""
        return "\n".join(step.text for step in self.steps)


def step_view(trajectory: Trajectory, k: int, privileged: bool = False) -> View:
    """The view of step ``k``: question, history before it, the step and its result."""
    last = k == len(trajectory.steps) - 1
    return _view("step", trajectory, k + 1, trajectory.answer if last else None, privileged)


def trajectory_view(trajectory: Trajectory, privileged: bool = False) -> View:
    """The view of the whole trajectory."""
    return _view("trajectory", trajectory, len(trajectory.steps), trajectory.answer, privileged)


class Teacher(ABC):
    """A critic that gives one digit per view.

    ``score`` judges one view; a teacher that is faster on many overrides :meth:`score_batch` as well.
    """

    name: str = ""
    """Recorded with every critique; defaults to the class name."""
    privileged: bool = False
    """Whether it is shown the gold answers; recorded with the run."""
    explains: bool = False
    """Whether its scores come with a rationale."""
    relative: bool = False
    """Whether a trajectory's score depends on the others of its group: it needs all of them at once."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def seed(self, seed: int) -> None:  # noqa: B027  (a hook, not a duty)
        """Make the teacher's own random draws repeatable; a training run calls it once, when it starts or resumes.

        Draws should derive from this seed and the view, not from how many views came before: a resumed run has not
        seen those. A teacher without randomness has nothing to do here.
        """

    def usage(self) -> Usage:
        """What this teacher has asked of models since it was made."""
        return Usage()

    @abstractmethod
    def score(self, view: View) -> Score:
        """One score for ``view``. May raise :class:`TeacherError` with the status to record."""

    def score_batch(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``; a failure of one is that one's status."""
        return [self._guarded(view) for view in views]

    def judge(self, views: Sequence[View]) -> list[Score]:
        """Scores aligned with ``views``; an invalid one is asked for once more, then stands with its status."""
        scores = self._checked(views)
        if again := [i for i, score in enumerate(scores) if not score.valid]:
            for i, score in zip(again, self._checked([views[i] for i in again]), strict=True):
                scores[i] = score
        return scores

    def critique(self, trajectories: Iterable[Trajectory]) -> list[Critique]:
        """A critique per trajectory, in order: a score for each step and one for the whole.

        Trajectories that failed are judged like others: the learner leaves them out by their status.
        """
        trajectories = list(trajectories)
        views: list[View] = []
        for trajectory in trajectories:
            views += [step_view(trajectory, k, self.privileged) for k in range(len(trajectory.steps))]
            views.append(trajectory_view(trajectory, self.privileged))
        flow = iter(self.judge(views))
        return [
            Critique(
                trajectory_id=trajectory.id,
                teacher=self.name,
                privileged=self.privileged,
                steps=tuple(next(flow) for _ in trajectory.steps),
                trajectory=next(flow),
            )
            for trajectory in trajectories
        ]

    def _guarded(self, view: View) -> Score:
        try:
            score = self.score(view)
        except TeacherError as error:
            known = error.status in get_args(ScoreStatus) and error.status != "ok"
            return Score.invalid(cast("ScoreStatus", error.status) if known else "error", str(error))
        except Exception as error:  # noqa: BLE001  (a plug-in may raise anything; it is recorded, never a number)
            return Score.invalid("error", f"{type(error).__name__}: {error}")
        if not isinstance(score, Score):
            return Score.invalid("error", f"{self.name}.score returned {type(score).__name__}, expected a Score")
        return score

    def _checked(self, views: Sequence[View]) -> list[Score]:
        scores = self.score_batch(views) if views else []
        if len(scores) != len(views):
            raise TeacherError(f"{self.name}.score_batch returned {len(scores)} scores for {len(views)} views")
        return list(scores)


def _view(
    kind: Literal["step", "trajectory"],
    trajectory: Trajectory,
    end: int,
    answer: str | None,
    privileged: bool,
) -> View:
    return View(
        kind=kind,
        question=trajectory.task.question,
        steps=tuple(StepText.of(step.text, step.observation, step.call) for step in trajectory.steps[:end]),
        answer=answer,
        gold=trajectory.task.answers if privileged else None,
        group=trajectory.group_id,
    )
