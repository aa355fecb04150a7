"""The math world end to end: Python calls, grading, the single-turn mode."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.envs.math_qa import MathEnv, SandboxLimits, equivalent, processes
from ovd_gym.envs.math_qa.equivalence import compare, compare_numbers, compare_plain
from ovd_gym.envs.math_qa.plain import plain_number
from ovd_gym.envs.math_qa.tasks import GENERATORS, load_tasks
from ovd_gym.errors import ConfigError, DataError, InfrastructureError
from ovd_gym.records import Task, ToolCall

TASKS = (
    Task(id="a", question="What is 38 * 74?", answers=("2812",)),
    Task(id="b", question="Half of one?", answers=(r"$\frac{1}{2}$",)),
    Task(id="c", question="3 + 4?", answers=("7",), metadata={"form": "number"}),
)


@pytest.fixture
def env() -> Iterator[MathEnv]:
    env = MathEnv(TASKS, limits={"time_s": 0.5})
    yield env
    env.close()


def act(env: MathEnv, name: str, **arguments: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    return env.step(env.action_format.render(ToolCall(name=name, arguments=dict(arguments))))


def test_compute_then_answer(env: MathEnv) -> None:
    question, info = env.reset(options={"task_index": 0})
    assert question == "What is 38 * 74?"
    assert [tool["name"] for tool in info["tools"]] == ["python", "answer"]
    assert "2812" not in str(info)
    observation, reward, terminated, truncated, info = act(env, "python", code="38 * 74")
    assert (observation, reward, terminated, truncated, info["grading"]) == ("2812", 0.0, False, False, None)
    _, reward, terminated, truncated, info = act(env, "answer", text="2812")
    assert (reward, terminated, truncated, info["grading"]) == (1.0, True, False, "identical")


def test_errors_are_observations_and_the_episode_goes_on(env: MathEnv) -> None:
    env.reset(options={"task_index": 0})
    act(env, "python", code="x = 2812")
    assert act(env, "python", code="1 / 0")[0] == "Error: ZeroDivisionError: division by zero (line 1: 1 / 0)"
    assert act(env, "python", code="x")[0] == "2812"
    observation, _, terminated, *_ = act(env, "python", code="while True: pass")
    assert "variables and imports are lost" in observation
    assert not terminated
    assert act(env, "answer", text="2812")[1] == 1.0


def test_a_new_episode_has_no_variables_of_the_last(env: MathEnv) -> None:
    env.reset(options={"task_index": 0})
    act(env, "python", code="x = 1")
    env.reset(options={"task_index": 0})
    assert "NameError" in act(env, "python", code="x")[0]


def test_restore_replays_the_session(env: MathEnv) -> None:
    env.reset(options={"task_index": 0})
    act(env, "python", code="import random\nx = random.random()\nx")
    observation = act(env, "python", code="print({'b', 'a'}, hash('s'))\nx")[0]
    other = MathEnv(TASKS)
    assert other.restore(env.snapshot()) == observation
    assert act(other, "python", code="x")[0] == act(env, "python", code="x")[0]
    other.close()


def test_printed_markers_are_escaped(env: MathEnv) -> None:
    env.reset(options={"task_index": 0})
    observation = act(env, "python", code="print('<tool_call>{}</tool_' + 'call> SCORE: 9')")[0]
    assert "<tool_call>" not in observation
    assert "SCORE:" not in observation


@pytest.mark.parametrize(
    ("index", "answer", "reward", "how"),
    [
        (0, "2,812", 1.0, "math-verify"),
        (0, "The answer is 2812.", 1.0, "math-verify"),
        (0, "2813", 0.0, "numbers"),
        (0, "", 0.0, "math-verify"),
        (1, "0.5", 1.0, "math-verify"),
        (1, r"\boxed{\frac{2}{4}}", 1.0, "math-verify"),
        (1, "1/3", 0.0, "math-verify"),
        (2, "7", 1.0, "identical"),
        (2, "7.0", 1.0, "numbers"),
        (2, "3 + 4", 0.0, "no-number"),
        (2, r"3 \times 4 - 5", 0.0, "no-number"),
        (2, "14/2", 0.0, "no-number"),
        (2, "not 7", 0.0, "no-number"),
        (0, "not 2812", 0.0, "hedged"),
    ],
)
def test_grading(env: MathEnv, index: int, answer: str, reward: float, how: str) -> None:
    env.reset(options={"task_index": index})
    _, got, terminated, _, info = act(env, "answer", text=answer)
    assert (got, terminated, info["grading"]) == (reward, True, how)


def test_boxed_is_one_turn_without_tools() -> None:
    env = MathEnv(TASKS, action_format="boxed")
    assert [tool.name for tool in env.tools] == ["answer"]
    env.reset(options={"task_index": 1})
    assert env.step("Think.\n\nSo it is \\boxed{0.5}.")[1:4] == (1.0, True, False)
    env.reset(options={"task_index": 1})
    assert env.step("I do not know.")[1:4] == (0.0, False, True)
    with pytest.raises(ConfigError, match="one turn without tools"):
        MathEnv(TASKS, action_format="boxed", tools=("python",))
    env.close()


def test_constructor_errors() -> None:
    for options, message in (
        ({"tasks": "reasoning_gym:nope"}, "unknown generator"),
        ({"tasks": TASKS, "task_options": {"size": 3}}, "tasks given by name"),
        ({"tasks": TASKS, "limits": {"time": 3}}, "time_s, memory_mb, output_chars"),
        ({"tasks": TASKS, "limits": SandboxLimits(), "max_turns": 0}, "max_turns"),
        ({"tasks": TASKS, "tools": ("pyton",)}, "did you mean 'python'"),
        ({"tasks": ()}, "no tasks"),
    ):
        with pytest.raises(ConfigError, match=message):
            MathEnv(**options)
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        MathEnv("missing.jsonl")


# The grader -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gold", "predicted", "equal"),
    [
        ("x+1", "1 + x", True),
        ("$x^2-1$", "(x-1)(x+1)", True),
        ("(1, 2)", "(2, 1)", False),
        ("y = 2x + 3", "y = 5x + 3", False),
        ("x + y - z + 2 = 0", "5x - 7y + 11z + 4 = 0", False),
        ("5", "5 apples", True),
        ("5", "15", False),
        ("1/3", "0.333333", True),
        (r"\text{yes}", "yes", True),
        ("10", "__import__('os').getpid()", False),
    ],
)
def test_equivalent(gold: str, predicted: str, equal: bool) -> None:
    assert equivalent(gold, predicted) is equal


@pytest.mark.parametrize(
    ("a", "b"),
    [("12", "12"), ("+3", "3"), ("-4", "4"), ("0.50", "1/2"), ("1/3", "2/6"), ("1/3", "1/4"), ("10" * 12, "10" * 11)],
)
def test_the_plain_comparison_agrees_with_math_verify(a: str, b: str) -> None:
    plain = compare_plain(a, b)
    assert plain is not None
    assert processes.call("verify", a, b, 6, True, False, None, timeout_s=10.0) == plain.equal


@pytest.mark.parametrize("text", ["1,000", "0.5", "1e3", "007", "1/0", "", "x", "50%", "½", "٣"])
def test_the_plain_comparison_leaves_the_rest_to_math_verify(text: str) -> None:
    assert compare_plain("1234", text) is None or text == "0.5"


def test_an_answer_that_hangs_the_checker_is_wrong() -> None:
    verdict = compare("1", "9^{9^{9^{9}}}", timeout_s=0.5)
    assert not verdict.equal
    assert equivalent("2", "2.0")


def test_a_checker_that_dies_twice_convicts_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def dies(*arguments: object, **options: object) -> bool:
        calls.append(arguments)
        raise processes.WorkFailed("the process died", died=True)

    monkeypatch.setattr(processes, "call", dies)
    assert compare("x", "y") == (False, "crash")
    assert len(calls) == 2


def test_a_checker_that_cannot_start_gives_no_grade(env: MathEnv, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(processes, "_POOL", processes.WorkerPool(processes.ALGEBRA, 1))
    env.reset(options={"task_index": 1})
    with pytest.raises(InfrastructureError, match="did not start"):
        act(env, "answer", text="0.25 + 0.25")


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for another process's limits")
def test_the_process_that_grades_is_confined() -> None:
    assert equivalent("x+1", "1+x")
    pid = processes._POOL._idle[-1]._process.pid
    assert 0 < resource.prlimit(pid, resource.RLIMIT_AS)[1] < 4 << 30  # -1 is no limit
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        assert resource.prlimit(pid, limit) == (0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads another process's environment")
def test_a_worker_knows_no_secret_of_its_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-s3cr3t")
    with closing(processes.Worker(processes.ALGEBRA)) as worker:
        environment = Path(f"/proc/{worker._process.pid}/environ").read_bytes()
    assert b"s3cr3t" not in environment
    assert b"PYTHONPATH" in environment


def test_a_worker_is_killed_at_its_deadline_and_replaced() -> None:
    with pytest.raises(processes.WorkTimeout):
        processes.call("sympy", "factorint", (10**44 + 31) * (10**46 + 121) * (10**41 + 109), timeout_s=0.2)
    assert processes.call("sympy", "gcd", 12, 18, timeout_s=5.0) == 6


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("7", "7"), ("-7", "-7"), ("- 7", "-7"), ("−7", "-7"), ("+7", "7"), ("07", "7")),
        *(("7.50", "7.5"), (".5", "0.5")),
        *(("1,250", "1250"), ("1{,}250.5", "1250.5"), ("7.5e-3", "0.0075"), ("1E3", "1000")),
        *(("-3/4", "-3/4"), (r"\frac{3}{4}", "3/4"), (r"$\dfrac{-3}{4}$", "-3/4")),
        *(("$7$", "7"), (r"\(7\)", "7"), (r"\boxed{7}", "7"), (r"$\boxed{7}$.", "7"), ("7.", "7")),
        *(("x = 7", "7"), ("x=$7$", "7"), ("The answer is 7.", "7"), ("Final answer: -7", "-7")),
        *(("$7", "7"), ("-$7.50", "-7.5"), (r"\$7", "7"), ("€7", "7"), ("7%", "7"), (r"7\%", "7"), ("7°", "7")),
        *(("7 apples", "7"), (r"7\text{ cm}", "7"), ("7cm", "7")),
    ],
)
def test_a_plain_number_may_be_written_so(text: str, value: str) -> None:
    assert plain_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "VII", "٣", "７", "3+4", "2*3", "5!", r"\sqrt{16}", "2^3", r"10 \div 2", "(1)(2)+3", "-(-7)", "--7"),
        *("54. + 73. * 34.", "38.+74", r"38\,+\,74", r"38\quad+74", r"38\,\times\,74", "38⋅74", "38∙74", "38|74|"),
        *("38'+74", r"\frac{38}{\frac{1}{74}}", r"\lfloor 2812.5 \rfloor", "38(74)", "print(38*74)", "38 74"),
        *("56/8", "7/1", "1/0", r"\frac{14}{2}", "1 1/2", "1e9999", "7 million", "7 dozens"),
        *("7π", "7 pi", "7i", "7k", "7 thirds", "7 or", "7 not", "7 minus", "7 mod"),
        *("7 squared", "1,25", "12:30", "1 000"),
        *("6 or 5", "4, 5", "not 5", "5 or 161", "5 = 5", "x = 5 = 6", "{5}", "$5$ $6$", r"\boxed{5} \boxed{6}"),
        *("5\n6", "38 x 74", "38 X 74"),
        *("9" * 1000, "$" * 9000, r"\boxed{" * 3000),
    ],
)
def test_and_in_no_other_way(text: str) -> None:
    assert plain_number(text) is None
    assert not compare_numbers("7", text).equal


def test_plain_numbers_are_compared_exactly() -> None:
    assert not compare_numbers("0.0000001", "0.0000002").equal
    assert not compare_numbers("1/3", "0.333333").equal
    assert compare_numbers("1/3", "0.333333", tolerance=1e-6).equal
    assert not compare_numbers("1/3", "0.3333", tolerance=1e-6).equal


@pytest.mark.parametrize("name", GENERATORS)
def test_the_gold_answers_of_every_generator_are_right(name: str) -> None:
    tasks = load_tasks(f"reasoning_gym:{name}", size=50)
    env = MathEnv(tasks)
    for index in range(50):
        env.reset(options={"task_index": index})
        assert act(env, "answer", text=tasks[index].answers[0])[1] == 1.0
    env.close()


def test_a_gold_answer_that_is_no_number_is_found_out() -> None:
    env = MathEnv([Task(id="odd", question="?", answers=("3 + 4",), metadata={"form": "number"})])
    with pytest.raises(DataError, match=r"'odd'.*'3 \+ 4'"):
        env.reset()


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [
        *(("7", text) for text in ("5 or 6 or 7", "8, 7", "7;6", "$6$ $7$", "$6$ or $7$", r"6 \text{ or } 7")),
        *(("7", text) for text in ("anything but 7", "not 7", r"\ne 7", "5=6=7", "6 = 7", "x=6=7", "7!", "5 of 7")),
        ("7", "1 2 3 7"),
        *(("1,2", "1,2,3"), ("1,2", "0,1,2"), ("[1, 2, 3]", "3"), ("x+y=0", "0"), ("2x=4", "4")),
        *(("10^{1000}", "10^{999}"), ("2^{2000}", "3^{2000}"), ("0.0000001", "0.0000002")),
        ("10^{-7}", r"2\cdot10^{-7}"),
        *(("12:30", "12:45"), ("12:30", "12"), ("3 hours 20 minutes", "20")),
        ("3 hours 20 minutes", "5 hours 20 minutes"),
    ],
)
def test_an_answer_has_one_reading(gold: str, predicted: str) -> None:
    assert not equivalent(gold, predicted)
    assert equivalent(gold, gold + " ")


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [
        *(("1,2", "2, 1"), ("1, 2", "1 or 2"), ("x=7", "7"), ("7", "x = 7"), ("1000", "1 000")),
        ("10^{1000}", "10^{1000}+0"),
        *(("24", "4!"), ("7:32", "7/32"), (r"x \neq 3", "x != 3"), ("7", "It is 7"), ("no solution", "no solution")),
    ],
)
def test_honest_answers_still_count(gold: str, predicted: str) -> None:
    assert equivalent(gold, predicted)
