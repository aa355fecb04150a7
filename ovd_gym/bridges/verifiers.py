"""Tool environments and teachers as an environment of ``verifiers`` (its ``v1`` interface).

A taskset of verifiers is an importable module of its own, here ``sums.py``, that exports what is made here::

    from ovd_gym.bridges.verifiers import ChatHarness, environment

    Sums, SumsTasks = environment("ovd_gym/Math-v0", tasks="reasoning_gym:basic_arithmetic", teacher="math-rules")
    __all__ = ["ChatHarness", "Sums", "SumsTasks"]

The student writes its calls as text, in the environment's action format; what comes back is the next user message, as
with verifiers' own game tasksets. Token ids are kept by the client of verifiers. Checked with verifiers 0.4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from ovd_gym.bridges.plays import Worlds
from ovd_gym.errors import ConfigError, InfrastructureError
from ovd_gym.records import Message
from ovd_gym.teachers.base import Teacher

try:
    import openai
    import verifiers.v1 as vf
    from verifiers.v1.dialects.chat import message_to_wire
    from verifiers.v1.harnesses.utils.compaction import is_context_overflow
except ImportError as error:
    raise ImportError(f"this bridge is for verifiers 0.4: pip install verifiers==0.4.* ({error})") from error

__all__ = ["ChatHarness", "ToolEnvConfig", "environment"]

REWARD = "reward"
"""Name of the one reward in a trace. It is None where the episode broke."""


class ChatHarness(vf.Harness[vf.HarnessConfig]):  # type: ignore[misc]
    """One request a turn, made in this process: no program is started, and the student is given nothing to run."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: Any,
        trace: Any,
        runtime: Any,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: Any,
    ) -> Any:
        """Let the model speak once; without a word if its context is full, which ends the episode."""
        system, prompt = self.resolve_prompt(data)
        said = [vf.UserMessage(content=prompt)] if isinstance(prompt, str) else list(prompt or ())
        if system:
            said.insert(0, vf.SystemMessage(content=system))
        messages: Any = [message_to_wire(message) for message in said]
        async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret, timeout=None) as client:
            try:
                await client.chat.completions.create(model=ctx.model, messages=messages)
            except openai.APIStatusError as error:
                if not is_context_overflow(error):
                    raise
        return vf.ProgramResult(exit_code=0, stdout="", stderr="")


class ToolEnvConfig(vf.EnvConfig):  # type: ignore[misc]
    """One seat, as in the environment that verifiers gives any plain taskset; it runs in this process."""

    agent: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class _Tasks(vf.Taskset[vf.Task, vf.TasksetConfig]):  # type: ignore[misc]
    """Every task of the environment: what the student reads, and no gold answer."""

    worlds: ClassVar[Worlds]

    def load(self) -> Iterator[Any]:
        """The tasks, in the environment's own order."""
        world = self.worlds.first
        world.reset(options={"task_index": 0})
        system = _system(world.opening())
        for task in self.worlds.tasks:
            data = vf.TaskData(id=task.id, name=task.id, prompt=task.question, system_prompt=system)
            yield vf.Task(data, self.config.task)


class _Env(vf.Env[ToolEnvConfig]):  # type: ignore[misc]
    """The student's turns are the environment's steps."""

    worlds: ClassVar[Worlds]

    async def run(self, task: Any, agents: Any) -> None:
        """One episode. What breaks is raised: the trace is then not ``ok``, and its reward stays None."""
        play = await asyncio.to_thread(self.worlds.play)
        try:
            async with agents.agent.interaction(task) as talk:
                talk.trace.rewards[REWARD] = None
                await asyncio.to_thread(play.open, _index(task.data, self.worlds))
                segment = await talk.turn()
                while not segment.terminated:
                    observation = await asyncio.to_thread(play.act, segment.last_reply)
                    if observation is None:
                        break
                    segment = await talk.turn(observation)
                if talk.trace.is_timeout:
                    raise InfrastructureError(f"no time was left: {talk.trace.stop_condition}")
                if not talk.trace.errors and play.reward is not None:
                    talk.trace.record_reward(REWARD, play.reward)
                    talk.trace.record_metrics(play.measures())
        finally:
            await asyncio.to_thread(play.close)


def environment(
    env: str,
    *,
    teacher: Teacher | str | Mapping[str, Any] | None = None,
    lam: float = 0.2,
    w: float = 0.0,
    **options: Any,
) -> tuple[type[Any], type[Any]]:
    """An ``Env`` and a ``Taskset`` for a module that verifiers takes as a taskset; see above.

    Args:
        env: Gymnasium id of a tool environment (``module:id`` imports the module that registers it).
        teacher: what :func:`~ovd_gym.teachers.registry.make_teacher` takes; its scores go into the reward as in
            :class:`~ovd_gym.wrappers.TeacherScores`. None: the environment's reward alone.
        lam: weight of the trajectory's score.
        w: weight of the step potential.
        options: of the environment.

    Raises:
        ConfigError: no such tool environment or teacher, options it does not take, or weights without a teacher.
    """
    worlds = Worlds(env, options, teacher, lam, w)
    name, shared = type(worlds.first).__name__, {"worlds": worlds, "__module__": __name__}
    return type(name, (_Env,), shared), type(f"{name}Tasks", (_Tasks,), shared)


def _index(data: Any, worlds: Worlds) -> int:
    """The number of a task that verifiers hands back."""
    index: int | None = data.idx
    if index is None or not 0 <= index < len(worlds.tasks) or worlds.tasks[index].id != data.id:
        raise ConfigError(f"task {data.id!r} (idx {index}) is none of this environment's {len(worlds.tasks)} tasks")
    return index


def _system(opening: tuple[Message, ...]) -> str | None:
    return "\n\n".join(message.content for message in opening if message.role == "system") or None
