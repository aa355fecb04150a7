"""Tool environments and teachers as an agent loop of ``verl``.

A file named by ``actor_rollout_ref.rollout.agent.agent_loop_config_path`` says what is played, under a name that the
rows of the data set carry (:func:`rows`)::

    - name: ovd_gym
      _target_: ovd_gym.bridges.verl.ToolEnvLoop
      env: ovd_gym/Math-v0
      options: {tasks: "reasoning_gym:basic_arithmetic"}
      teacher: math-rules

The student writes its calls as text, in the environment's action format. Its tokens are kept as they were sampled,
observations are encoded without special tokens, and only sampled tokens are trained. Checked with verl 0.9.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from uuid import uuid4

from ovd_gym.agents.chat import Chat
from ovd_gym.agents.student import make_chat
from ovd_gym.bridges.plays import Play, Worlds
from ovd_gym.bridges.tokens import Generated, TokenEpisode, play_tokens
from ovd_gym.errors import ConfigError

try:
    from omegaconf import OmegaConf
    from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput
except ImportError as error:
    raise ImportError(f"this bridge is for verl 0.9: pip install verl==0.9.* ({error})") from error

__all__ = ["ToolEnvLoop", "rows"]


class ToolEnvLoop(AgentLoopBase):  # type: ignore[misc]
    """One episode of a tool environment; verl makes one for every sample.

    What breaks outside the student's power is raised. verl's trainer then leaves the sample out and marks its group as
    failed; its older batch trainer stops. Neither ever sees a 0 for it.

    Args:
        env: Gymnasium id of a tool environment (``module:id`` imports the module that registers it).
        options: of the environment.
        teacher: a teacher's name, or a mapping with it as ``name`` and options beside it; its scores go into the
            reward as in :class:`~ovd_gym.wrappers.TeacherScores`.
        lam: weight of the trajectory's score.
        w: weight of the step potential.
        chat: "template", "plain", or "auto", as in ``student.chat``.
        verls: what verl gives every agent loop.

    Raises:
        ConfigError: no such tool environment or teacher, options it does not take, or weights without a teacher.
    """

    def __init__(
        self,
        *,
        env: str,
        options: Mapping[str, Any] | None = None,
        teacher: str | Mapping[str, Any] | None = None,
        lam: float = 0.2,
        w: float = 0.0,
        chat: str = "auto",
        **verls: Any,
    ) -> None:
        super().__init__(**verls)
        self._worlds = _worlds(env, _plain(options or {}), _plain(teacher), lam, w)
        self._chat = _chat(self.tokenizer, chat)

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> Any:
        """Play the task that the row of the data set names."""
        index = _index(row.get("extra_info") or {}, self._worlds)
        request, told = uuid4().hex, _Told()

        async def generate(ids: list[int], sampling: dict[str, Any]) -> Generated:
            if self.rollout_config.name != "vllm":  # no other server of verl's takes texts here; the turn is cut later
                del sampling["stop"]
            output = await self.server_manager.generate(request_id=request, prompt_ids=ids, sampling_params=sampling)
            return told.hear(output)

        play = self._worlds.play()
        try:
            episode = await play_tokens(
                play, index, self._chat, self.tokenizer, generate, sampling_params,
                prompt_length=self.rollout_config.prompt_length, response_length=self.rollout_config.response_length,
            )  # fmt: skip
        finally:
            play.close()
        return _output(episode, play, told)


def rows(env: str, count: int | None = None, *, name: str = "ovd_gym", **options: Any) -> list[dict[str, Any]]:
    """Rows of a data set for verl, the first ``count`` tasks (None: all); write them with ``Dataset.to_parquet``.

    The gold answers are not in them: the environment grades.

    Args:
        env: as for :class:`ToolEnvLoop`.
        count: how many tasks.
        name: of the agent loop, in the file that configures it.
        options: of the environment, the same as there.
    """
    worlds = Worlds(env, options, None, 0.2, 0.0)
    count = len(worlds.tasks) if count is None else min(count, len(worlds.tasks))
    play = worlds.play()
    try:
        return [
            {
                "prompt": [message.model_dump() for message in play.open(index)],
                "agent_name": name,
                "data_source": env,
                "reward_model": {"style": "environment", "ground_truth": ""},
                "extra_info": {"index": index, "task_id": worlds.tasks[index].id},
            }
            for index in range(count)
        ]
    finally:
        play.close()


class _Told:
    """What the server says beside the tokens."""

    def __init__(self) -> None:
        self.preempted = -1
        self.fields: dict[str, Any] = {}

    def hear(self, output: Any) -> Generated:
        """Keep it; ``max_global_steps`` is that of the last turn, everything else that of the first."""
        if output.num_preempted is not None:
            self.preempted = max(self.preempted, 0) + output.num_preempted
        last = {k: v for k, v in output.extra_fields.items() if k == "max_global_steps" and v is not None}
        self.fields = {**output.extra_fields, **self.fields, **last}
        heard: Generated = output
        return heard


def _output(episode: TokenEpisode, play: Play, told: _Told) -> Any:
    assert play.reward is not None
    times = {"generate_sequences": episode.generate_s, "tool_calls": episode.environment_s}
    answered = float(play.info.get("answer") is not None)
    return AgentLoopOutput(
        prompt_ids=episode.prompt_ids,
        response_ids=episode.response_ids,
        response_mask=episode.mask,
        response_logprobs=episode.logprobs,
        reward_score=play.reward,
        num_turns=2 * episode.turns,
        metrics=AgentLoopMetrics(num_preempted=told.preempted, **times),
        extra_fields={
            **told.fields,
            "turn_scores": [],
            "tool_rewards": [],
            "reward_extra_info": {"reward": play.reward, "answered": answered},
        },
    )


def _index(asked: Mapping[str, Any], worlds: Worlds) -> int:
    """The number of the task that a row names."""
    index, task = asked.get("index"), asked.get("task_id")
    if index is None or not 0 <= index < len(worlds.tasks) or worlds.tasks[index].id != task:
        raise ConfigError(
            f"extra_info names task {task!r} (index {index}), which is none of this environment's "
            f"{len(worlds.tasks)} tasks: make the rows with ovd_gym.bridges.verl.rows and the same options"
        )
    return int(index)


def _plain(value: Any) -> str:
    """A part of the configuration as JSON, which a cache can be asked by."""
    return json.dumps(OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value)


@lru_cache(maxsize=8)
def _worlds(env: str, options: str, teacher: str, lam: float, w: float) -> Worlds:
    """One for all episodes of a process."""
    return Worlds(env, json.loads(options), json.loads(teacher), lam, w)


@lru_cache(maxsize=8)
def _chat(tokenizer: Any, kind: str) -> Chat:
    return make_chat(tokenizer, kind)
