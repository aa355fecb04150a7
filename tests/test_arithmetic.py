"""Exact arithmetic on untrusted text, and what a program can find out about a math question."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd_gym.arithmetic import NotArithmetic, agrees, claims, evaluate, is_identity, numbers, operator_runs
from ovd_gym.teachers.questions import read_question

EXPRESSIONS = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_values_are_those_of_integer_arithmetic(expression: str) -> None:
    assert evaluate(expression) == eval(expression)  # noqa: S307  (the test's own text)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("0.1 + 0.2", Fraction(3, 10)),
        ("1/3", Fraction(1, 3)),
        ("-2 ** 2", Fraction(-4)),
        ("2 ^ -2", Fraction(1, 4)),
        ("7 // 2 + 7 % 4", Fraction(6)),
        ("+5 - -1", Fraction(6)),
        (" ( 56 + -33 ) - 84", Fraction(-61)),
        ("123456789123456789.5 * 2", Fraction(246913578246913579)),
    ],
)
def test_values_are_exact(expression: str, value: Fraction) -> None:
    assert evaluate(expression) == value


REFUSED = [
    "", "1 +", "1/0", "0 ** -1", "2 ** 0.5", "9**9**9", "2 ** 5000", "x", "1if 2else 3", "1e5", "0x10", "1_000", "3(4)",
    "(1, 2)", "1 < 2", "[1]", "a.b", "().__class__", "f()", "'1'", "1;2", "1\n+", "(" * 150, "1+" * 300, "1j", "007",
    "...", ".", "()", "1..2",
]  # fmt: skip


def test_a_long_expression_is_not_even_parsed() -> None:
    assert evaluate("1+" * 199 + "1") == 200
    with pytest.raises(NotArithmetic, match="not an arithmetic expression"):
        evaluate("1+" * 200 + "1")


@pytest.mark.parametrize("text", REFUSED)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(NotArithmetic):
        evaluate(text)


def test_names_have_the_values_given() -> None:
    assert evaluate("56 - 98*e", {"e": Fraction(13)}) == -1218
    with pytest.raises(NotArithmetic):
        evaluate("a + b", {"a": Fraction(1)})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("2 x 0.5 = <<2*0.5=1.0>>1.0 bolts", [True]),
        ("2*3 = 6 + 4 = 10", [True, True]),
        ("10/3 = 3.33 and 2/3 = 0.66", [True, True]),
        ("10/3 = 3.4", [False]),
        ("20% of 50 = 10; 0.25*100 = 25%", [True, True]),
        ("$1,200 + $300 = $1,500", [True]),
        (r"\frac{1}{2} \times 6 = 3", [True]),
        ("e = (-1218 - 56) / -98 = 13.", [True]),
        ("1. 5+3=8", [True]),
        ("(3 + 4 = 7), 6 - 4 = 2 (ok)", [True, True]),
        ("5 * 3 = 15 apples and 2 + 2 = 5 pears", [True, False]),
        ("<<3*4=13>>", [False]),
        ("half of 40 + 2 = 22", []),
        ("x + 5 = 12, 2x + 3 = 7, x - 3 = 4, f(3) = 5, x3 + 1 = 2", []),
        ("3 + 4 = 7x, 100*20 = 2k", []),
        ("40 = 20, = 3, 5 + = 2", []),
        ("1 + 1\n= 3", []),
    ],
)
def test_claims(text: str, found: list[bool]) -> None:
    assert [claim.true for claim in claims(text)] == found


@pytest.mark.parametrize(
    "text", ["48 * 1", "1*48", "0*48", "48 + 0", "48 - 48", "48 - 0", "48/48", "48/1", "48^1", "48/48 - 0"]
)
def test_a_restatement(text: str) -> None:
    assert is_identity(text)


@pytest.mark.parametrize("text", ["48", "-48", "48 / 2", "48 / 2 * 1", "0 - 48", "1 / 48", "1 + 1"])
def test_no_restatement(text: str) -> None:
    assert not is_identity(text)


@pytest.mark.parametrize(
    ("stated", "value", "same"),
    [
        ("3.33", "10/3", True),
        ("3.34", "10/3", True),
        ("3.35", "10/3", False),
        ("3.3", "10/3", False),
        ("4", "7/2", False),
    ],
)
def test_rounding(stated: str, value: str, same: bool) -> None:
    assert agrees(stated, Fraction(value)) is same


def test_numbers_and_runs() -> None:
    assert numbers("from 1,250 to -3.5 (5-3)") == [1250, Fraction(-7, 2), 5, 3]
    assert operator_runs("Calculate 2 - -1. Then 56 - 98*e") == ["2 - - 1"]


@pytest.mark.parametrize(
    ("question", "target"),
    [
        ("Calculate 5 - 3 - 6.", -4),
        ("Calculate ( 56 + -33 ) - 84.", -61),
        ("State the final answer to the following arithmetic problem: 4 - 1 - 7 =", -4),
        ("Solve the following multiplication: 18271 * 43432. Give only the result as your final answer.", 793546072),
        ("Find the Greatest Common Divisor (GCD) of these numbers: 780, 460. Give only the GCD.", 20),
        ("Find the Least Common Multiple (LCM) of these numbers: 98, 58", 2842),
        ("Solve for e: 56 - 98*e = -1218", 13),
        ("Solve for e: 3e + 1 = 2", Fraction(1, 3)),
        ("Solve for e: e*e = 4", None),
        ("Solve for e: 2*e = 2*e", None),
        ("Calculate 1 / 0.", None),
        ("Simplify the fraction 92/524 to its lowest terms.", None),
        ("Calculate 2.5 / 7 to 3 significant digits.", None),
        ("He works 3 - 4 hours. How many?", None),
        ("Ann has 3 apples and 2 pears. What is 3 + 2?", None),
        ("How many legs do 13 woodlice have?", None),
        ("", None),
    ],
)
def test_the_answer_where_the_question_holds_it(question: str, target: int | None) -> None:
    assert read_question(question).target == target


def test_what_a_question_makes_known() -> None:
    question = read_question("A dozen eggs cost $274. What does half of it cost?")
    assert question.stated == {274}
    assert {12, 274, 2, 200, 74, 270} <= question.known
    assert 13 not in question.known
    assert read_question("Calculate 5 - 3 - 6.").parts == {2, -4}
