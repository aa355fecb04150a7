"""``ToolEnv``: a Gymnasium environment in which an agent acts by writing tool calls.

The environment speaks text and messages; it knows nothing of token ids. Grading is never inside ``step``:
a subclass says what an answer is worth in :meth:`ToolEnv.grade`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, cast

import gymnasium as gym
import numpy as np
from pydantic import JsonValue

from ovd_gym.actions import ActionFormat, get_format
from ovd_gym.envs.jsonl import file_tasks
from ovd_gym.envs.spaces import UnicodeText
from ovd_gym.envs.tools import Toolbox, tool
from ovd_gym.errors import (
    ConfigError,
    DataError,
    EpisodeOver,
    InfrastructureError,
    InvalidCall,
    OvdGymError,
    ReplayMismatch,
    ToolError,
)
from ovd_gym.records import Message, Record, Task, ToolCall, ToolSpec, Trajectory
from ovd_gym.sanitize import escape_markers

__all__ = ["EpisodeSnapshot", "ToolEnv", "approximate_tokens"]

MAX_TEXT = 65_536
"""Longest text, in characters, that an action or observation may have."""


def approximate_tokens(text: str) -> int:
    """A tokenizer-free estimate: one token per four UTF-8 bytes, rounded up."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


class EpisodeSnapshot(Record):
    """A whole episode up to now; :meth:`ToolEnv.restore` brings any instance of the same environment to it."""

    task: Task
    rng_state: dict[str, JsonValue]
    """State of ``np_random`` right after ``reset`` had chosen the task."""
    actions: tuple[str, ...]
    observations: tuple[str, ...]
    """One per action, for checking that the replay unfolds as recorded."""


class ToolEnv(gym.Env[str, str]):
    """An episode: ``reset`` gives a question, every ``step(text)`` one tool call, a final tool ends it.

    A world of your own is a subclass with tools and a grade::

        class Adder(ToolEnv):
            @tool
            def add(self, a: int, b: int) -> int:
                "Add two integers."
                return a + b

            def grade(self, task, answer):
                return float(answer == task.answers[0])

    An invalid call is an error observation, not an exception: the student reads what was wrong and goes on.

    Args:
        tasks: the questions, or the path of a JSON-lines file of them (:func:`~ovd_gym.envs.jsonl.plain_task` says what
            a row holds); ``reset`` draws one at random, or takes ``options={"task": Task}`` or
            ``{"task_index": i}``.
        action_format: name or object of an :class:`~ovd_gym.actions.ActionFormat`.
        tools: names of the tools to offer besides the final ones; None offers all.
        max_turns: turns before truncation.
        max_tokens: tokens of prompt, actions and observations before truncation, counted by ``count_tokens``.
        count_tokens: tokens in a text; give the student's tokenizer for exact budgets.
        max_observation_chars: longer tool results are cut, and say so.
        system_prompt: text before the format's own instructions.
        render_mode: ``"ansi"`` or None.

    Raises:
        ConfigError: for a bad argument; DataError: for a task that cannot be asked.
    """

    metadata = {"render_modes": ["ansi"]}
    canaries: str | None = None
    """Name of the canary set that a teacher of this world is tried on; None: there is none."""

    def __init__(
        self,
        tasks: str | Sequence[Task],
        *,
        action_format: str | ActionFormat = "hermes",
        tools: Sequence[str] | None = None,
        max_turns: int = 8,
        max_tokens: int = 8192,
        count_tokens: Callable[[str], int] = approximate_tokens,
        max_observation_chars: int = 4000,
        system_prompt: str = "",
        render_mode: Literal["ansi"] | None = None,
    ) -> None:
        if isinstance(tasks, str):
            tasks = file_tasks(tasks)
        if not len(tasks):
            raise ConfigError(f"{type(self).__name__} got no tasks: it needs at least one")
        if not isinstance(tasks[0], Task):
            raise ConfigError(f"tasks are Task records, or the path of a .jsonl file of them, got {tasks[0]!r:.80}")
        for name, value in (
            ("max_turns", max_turns),
            ("max_tokens", max_tokens),
            ("max_observation_chars", max_observation_chars),
        ):
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if not isinstance(system_prompt, str):
            raise ConfigError(f"system_prompt must be a text, got {system_prompt!r}")
        if max_observation_chars > MAX_TEXT // 2:
            raise ConfigError(f"max_observation_chars must be at most {MAX_TEXT // 2}, got {max_observation_chars}")
        self.tasks = tasks
        self.action_format = get_format(action_format)
        self.max_turns = max_turns
        self.max_tokens = max_tokens
        self.max_observation_chars = max_observation_chars
        self.render_mode = render_mode
        self.action_space = UnicodeText(MAX_TEXT)
        self.observation_space = UnicodeText(MAX_TEXT)
        self.count_tokens = count_tokens
        self._system_prompt = system_prompt
        self._toolbox = Toolbox(self, None if tools is None else tuple(tools))
        self._task: Task | None = None
        self._over = True

    # What a world defines -------------------------------------------------------------------------------

    @abstractmethod
    def grade(self, task: Task, answer: str) -> float:
        """What ``answer`` is worth, in [0, 1].

        Raises :class:`~ovd_gym.errors.InfrastructureError` when it could not be graded: that is not a zero.
        """

    def start_episode(self, task: Task) -> None:
        """Prepare the tools for a fresh episode (open a session, forget the last page); default: nothing."""

    def at_update(self, updates: int) -> None:
        """Told after each learner update, and at first, how many there have been; held-out instances are not."""

    @tool(final=True)
    def answer(self, text: str) -> str:
        """Give the final answer and end the episode.

        Args:
            text: the answer alone, without explanation.
        """
        return text

    # The Gymnasium interface ----------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode and return the question.

        ``info`` holds ``task_id``, ``messages`` (the opening conversation as role/content dicts) and ``tools``
        (their schemas); never the gold answers.
        """
        super().reset(seed=seed)
        task = self._choose_task(dict(options or {}))
        if not self.observation_space.contains(task.question):
            raise DataError(f"task {task.id!r}: its question is not a text of at most {MAX_TEXT} characters")
        self._begin(task)
        info = {
            "task_id": task.id,
            "messages": [message.model_dump() for message in self.opening()],
            "tools": [spec.model_dump() for spec in self.tools],
        }
        return task.question, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Carry out the call in ``action``.

        Returns:
            observation: the tool's result, in the action format's wrapping, or an error message; reserved markers in
                it are escaped.
            reward: the grade of the answer on the final step, else 0.
            terminated: the student answered.
            truncated: turns or tokens ran out before it did; never together with ``terminated``.
            info: ``call`` (dict or None), ``error`` (why the call was refused, or None), ``answer``,
                ``turn``, ``tokens``, ``truncation`` ("turns", "tokens" or None).
        """
        if self._over or self._task is None:
            raise EpisodeOver("the episode is over: call reset() before step()")
        call, result, error, answer, failed = self._act(action)
        observation = self._fit(escape_markers(result))
        if not failed:
            observation = self.action_format.observation(observation)
        self._actions.append(action)
        self._observations.append(observation)
        self._tokens += self.count_tokens(action) + self.count_tokens(observation)
        reward = 0.0 if answer is None else self._grade(answer)
        truncation = None if answer is not None else self._exhausted()
        self._over = answer is not None or truncation is not None
        info = {
            "call": None if call is None else call.model_dump(),
            "error": error,
            "answer": answer,
            "turn": len(self._actions),
            "tokens": self._tokens,
            "truncation": truncation,
        }
        return observation, reward, answer is not None, truncation is not None, info

    def render(self) -> str | None:
        """The episode so far as plain text (``render_mode="ansi"``)."""
        if self.render_mode is None:
            return None
        turns = zip(self._actions, self._observations, strict=True) if self._task else ()
        question = self._task.question if self._task else "(no episode)"
        return "\n".join([f"[question] {question}", *(f"[action] {a}\n[result] {o}" for a, o in turns)])

    # Conversation, tools, snapshots ---------------------------------------------------------------------

    @property
    def tools(self) -> tuple[ToolSpec, ...]:
        """What the student is told of the tools."""
        return self._toolbox.specs

    @property
    def task(self) -> Task:
        """The current episode's task."""
        if self._task is None:
            raise EpisodeOver("no episode yet: call reset() first")
        return self._task

    def shared_options(self) -> dict[str, Any]:
        """Constructor options with which further instances share what this one has loaded, such as its tasks.

        They take the place of ``tasks`` and ``task_options``.
        """
        return {"tasks": self.tasks}

    def describe(self) -> dict[str, JsonValue]:
        """What the figures of this world depend on, for the record of an evaluation. Never a key or a password."""
        return {
            "class": f"{type(self).__module__}:{type(self).__qualname__}",
            "action_format": self.action_format.name,
            "tools": [spec.name for spec in self.tools],
            "max_turns": self.max_turns,
            "max_tokens": self.max_tokens,
            "max_observation_chars": self.max_observation_chars,
        }

    def measures(self, trajectory: Trajectory) -> dict[str, float]:
        """What an evaluation reports of an episode beside its reward, each in [0, 1]. Here nothing."""
        return {}

    def opening(self) -> tuple[Message, ...]:
        """The conversation an agent starts from: instructions, then the question."""
        instructions = self.action_format.instructions(self.tools)
        system = "\n\n".join(filter(None, (self._system_prompt, instructions)))
        return Message(role="system", content=system), Message(role="user", content=self.task.question)

    def reopen(self) -> bool:
        """Let an episode that ended with an answer go on; False if its turns or tokens are used up."""
        if self._exhausted():
            return False
        self._over = False
        return True

    def snapshot(self) -> EpisodeSnapshot:
        """The whole episode up to now, as a record."""
        return EpisodeSnapshot(
            task=self.task,
            rng_state=self._rng_state,
            actions=tuple(self._actions),
            observations=tuple(self._observations),
        )

    def restore(self, snapshot: EpisodeSnapshot) -> str:
        """Bring this instance to ``snapshot`` by replaying its actions; returns the last observation.

        Raises :class:`ReplayMismatch` when a tool answers differently than it did.
        """
        self.np_random.bit_generator.state = snapshot.rng_state
        self._begin(snapshot.task)
        observation = snapshot.task.question
        for turn, (action, recorded) in enumerate(zip(snapshot.actions, snapshot.observations, strict=True)):
            observation = self.step(action)[0]
            if observation != recorded:
                raise ReplayMismatch(f"turn {turn}: recorded {recorded[:80]!r}, replayed {observation[:80]!r}")
        return observation

    # Internals ------------------------------------------------------------------------------------------

    def _begin(self, task: Task) -> None:
        self._task = task
        self._rng_state = cast("dict[str, JsonValue]", self.np_random.bit_generator.state)
        self._actions: list[str] = []
        self._observations: list[str] = []
        self._over = False
        self._tokens = sum(self.count_tokens(message.content) for message in self.opening())
        self.start_episode(task)

    def _choose_task(self, options: dict[str, Any]) -> Task:
        if extra := options.keys() - {"task", "task_index"} or (options.keys() if len(options) > 1 else set()):
            raise ConfigError(f"reset options {sorted(extra)}: give one of 'task' (a Task), 'task_index' (an int)")
        if isinstance(task := options.get("task"), Task):
            return task
        if "task" in options:
            raise ConfigError(f"option 'task' must be a Task, got {type(task).__name__}")
        index = options.get("task_index")
        if index is None:
            index = int(self.np_random.integers(len(self.tasks)))
        if not isinstance(index, int | np.integer) or not 0 <= index < len(self.tasks):
            raise ConfigError(f"option 'task_index' must be in 0..{len(self.tasks) - 1}, got {index!r}")
        return self.tasks[int(index)]

    def _act(self, action: str) -> _Outcome:
        if not self.action_space.contains(action):
            what = f"{len(action)} characters" if isinstance(action, str) else type(action).__name__
            return _refused(f"an action is a text of at most {MAX_TEXT} characters, got {what}")
        call = None
        try:
            call = self.action_format.parse(action, self.tools)
            result = self._toolbox.run(call)
        except InvalidCall as error:
            return _refused(str(error))
        except ToolError as error:
            return _Outcome(call, f"Error: {error}", failed=True)
        except OvdGymError:
            raise
        except Exception as error:
            # A bug in a tool is neither the student's mistake nor a reason to lose the other episodes.
            what = f"{type(error).__name__}: {error}"
            raise InfrastructureError(f"tool {call.name if call else '?'!r} raised {what}") from error
        return _Outcome(call, result, answer=result if self._toolbox.is_final(call) else None)

    def _grade(self, answer: str) -> float:
        reward = float(self.grade(self.task, answer))
        if not 0.0 <= reward <= 1.0:
            raise ConfigError(f"{type(self).__name__}.grade returned {reward}, but a reward lies in [0, 1]")
        return reward

    def _exhausted(self) -> str | None:
        if len(self._actions) >= self.max_turns:
            return "turns"
        return "tokens" if self._tokens >= self.max_tokens else None

    def _fit(self, text: str) -> str:
        text = text.encode("utf-8", "replace").decode("utf-8")
        if len(text) <= self.max_observation_chars:
            return text
        return f"{text[: self.max_observation_chars]}\n[cut: {len(text) - self.max_observation_chars} more characters]"


class _Outcome(NamedTuple):
    """What came of one action."""

    call: ToolCall | None
    observation: str
    error: str | None = None
    answer: str | None = None
    failed: bool = False
    """Whether the observation is an error message: the environment's own words, not a tool's."""


def _refused(message: str) -> _Outcome:
    return _Outcome(None, f"Error: {message}", message, failed=True)
