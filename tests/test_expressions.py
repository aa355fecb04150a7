"""The expression parser: what it reads, and that it never evaluates anything else."""

from __future__ import annotations

import builtins
import contextlib
from typing import Any

import pytest
import sympy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ovd_gym.envs.math_qa import algebra, expressions
from ovd_gym.errors import ToolError

x, y = sympy.symbols("x y")


def parse(text: str) -> Any:
    """The parser under test, in a world where evaluating anything fails the test."""

    def forbidden(*arguments: object, **options: object) -> object:
        raise AssertionError("untrusted text was evaluated")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sympy, "sympify", forbidden)
        patch.setattr(sympy, "parse_expr", forbidden)
        patch.setattr(builtins, "eval", forbidden)
        return expressions.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x^2 - 1", x**2 - 1),
        ("2*(x + 1)/3", 2 * (x + 1) / 3),
        ("sqrt(8)", 2 * sympy.sqrt(2)),
        ("-x % 3", sympy.Mod(-x, 3)),
        ("7 // 2", sympy.Integer(3)),
        ("x + y = 3", sympy.Eq(x + y, 3)),
        ("x <= 2", x <= 2),
        ("pi*E*I", sympy.pi * sympy.E * sympy.I),
        ("max(1, 2) + abs(-3)", sympy.Integer(5)),
        ("1.5", sympy.Float(1.5)),
        ("2**-3", sympy.Rational(1, 8)),
        ("factorial(5)", sympy.Integer(120)),
        ("(-1)**(10**30)", sympy.Integer(1)),
    ],
)
def test_reads_mathematics(text: str, expected: Any) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "__import__",
        "x.__class__",
        "().__class__.__bases__",
        "(lambda: 1)()",
        "[i for i in range(9)]",
        "'text'",
        "f'{x}'",
        "x if y else 1",
        "x[0]",
        "eval(1)",
        "sin(x=1)",
        "sin(*x)",
        "True",
        "x := 1",
        "1 < x < 2",
        "9**9**9",
        "x**(10**9)",
        "(10**99)**9999",
        "factorial(10**9)",
        "binomial(10**9, 10**8)",
        "2x",
        "",
        "\x00",
        "(" * 200,
        "-" * 500 + "1",
        "x + " * 400 + "x",
        "1" * 5000,
        "y" * 21,
    ],
)
def test_refuses_everything_else(text: str) -> None:
    with pytest.raises(ToolError):
        parse(text)


FRAGMENTS = st.sampled_from(
    (  # noqa: SIM905  (easier to read unquoted)
        "x y 1 2 3.5 0 9**9 10**40 pi oo + - * / // % ** ^ ( ) , = == < . [ ] __import__ os eval sin sqrt factorial "
        "gamma lambda : log atan2 Max e E I 'a' if else not"
    ).split()
)


def test_a_long_text_is_not_even_parsed() -> None:
    with pytest.raises(ToolError, match=r"has 1001 characters, at most 1000"):
        parse("1" * 1001)


@given(st.one_of(st.text(max_size=60), st.lists(FRAGMENTS, max_size=12).map(" ".join)))
@example("0**-1")
@example("log(0)*oo")
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_text_is_an_expression_or_a_tool_error(text: str) -> None:
    with contextlib.suppress(ToolError):
        assert isinstance(parse(text), sympy.Basic)


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        ("solve", ["x**2 = 4"], [-2, 2]),
        ("diff", ["x**3"], "3*x**2"),
        ("diff", ["x**3", "x", 3], 6),
        ("integrate", ["x**2", "x", 0, 3], 9),
        ("integrate", ["x**2", ["x", 0, 3]], 9),
        ("summation", ["k", "k", 1, 10], 55),
        ("series", ["exp(x)", "x", 0, 3], "1 + x + x**2/2 + O(x**3)"),
        ("subs", ["x + y", {"x": 1, "y": 2}], 3),
        ("subs", ["x**2", "x", 3], 9),
        ("primerange", [10, 20], [11, 13, 17, 19]),
        ("mod_inverse", [3, 7], 5),
        ("totient", [36.0], 12),
        ("binomial", [5, 2], 10),
        ("factorial", [6], 720),
        ("divisors", [12], [1, 2, 3, 4, 6, 12]),
        ("isprime", [2**61 - 1], True),
        ("simplify", ["sin(x)**2 + cos(x)**2"], 1),
        ("N", ["pi", 5], "3.1416"),
        ("product", ["k", "k", 1, 5], 120),
        ("nsolve", ["cos(x) - x", "x", 1], "0.739085133215161"),
    ],
)
def test_algebra(name: str, arguments: list[Any], result: Any) -> None:
    assert algebra.call(name, *arguments) == result


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("diff", ["x*y"], "say which variable"),
        ("integrate", ["x", "x", 0], "both bounds"),
        ("summation", ["k", ["k", 1]], "variable, low, high"),
        ("limit", ["x", "x", 0, "left"], "direction"),
        ("isprime", ["7"], "whole number"),
        ("factorial", [10**9], "size at most"),
        ("primerange", [0, 10**9], "at most"),
        ("solve", ["x", "x + 1"], "name of a variable"),
        ("simplify", [True], "expected a number"),
        ("subs", ["x**y", {"x": 9, "y": 10**9}], "too large"),
    ],
)
def test_algebra_refuses(name: str, arguments: list[Any], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        algebra.call(name, *arguments)
