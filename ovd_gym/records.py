"""What flows through a training step, frozen and typed: task -> trajectory -> critique.

Shapes: ``L`` tokens of a trajectory, ``T`` steps. Times in seconds, log-probabilities in nats, rewards in [0, 1].

A two-turn episode, token by token (``#`` marks a sampled token; only those are ever trained)::

    ids     [q q q q | p p p | o o | a a]       q: prompt, p: the tool call, o: its result, a: the answer
    mask             . . . .   # # #   . .   # #
    steps                      [4,7)         [9,11)

Records are stored as JSON lines and load back equal, bit for bit (:func:`save_jsonl`, :func:`load_jsonl`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from ovd_gym.errors import DataError

__all__ = [
    "Critique",
    "Message",
    "Probability",
    "Record",
    "Score",
    "ScoreStatus",
    "Step",
    "Task",
    "Text",
    "ToolCall",
    "ToolSpec",
    "Trajectory",
    "first_problem",
    "load_appended",
    "load_jsonl",
    "save_jsonl",
]


def _encodable(text: str) -> str:
    text.encode()  # a UnicodeEncodeError is a ValueError: pydantic reports it with the field's name
    return text


Text = Annotated[str, AfterValidator(_encodable)]
"""Any Unicode text. Lone surrogates are no text: they could be neither encoded nor stored."""


class Record(BaseModel):
    """Base of all records: frozen, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Task(Record):
    """A question with its gold answers. The gold answers stay in the environment; no agent sees them."""

    id: str
    question: Text
    answers: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Gold answers, any one of which is right."""
    metadata: dict[str, JsonValue] = {}


class Message(Record):
    """One turn of a conversation. ``tool`` is the environment speaking."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text


class ToolSpec(Record):
    """A tool as the student is told of it."""

    name: str
    description: str
    parameters: dict[str, JsonValue]
    """JSON schema (an object schema) of the arguments."""
    final: bool = False
    """Calling it ends the episode."""


class ToolCall(Record):
    """A call read from the student's own text."""

    name: str
    arguments: dict[str, JsonValue] = {}


class Step(Record):
    """One action of the student and what the environment said to it.

    A turn is one step, or several where a single-turn solution is split by paragraph.
    """

    text: Text
    """The sampled text, for reading; training uses the ids of the span."""
    start: Annotated[int, Field(ge=0)]
    end: int
    """Token span ``[start, end)`` in ``Trajectory.token_ids``; every token in it was sampled."""
    call: ToolCall | None = None
    """None where the text holds no valid call (see ``error``) or is a paragraph before the last."""
    observation: Text = ""
    feedback: Text = ""
    """What a teacher told the student after this step, in a run with feedback; no part of what teachers judge."""
    error: Text | None = None
    """Why the call was refused; the observation says the same to the student."""
    source: Literal["student", "teacher"] = "student"
    """Whose words these are. A teacher's tokens were not sampled by the policy that is trained: their
    log-probabilities are 0.0, and the learner treats them apart."""

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"empty span [{self.start}, {self.end}): a step holds at least one sampled token")
        return self


class Trajectory(Record):
    """One episode: token ids exactly as fed and as sampled, never decoded and re-encoded."""

    id: str
    group_id: str
    """Trajectories of the same task in the same training step share it; advantages are relative to it."""
    task: Task
    steps: tuple[Step, ...]
    """[T], in order; their spans are disjoint and cover exactly the sampled tokens."""
    token_ids: tuple[int, ...]
    """[L]"""
    logprobs: tuple[Annotated[float, Field(le=0.0)], ...]
    """[L] nats, under the policy that sampled them (temperature 1); 0.0 where a token was not sampled."""
    reward: float | None
    """The environment's reward; None when the episode failed for a reason outside the student's power."""
    answer: Text | None = None
    status: Literal["terminated", "truncated", "failed"]
    """``terminated``: answered. ``truncated``: out of turns or tokens. ``failed``: infrastructure broke."""
    reason: str = ""
    """Which budget ran out, or what broke."""
    policy_version: Annotated[int, Field(ge=0)] = 0
    """Number of learner updates the sampling weights had seen."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """What the tokens were drawn at, 0 for the likeliest; the log-probabilities are those at 1 all the same."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """The probability mass they were drawn from."""

    @property
    def mask(self) -> tuple[bool, ...]:
        """[L] True on sampled tokens: the union of the steps' spans."""
        mask = [False] * len(self.token_ids)
        for step in self.steps:
            mask[step.start : step.end] = [True] * (step.end - step.start)
        return tuple(mask)

    @property
    def num_sampled(self) -> int:
        """Number of sampled tokens."""
        return sum(step.end - step.start for step in self.steps)

    @model_validator(mode="after")
    def _aligned(self) -> Self:
        if len(self.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.logprobs)} logprobs for {len(self.token_ids)} token ids")
        position = 0
        for k, step in enumerate(self.steps):
            if step.start < position or step.end > len(self.token_ids):
                raise ValueError(
                    f"step {k} spans [{step.start}, {step.end}), but [{position}, {len(self.token_ids)}) is free"
                )
            if any(self.logprobs[position : step.start]):
                raise ValueError("a token outside every step has a log-probability: it was not sampled")
            position = step.end
        if any(self.logprobs[position:]):
            raise ValueError("a token outside every step has a log-probability: it was not sampled")
        if (self.status == "failed") != (self.reward is None):
            raise ValueError(f"status {self.status!r} with reward {self.reward}: None belongs to 'failed' alone")
        return self


Probability = Annotated[float, Field(ge=0, le=1.000001)]
"""Rounding may carry a sum of probabilities just above 1."""
ScoreStatus = Literal["ok", "timeout", "refused", "malformed", "low_mass", "over_budget", "error"]


class Score(Record):
    """A teacher's digit, or the reason why there is none. A missing score never turns into a number."""

    value: Annotated[int, Field(ge=0, le=9)] | None
    status: ScoreStatus = "ok"
    mean: Annotated[float, Field(ge=0, le=9)] | None = None
    """Expected score under the teacher's digit distribution; the digit itself when only that is known."""
    probs: Annotated[tuple[Probability, ...], Field(min_length=10, max_length=10)] | None = None
    """[10] the distribution over the digits, renormalised."""
    digit_mass: Probability | None = None
    """Probability the teacher gave to all ten digits together, before renormalising."""
    rationale: Text = ""

    @classmethod
    def of(cls, value: float, rationale: str = "") -> Score:
        """A valid score without a distribution; a fractional value is kept as ``mean``, rounded as ``value``."""
        if not 0 <= value <= 9:
            raise ValueError(f"a score lies in 0..9, got {value}")
        return cls(value=int(value + 0.5), mean=float(value), rationale=rationale)

    @classmethod
    def invalid(cls, status: ScoreStatus, why: str = "") -> Score:
        """A score that could not be had, and why."""
        return cls(value=None, status=status, rationale=why)

    @property
    def valid(self) -> bool:
        """Whether there is a number."""
        return self.value is not None

    @property
    def u(self) -> float:
        """The score on [0, 1]: ``mean / 9``. Raises ValueError when there is none."""
        if self.mean is None:
            raise ValueError(f"no number in a score with status {self.status!r}")
        return self.mean / 9

    @model_validator(mode="after")
    def _number_or_status(self) -> Self:
        if (self.status == "ok") != (self.value is not None) or (self.value is None) != (self.mean is None):
            raise ValueError(
                f"value {self.value}, mean {self.mean} with status {self.status!r}: "
                "'ok' needs value and mean, any other status has neither"
            )
        return self


class Critique(Record):
    """A teacher's verdict on one trajectory: one score per step and one for the whole."""

    trajectory_id: str
    teacher: str
    privileged: bool = False
    """Whether the teacher was shown the gold answers."""
    steps: tuple[Score, ...]
    """[T]"""
    trajectory: Score

    @property
    def valid(self) -> bool:
        """Whether every score in it is a number."""
        return self.trajectory.valid and all(score.valid for score in self.steps)


R = TypeVar("R", bound=Record)


def save_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Append ``records`` to ``path``, one JSON object a line."""
    with Path(path).open("a", encoding="utf-8") as file:
        for record in records:
            file.write(record.model_dump_json() + "\n")


def load_jsonl(path: str | Path, kind: type[R]) -> Iterator[R]:
    """Yield the records in ``path``. Raises :class:`DataError` naming the first bad line, or the missing file."""
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    with Path(path).open("rb") as file:  # bytes: a line that is no UTF-8 is that line's error
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield kind.model_validate_json(line)
                except ValidationError as error:
                    raise DataError(f"{path}:{number}: not a {kind.__name__}: {first_problem(error)}") from error


def load_appended(path: str | Path, kind: type[R]) -> list[R]:
    """The records in a file that grows, none if there is none yet.

    A last line cut short by a kill is dropped, from the file too.
    """
    path = Path(path)
    if not path.exists():
        return []
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
    return list(load_jsonl(path, kind))


def first_problem(error: ValidationError) -> str:
    """The first problem of a validation error as ``field: message``."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]
