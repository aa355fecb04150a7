"""``MathEnv``: answer a mathematical question, with Python at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from pydantic import JsonValue

from ovd_gym.actions import ActionFormat, get_format
from ovd_gym.envs.base import ToolEnv
from ovd_gym.envs.math_qa.equivalence import Verdict, compare, compare_numbers
from ovd_gym.envs.math_qa.plain import plain_number
from ovd_gym.envs.math_qa.sandbox import Sandbox, SandboxLimits
from ovd_gym.envs.math_qa.tasks import load_tasks
from ovd_gym.envs.tools import tool
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Task

__all__ = ["MathEnv"]


class MathEnv(ToolEnv):
    r"""Questions with exact answers; reward 1 for an answer equal to a gold answer, else 0.

    Equality is mathematical (:mod:`~ovd_gym.envs.math_qa.equivalence`): "1/2" is "0.5" is "$\frac{1}{2}$". A task
    whose metadata has ``"form": "number"`` wants one plain number (:mod:`~ovd_gym.envs.math_qa.plain`), not a
    calculation equal to it, and exactly that number; ``"error"`` is a numerical tolerance. The last step's
    ``info["grading"]`` says how the verdict was reached.

    ``action_format="boxed"`` is the single-turn mode: one solution, no tools.

    Args:
        tasks: tasks, or what :func:`~ovd_gym.envs.math_qa.tasks.load_tasks` takes: "reasoning_gym:chain_sum",
            "hub:openai/gsm8k", or the path of a JSON-lines file.
        task_options: options for ``load_tasks``, such as ``{"size": 100, "seed": 1}``.
        limits: of each Python call: a :class:`SandboxLimits` or its fields.
        action_format, tools, max_turns and all others: as for :class:`~ovd_gym.envs.base.ToolEnv`.
    """

    canaries = "math"

    def __init__(
        self,
        tasks: str | Sequence[Task] = "reasoning_gym:chain_sum",
        *,
        task_options: Mapping[str, Any] | None = None,
        limits: SandboxLimits | Mapping[str, Any] | None = None,
        action_format: str | ActionFormat = "hermes",
        **options: Any,
    ) -> None:
        if isinstance(tasks, str):
            tasks = load_tasks(tasks, **(task_options or {}))
        elif task_options:
            raise ConfigError("task_options belong to tasks given by name; these are given as a sequence")
        self._sandbox = Sandbox(_limits(limits))
        self._verdict: Verdict | None = None
        if get_format(action_format).name == "boxed":
            options = {"tools": (), "max_turns": 1} | options
            if options["tools"] or options["max_turns"] != 1:
                raise ConfigError("the boxed format is one turn without tools: leave out 'tools' and 'max_turns'")
        super().__init__(tasks, action_format=action_format, **options)

    @tool
    def python(self, code: str) -> str:
        """Run Python code and return what it prints and the value of its last expression.

        Variables are kept between calls. The sympy module takes and returns text: sympy.solve("x**2 - 4", "x").

        Args:
            code: the code; no files, no network, a few seconds.
        """
        return self._sandbox.run(code)

    def start_episode(self, task: Task) -> None:
        """Forget the last episode's variables. Raises DataError for a gold answer that is not of the form asked for."""
        if task.metadata.get("form") == "number" and (bad := [a for a in task.answers if plain_number(a) is None]):
            raise DataError(f"task {task.id!r} asks for a plain number, but its answer is {bad[0][:80]!r}")
        self._sandbox.close()
        self._verdict = None

    def grade(self, task: Task, answer: str) -> float:
        """1.0 if ``answer`` equals one of the gold answers, else 0.0."""
        self._verdict = self._judge(task, answer)
        return float(self._verdict.equal)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """As :meth:`ToolEnv.step`; ``info`` also holds ``grading`` (see :class:`Verdict`), None before the answer."""
        observation, reward, terminated, truncated, info = super().step(action)
        info["grading"] = None if self._verdict is None else self._verdict.how
        return observation, reward, terminated, truncated, info

    def describe(self) -> dict[str, JsonValue]:
        """As :meth:`ToolEnv.describe`, with what compares the answers and the sandbox's limits."""
        rule = (
            f"mathematical equality, math-verify {version('math-verify')}, or a plain number where a task asks for it"
        )
        limits: dict[str, JsonValue] = asdict(self._sandbox.limits)
        return super().describe() | {"answers": rule, "sandbox": limits}

    def close(self) -> None:
        """Give the sandbox process back."""
        self._sandbox.close()
        super().close()

    def _judge(self, task: Task, answer: str) -> Verdict:
        tolerance = task.metadata.get("error")
        assert tolerance is None or isinstance(tolerance, float | int)
        judge = compare_numbers if task.metadata.get("form") == "number" else compare
        verdict = Verdict(False, "identical")
        for gold in task.answers:
            verdict = judge(gold, answer, tolerance=tolerance)
            if verdict.equal:
                break
        return verdict


def _limits(limits: SandboxLimits | Mapping[str, Any] | None) -> SandboxLimits:
    if limits is None or isinstance(limits, SandboxLimits):
        return limits or SandboxLimits()
    try:
        return SandboxLimits(**limits)
    except TypeError as error:
        raise ConfigError(f"sandbox limits {dict(limits)}: {error}; give time_s, memory_mb, output_chars") from error
