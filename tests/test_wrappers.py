"""A teacher's scores as reward: the formula, invalid scores, and the company of Gymnasium's own wrappers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest

from ovd_gym.envs.base import ToolEnv
from ovd_gym.envs.tools import tool
from ovd_gym.errors import ConfigError
from ovd_gym.records import Score, Task
from ovd_gym.teachers.base import Teacher, View
from ovd_gym.wrappers import TeacherScores

TASKS = [Task(id="1", question="Calculate 2 * 21.", answers=("42",))]


class Multiplier(ToolEnv):
    """Multiplies."""

    def __init__(self, **options: Any) -> None:
        super().__init__(TASKS, action_format="line", **options)

    @tool
    def python(self, code: str) -> str:
        """Multiply two numbers."""
        left, _, right = code.partition("*")
        return str(int(left) * int(right))

    def grade(self, task: Task, answer: str) -> float:
        return float(answer == task.answers[0])


class Script(Teacher):
    """Gives the scores of a list, steps and trajectories as they come; None is an invalid one."""

    def __init__(self, *values: float | None, privileged: bool = False) -> None:
        self.values = list(values)
        self.privileged = privileged
        self.views: list[View] = []

    def score(self, view: View) -> Score:
        self.views.append(view)
        value = self.values.pop(0)
        return Score.invalid("timeout", "too slow") if value is None else Score.of(value)

    def judge(self, views: Any) -> list[Score]:
        return [self.score(view) for view in views]


@pytest.fixture
def registered() -> Iterator[str]:
    gym.register("Multiplier-v0", entry_point=Multiplier, max_episode_steps=None)
    yield "Multiplier-v0"
    gym.registry.pop("Multiplier-v0")


def episode(env: gym.Env[str, str], *actions: str) -> list[tuple[float, dict[str, Any]]]:
    env.reset(seed=0)
    steps = [env.step(action) for action in actions]
    return [(float(reward), info) for _, reward, _, _, info in steps]


def test_the_reward_is_potential_plus_blend() -> None:
    env = TeacherScores(Multiplier(), Script(6, 3, 9, 4.5), lam=0.2, w=0.5)
    steps = episode(env, "python: 2 * 21", "what?", "answer: 42")
    first, second, third = (reward for reward, _ in steps)
    assert first == pytest.approx(0.5 * 6 / 9)
    assert second == pytest.approx(0.5 * (3 - 6) / 9)
    assert third == pytest.approx(0.5 * (9 - 3) / 9 + 0.8 * 1 + 0.2 * 0.5)


def test_shaping_adds_up_to_the_last_potential() -> None:
    env = TeacherScores(Multiplier(), Script(1, 8, 2, 5, 0), lam=0.0, w=1.0)
    total = sum(reward for reward, _ in episode(env, "python: 2*2", "python: 2*3", "python: 2*4", "answer: 42"))
    assert total == pytest.approx(5 / 9 + 1.0)


def test_without_weights_it_is_the_environment_reward() -> None:
    actions = ("python: 2 * 21", "answer: 42")
    plain = [reward for reward, _ in episode(Multiplier(), *actions)]
    wrapped = [reward for reward, _ in episode(TeacherScores(Multiplier(), Script(6, 9, 9), lam=0, w=0), *actions)]
    assert wrapped == plain


def test_an_invalid_score_adds_nothing_and_says_why() -> None:
    env = TeacherScores(Multiplier(), Script(6, None, 3, None), lam=0.2, w=0.5)
    (_, _), (second, info), (third, end) = episode(env, "python: 2*2", "python: 2*3", "answer: 42")
    assert second == 0.0
    assert info["score"] == {"status": "timeout", "rationale": "too slow"}
    assert third == pytest.approx(0.5 * (3 - 6) / 9 + 1.0)  # from the last valid potential; E alone
    assert end["trajectory_score"]["status"] == "timeout"


def test_info_holds_scores_and_the_environment_reward() -> None:
    (_, first), (_, last) = episode(TeacherScores(Multiplier(), Script(6, 9, 8)), "python: 2*21", "answer: 42")
    assert first["score"]["value"] == 6
    assert first["env_reward"] == 0.0
    assert "trajectory_score" not in first
    assert last["trajectory_score"]["mean"] == 8.0
    assert last["env_reward"] == 1.0


def test_a_truncated_episode_is_scored_as_a_whole() -> None:
    env = TeacherScores(Multiplier(max_turns=1), Script(6, 3), lam=0.2, w=0.0)
    ((reward, info),) = episode(env, "python: 2*21")
    assert reward == pytest.approx(0.2 * 3 / 9)
    assert info["truncation"] == "turns"


@pytest.mark.parametrize("privileged", [False, True])
def test_what_the_teacher_is_shown(privileged: bool) -> None:
    teacher = Script(6, 9, 8, privileged=privileged)
    episode(TeacherScores(Multiplier(), teacher), "python: 2 * 21", "answer: 42")
    first, second, whole = teacher.views
    assert [len(view.steps) for view in (first, second, whole)] == [1, 2, 2]
    assert (first.answer, second.answer, whole.kind) == (None, "42", "trajectory")
    assert first.steps[0].arguments == {"code": "2 * 21"}
    assert first.steps[0].observation == "42"
    assert first.gold == (("42",) if privileged else None)


def test_episodes_do_not_leak_into_one_another() -> None:
    teacher = Script(9, 9, 3, 3)
    env = TeacherScores(Multiplier(), teacher, w=0.5, lam=0.0)
    episode(env, "answer: 42")
    ((reward, _),) = episode(env, "answer: 42")
    assert reward == pytest.approx(0.5 * 3 / 9 + 1.0)
    assert len(teacher.views[-1].steps) == 1


def test_a_made_environment_among_other_wrappers(registered: str) -> None:
    env = gym.wrappers.RecordEpisodeStatistics(TeacherScores(gym.make(registered), "math-rules"))
    env.reset(seed=1)
    env.step("python: 2 * 21")
    *_, info = env.step("answer: 42")
    assert info["trajectory_score"]["value"] == 9
    assert info["episode"]["r"] == pytest.approx(0.5 + 1.0)  # w * u of the last step, then E = u = 1


def test_a_vector_of_environments(registered: str) -> None:
    wrapper = functools.partial(TeacherScores, teacher="math-rules")
    envs = gym.make_vec(registered, num_envs=2, vectorization_mode="sync", wrappers=[wrapper])
    envs.reset(seed=0)
    envs.step(("python: 2 * 21", "python: 2 * 21"))
    _, rewards, terminated, _, info = envs.step(("answer: 42", "answer: 43"))
    assert terminated.tolist() == [True, True]
    assert rewards[0] > 0.9
    assert rewards[1] < 0.1
    assert info["trajectory_score"]["value"].tolist() == [9, 2]
    envs.close()


def test_the_spec_remembers_the_wrapper(registered: str) -> None:
    env = TeacherScores(gym.make(registered), "math-rules", lam=0.1)
    assert env.spec is not None
    again = gym.make(env.spec)
    assert isinstance(again, TeacherScores)
    assert again.lam == 0.1


@pytest.mark.parametrize("options", [{"lam": 1.5}, {"lam": -0.1}, {"w": -1.0}, {"w": float("nan")}])
def test_weights_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"lam in \[0, 1\] and w >= 0"):
        TeacherScores(Multiplier(), "math-rules", **options)


def test_only_tool_environments() -> None:
    class Other(gym.Env[str, str]):
        """No tools."""

    with pytest.raises(ConfigError, match="needs a ToolEnv, got Other"):
        TeacherScores(Other(), "math-rules")
