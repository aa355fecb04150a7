"""Episodes as the report's page reads them: a short row each for its list, the whole for its reader.

Rows and bodies are plain JSON. Log-probabilities are kept in hundredths of a nat, for sampled tokens alone; a text that
the tokens hold is kept as its place in theirs, which halves the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from ovd_gym.credit import Credit
from ovd_gym.errors import DataError
from ovd_gym.records import Critique, Score, Step, Trajectory

__all__ = ["FLAGS", "Episode", "Vocabulary", "body", "flags", "paired", "row", "spread"]

_QUESTION = 160
"""Characters of a question in the list."""
FLAGS = (
    ("right", "reward 1"),
    ("wrong", "graded, and reward below 1"),
    ("failed", "infrastructure broke: no reward"),
    ("truncated", "ran out of turns or tokens"),
    ("disagrees", "score and reward lie more than half of the scale apart"),
    ("no score", "a score is missing: timeout, refusal, unreadable reply"),
    ("refused call", "a tool call that could not be carried out"),
    ("replaced", "rejected by the teacher; a demonstration was played for it"),
    ("demonstration", "played by the demonstrator, wholly or from a step on"),
    ("helped", "read the teacher’s feedback"),
)
"""What episodes are filtered by, each with its meaning."""


@dataclass(frozen=True)
class Episode:
    """A trajectory with all that is known of it.

    Raises :class:`DataError` when the critique or credit belongs to another trajectory.
    """

    trajectory: Trajectory
    critique: Critique | None = None
    """None where no teacher judged."""
    credit: Credit | None = None
    """None where nothing was learned from it."""
    replaced: bool = False
    """Whether a demonstration was played for it."""

    def __post_init__(self) -> None:
        trajectory = self.trajectory
        for what, other, steps in (
            ("critique", self.critique, self.critique and self.critique.steps),
            ("credit", self.credit, self.credit and self.credit.advantages),
        ):
            if other and (other.trajectory_id != trajectory.id or len(steps or ()) != len(trajectory.steps)):
                raise DataError(
                    f"trajectory {trajectory.id!r} with {len(trajectory.steps)} steps stands beside a {what} of "
                    f"{other.trajectory_id!r} with {len(steps or ())}: pair them by trajectory_id"
                )

    @property
    def scores(self) -> tuple[Score | None, ...]:
        """[T] the steps' scores; None where no teacher judged."""
        return self.critique.steps if self.critique else (None,) * len(self.trajectory.steps)

    @property
    def score(self) -> Score | None:
        """The score of the whole."""
        return self.critique.trajectory if self.critique else None


def flags(episode: Episode) -> list[bool]:
    """Which of :data:`FLAGS` hold, in their order."""
    trajectory, score = episode.trajectory, episode.score
    reward, scores = trajectory.reward, [*episode.scores, score]
    return [
        reward == 1.0,
        reward is not None and reward < 1.0,
        trajectory.status == "failed",
        trajectory.status == "truncated",
        reward is not None and score is not None and score.valid and abs(score.u - reward) > 0.5,
        any(each is not None and not each.valid for each in scores),
        any(step.error is not None for step in trajectory.steps),
        episode.replaced,
        any(step.source == "teacher" for step in trajectory.steps),
        any(step.feedback for step in trajectory.steps),
    ]


def row(episode: Episode, group: int) -> list[Any]:
    """``[question, group, reward, mean score, steps' digits, flags as a bit mask]`` of an episode, for the list.

    A digit is ``?`` where the score is missing and ``·`` where nobody judged.
    """
    trajectory, score = episode.trajectory, episode.score
    digits = "".join("·" if each is None else "?" if each.value is None else str(each.value) for each in episode.scores)
    return [
        trajectory.task.question[:_QUESTION],
        group,
        trajectory.reward,
        None if score is None or score.mean is None else round(score.mean, 2),
        digits,
        sum(held << bit for bit, held in enumerate(flags(episode))),
    ]


def body(episode: Episode, vocabulary: Vocabulary | None) -> dict[str, Any]:
    """An episode whole, for the reader.

    What a step says and hears is a string, or ``[from, to)`` in the joined texts of all tokens by ``vocabulary``.
    """
    trajectory, critique, credit = episode.trajectory, episode.critique, episode.credit
    earned = credit and (credit.rewards or credit.advantages)
    credits = earned or (None,) * len(trajectory.steps)
    joined = "".join(map(vocabulary.text, trajectory.token_ids)) if vocabulary else ""
    if max(joined, default="") > "\uffff":  # characters that a browser counts twice
        joined = ""
    return {
        "id": trajectory.id,
        "group": trajectory.group_id,
        "task": trajectory.task.id,
        "question": trajectory.task.question,
        "gold": trajectory.task.answers,
        "answer": trajectory.answer,
        "reward": trajectory.reward,
        "status": trajectory.status,
        "reason": trajectory.reason,
        "updates": trajectory.policy_version,
        "teacher": critique and critique.teacher,
        "privileged": bool(critique and critique.privileged),
        "score": _score(episode.score),
        "steps": [_step(joined, *parts) for parts in zip(trajectory.steps, episode.scores, credits, strict=True)],
        "tokens": trajectory.token_ids,
        "logprobs": [
            round(-100 * logprob) for step in trajectory.steps for logprob in trajectory.logprobs[step.start : step.end]
        ],
    }


def _step(joined: str, step: Step, score: Score | None, credit: float | None) -> dict[str, Any]:
    return {
        "text": _place(step.text, joined),
        "span": [step.start, step.end],
        "call": step.call and step.call.model_dump(mode="json"),
        "observation": _place(step.observation, joined),
        "feedback": step.feedback,
        "error": step.error,
        "taught": step.source == "teacher",
        "score": _score(score),
        "credit": None if credit is None else round(credit, 4),
    }


def _place(text: str, joined: str) -> str | list[int]:
    """``text``, or where ``joined`` holds it, if that is shorter to say."""
    start = joined.find(text) if len(text) > 8 else -1
    return text if start < 0 else [start, start + len(text)]


def _score(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {
        "value": score.value,
        "mean": None if score.mean is None else round(score.mean, 3),
        "status": score.status,
        "probs": score.probs and [round(p, 4) for p in score.probs],
        "mass": score.digit_mass,
        "rationale": score.rationale,
    }


class Vocabulary:
    """What a run's token ids stand for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.texts: dict[int, str] = {}
        """Of all ids that :meth:`text` was asked for."""
        self._tokenizer = tokenizer
        self._before = tokenizer.encode("a", add_special_tokens=False).ids
        self._skip = len(tokenizer.decode(self._before, skip_special_tokens=False))

    def text(self, token_id: int) -> str:
        """What a token adds to a text. One that is part of a character is the replacement mark."""
        if token_id not in self.texts:
            # Decoded behind another token: many tokenizers drop the space in front of a text's first word.
            text = self._tokenizer.decode([*self._before, token_id], skip_special_tokens=False)
            self.texts[token_id] = text[self._skip :]
        return self.texts[token_id]


def spread(sizes: Sequence[int], limit: int) -> list[int]:
    """Indices of sections, evenly spread with both ends, that hold at most ``limit`` episodes together.

    One section is always chosen, the last, however large.

    >>> spread([10, 10, 10, 10, 10], 30)
    [0, 2, 4]
    """
    last = len(sizes) - 1
    for count in range(len(sizes), 1, -1):
        chosen = sorted({round(i * last / (count - 1)) for i in range(count)})
        if sum(sizes[i] for i in chosen) <= limit:
            return chosen
    return [last] if sizes else []


def paired(episodes: Sequence[tuple[Trajectory, Critique | None]], credits: Mapping[str, Credit]) -> list[Episode]:
    """Episodes of one step or evaluation; a demonstration's id is that of what it was played for, and ``/taught``."""
    ids = {trajectory.id for trajectory, _ in episodes}
    return [Episode(t, critique, credits.get(t.id), f"{t.id}/taught" in ids) for t, critique in episodes]
