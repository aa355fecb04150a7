"""Tool environments and teachers in TRL's ``GRPOTrainer``: an ``environment_factory`` and its data set.

::

    world = environments("ovd_gym/Math-v0", tasks="basic_arithmetic", teacher="math-rules")
    GRPOTrainer(model, environment_factory=world, train_dataset=world.dataset(100), args=...).train()

TRL renders tools and results in the model's own chat template and reads its calls; a call here becomes the one step of
the environment that it is in :func:`~ovd_gym.rollout.rollout`. Checked with TRL 1.16.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import docstring_parser
import gymnasium as gym

from ovd_gym.envs.base import ToolEnv
from ovd_gym.errors import ConfigError, InfrastructureError
from ovd_gym.records import ToolCall
from ovd_gym.teachers.base import Teacher
from ovd_gym.worlds import family, tool_env
from ovd_gym.wrappers import TeacherScores

__all__ = ["Environments", "environments"]

_OVER = "The episode is over."


class Environments:
    """Makes environments as TRL wants them: ``reset``, ``get_reward``, and one method per tool.

    ``get_reward`` is the sum of the episode's rewards, None when something broke that the student has no power over:
    TRL then leaves the sample out of the mean, where 0 would call it wrong.
    """

    def __init__(
        self, env: str, options: Mapping[str, Any], teacher: Teacher | str | None, lam: float, w: float
    ) -> None:
        if "action_format" in options:
            raise ConfigError(
                "action_format has no effect here: calls come in the model's own chat template; remove it"
            )
        made, more = family(env, options)
        first = tool_env(made)
        self.tasks = first.tasks
        methods = {spec.name: _method(first, spec.name) for spec in first.tools}

        def init(episode: _Episode) -> None:
            made = tool_env(more())
            episode.world = made
            episode.env = made if teacher is None else TeacherScores(made, teacher, lam=lam, w=w)

        self._kind: type[_Episode] = type(type(first).__name__, (_Episode,), {"__init__": init, **methods})

    def __call__(self) -> Any:
        """One environment; TRL keeps and resets it."""
        return self._kind()

    def dataset(self, count: int | None = None) -> Any:
        """A ``datasets.Dataset`` of the first ``count`` tasks (None: all), with ``prompt`` and ``task_index``."""
        from datasets import Dataset

        count = len(self.tasks) if count is None else min(count, len(self.tasks))
        rows = [
            {"prompt": [{"role": "user", "content": self.tasks[i].question}], "task_index": i} for i in range(count)
        ]
        return Dataset.from_list(rows)


def environments(
    env: str, *, teacher: Teacher | str | None = None, lam: float = 0.2, w: float = 0.0, **options: Any
) -> Environments:
    """Environments for ``GRPOTrainer(environment_factory=...)``.

    Args:
        env: Gymnasium id of a tool environment (``module:id`` imports the module that registers it).
        teacher: its scores go into the reward as in :class:`~ovd_gym.wrappers.TeacherScores`; None: E alone.
        lam: weight of the trajectory's score.
        w: weight of the step potential.
        options: of the environment.

    Raises:
        ConfigError: no such tool environment, options it does not take, or weights without a teacher.
    """
    if teacher is None and (lam, w) != (0.2, 0.0):
        raise ConfigError(f"lam={lam} and w={w} weigh a teacher's scores: name a teacher, or leave them out")
    return Environments(env, options, teacher, lam, w)


class _Episode:
    """The base of what TRL is given. It takes public methods for tools, so all that is not one has an underscore."""

    world: ToolEnv
    env: gym.Env[str, str]
    _reward: float | None = 0.0
    _over = True

    def reset(self, task_index: int | None = None, **row: Any) -> None:
        """Begin an episode; what else the data set's row holds is not read."""
        self._reward, self._over = 0.0, False
        try:
            self.env.reset(options=None if task_index is None else {"task_index": task_index})
        except InfrastructureError:
            self._reward, self._over = None, True

    def get_reward(self) -> float | None:
        """What the episode has earned; None when it broke."""
        return self._reward

    def _step(self, call: ToolCall) -> str:
        if self._over or self._reward is None:
            return _OVER
        try:
            observation, reward, terminated, truncated, _ = self.env.step(self.world.action_format.render(call))
        except InfrastructureError as error:
            self._reward = None
            return f"Error: {error}"
        self._reward += float(reward)
        self._over = terminated or truncated
        return observation


def _method(world: ToolEnv, name: str) -> Callable[..., str]:
    """A method that makes the call ``name``, with signature and docstring as transformers reads them for a schema."""
    source = getattr(world, name)
    signature = inspect.signature(source, eval_str=True)
    doc = docstring_parser.parse(inspect.getdoc(source) or "")
    texts = {p.arg_name: p.description for p in doc.params}

    def method(self: _Episode, **arguments: Any) -> str:
        return self._step(ToolCall(name=name, arguments=arguments))

    told = "\n".join(f"    {p}: {texts.get(p) or p}" for p in signature.parameters)
    head = "\n\n".join(filter(None, (doc.short_description, doc.long_description)))
    method.__doc__ = f"{head}\n\nArgs:\n{told}\n" if told else head
    method.__name__ = method.__qualname__ = name
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [this, *signature.parameters.values()]
    method.__signature__ = signature.replace(parameters=parameters, return_annotation=str)  # type: ignore[attr-defined]
    method.__annotations__ = {p.name: p.annotation for p in parameters[1:]} | {"return": str}
    return method
