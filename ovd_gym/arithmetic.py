"""Exact arithmetic on untrusted text: values of expressions, and the equations a text claims.

Nothing is ever executed: an expression is parsed to a syntax tree of numbers and six operators and walked with
fractions, within limits on length and size.
"""

from __future__ import annotations

import ast
import itertools
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction

__all__ = [
    "Claim",
    "NotArithmetic",
    "agrees",
    "claims",
    "evaluate",
    "is_identity",
    "normalise",
    "numbers",
    "operator_runs",
]

MAX_LENGTH = 400
"""Characters of one expression."""
MAX_BITS = 4096
"""Size of a value: bits of its numerator and denominator together."""

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_FIND_NUMBER = re.compile(rf"(?:(?<![\w)\].])-)?(?:{_NUMBER})")
_TOKEN = re.compile(rf"(?P<number>{_NUMBER})|(?P<sign>\*\*|//|[-+*/%^()=])|(?P<word>[^\W\d_]+)|(?P<other>\S)")
_ALLOWED = re.compile(r"[0-9a-z.\s+\-*/%()]*")
_GLUED = re.compile(r"[0-9.][a-z]|[a-z][a-z0-9.]")
# Words that take the number after them into an expression of their own: "half of 40 + 2 = 22" claims no sum.
_RELATIONS = frozenset({"of", "times", "plus", "minus", "by", "than", "over", "half", "twice", "less", "more", "per"})
_BINARY: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b),
    ast.Mod: operator.mod,
    ast.Pow: lambda a, b: _power(a, b),
}


class NotArithmetic(ValueError):
    """The text is no arithmetic expression, or one beyond the limits."""


def evaluate(expression: str, names: Mapping[str, Fraction] | None = None) -> Fraction:
    """The exact value of ``expression``: decimals, ``+ - * / // % **``, signs, parentheses and ``names``.

    Args:
        expression: at most 400 characters; ``^`` is a power.
        names: values of one-letter names (lower case).

    Raises:
        NotArithmetic: anything else, a division by zero, or a value of more than 4096 bits.

    >>> evaluate("(1/3 + 0.5) * 6")
    Fraction(5, 1)
    """
    source = expression.strip().replace("^", "**")
    if len(source) > MAX_LENGTH or not _ALLOWED.fullmatch(source) or _GLUED.search(source):
        raise NotArithmetic(f"not an arithmetic expression: {source[:60]!r}")
    source = " ".join(source.split())
    try:
        return _value(ast.parse(source, mode="eval").body, source, names or {})
    except (SyntaxError, ZeroDivisionError, RecursionError, MemoryError) as error:
        raise NotArithmetic(f"{source[:60]!r}: {error}") from None


def _value(node: ast.expr, source: str, names: Mapping[str, Fraction]) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()):
            return _sized(Fraction(source[node.col_offset : node.end_col_offset]))  # the text: a float is not exact
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub()):
            return -_value(node.operand, source, names)
        case ast.UnaryOp(op=ast.UAdd()):
            return _value(node.operand, source, names)
        case ast.BinOp() if type(node.op) in _BINARY:
            left, right = _value(node.left, source, names), _value(node.right, source, names)
            return _sized(_BINARY[type(node.op)](left, right))
    raise NotArithmetic(f"{type(node).__name__} is not arithmetic")


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    size = base.numerator.bit_length() + base.denominator.bit_length()
    if exponent.denominator != 1 or abs(exponent) > 1024 or size * abs(exponent) > MAX_BITS:
        raise NotArithmetic("the exponent is too large or no integer")
    return base ** int(exponent)


def _sized(value: Fraction) -> Fraction:
    if value.numerator.bit_length() + value.denominator.bit_length() > MAX_BITS:
        raise NotArithmetic(f"the value has more than {MAX_BITS} bits")
    return value


def is_identity(expression: str) -> bool:
    """Whether ``expression`` only restates a number or makes 0 or 1 of it: every operation in it is one like ``x + 0``,
    ``x - x``, ``x * 1`` or ``x / x``.

    >>> is_identity("48 * 1"), is_identity("48/48 - 0"), is_identity("48 / 2 * 1"), is_identity("48")
    (True, True, False, False)
    """
    source = " ".join(expression.strip().replace("^", "**").split())
    evaluate(source)
    operations = [node for node in ast.walk(ast.parse(source, mode="eval")) if isinstance(node, ast.BinOp)]
    return bool(operations) and all(_is_idle(node, source) for node in operations)


def _is_idle(node: ast.BinOp, source: str) -> bool:
    left, right = _value(node.left, source, {}), _value(node.right, source, {})
    match node.op:
        case ast.Add():
            return 0 in (left, right)
        case ast.Sub():
            return right in (0, left)
        case ast.Mult():
            return bool({0, 1} & {left, right})
        case ast.Div() | ast.FloorDiv() | ast.Mod():
            return right in (1, left)
    return right in (0, 1) or left in (0, 1)


# Reading expressions and equations out of running text --------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """An equation that a text states, such as ``2 + 3 = 5``."""

    expression: str
    """Its left side; holds at least one operator."""
    value: Fraction
    """What the left side is."""
    stated: Fraction
    """What the text says it is."""
    true: bool
    """Whether the two agree, to the decimals that the text shows."""


def normalise(text: str) -> str:
    """``text`` with typeset operators in plain form: ``×``, ``\\times``, ``2 x 3``, ``÷``, ``$``, ``20% of``."""
    text = re.sub(r"\\(?:times|cdot)\b|[×⋅·∙]", "*", text)
    text = re.sub(r"\\div\b|÷", "/", text)
    text = re.sub(r"(?<=[0-9]) \((?=[A-Za-z]{2})", " ; (", text)  # a remark in brackets, no factor
    text = re.sub(r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"\\(?:left|right|[$,;!])|[$€£]", "", text)
    text = re.sub(r"[−–]", "-", text)
    text = re.sub(r"(?<=[0-9)])\s*[xX]\s*(?=[0-9(.])", " * ", text)
    text = re.sub(r"(?<![0-9.])([0-9.]+)\s?%\s*of\b", r"(\1/100)*", text)
    return re.sub(r"(?<![0-9.])([0-9.]+)%(?!\s*[0-9(])", r"(\1/100)", text)


def numbers(text: str) -> list[Fraction]:
    """The numbers in ``text``, in order; a minus sign counts where it cannot be a subtraction.

    >>> numbers("from 1,250 to -3.5 (5-3)")
    [Fraction(1250, 1), Fraction(-7, 2), Fraction(5, 1), Fraction(3, 1)]
    """
    return [Fraction(found.replace(",", "")) for found in _FIND_NUMBER.findall(text) if len(found) <= MAX_LENGTH]


def operator_runs(text: str) -> list[str]:
    """The expressions with at least one operator in ``text`` that touch no letter, such as ``3 * 4``."""
    sides = (run[0] for run in _runs(normalise(text)))
    return [" ".join(side) for side in sides if side and _has_operator(side)]


def claims(text: str) -> list[Claim]:
    """The equations between numbers that ``text`` states, each once. What cannot be read for certain is left out.

    >>> [(c.expression, c.true) for c in claims("So 2 x 3 = 6, then 6+1=8.")]
    [('2 * 3', True), ('6 + 1', False)]
    """
    plain = re.sub(r"<<([^<>]*)>>", "", text)
    annotated = re.findall(r"<<([^<>]*)>>", text)
    found: dict[Claim, None] = {}
    for line in [*plain.splitlines(), *annotated]:
        for run in _runs(normalise(line)):
            for left, right in itertools.pairwise(run):
                if (claim := _claim(left, right)) is not None:
                    found[claim] = None
    return list(found)


def agrees(stated: str, value: Fraction) -> bool:
    """Whether the number written ``stated`` is ``value``, or is it rounded or cut to at least two decimals."""
    shown = Fraction(stated)
    decimals = len(stated.partition(".")[2])
    return shown == value or (decimals >= 2 and abs(shown - value) < Fraction(1, 10**decimals))


def _claim(left: list[str], right: list[str]) -> Claim | None:
    left, right = _after_gap(left), _before_gap(right)
    if left and left.count("(") > left.count(")") and left[0] == "(":
        left = left[1:]
    if right and right.count(")") != right.count("(") and right[-1] in "()":
        right = right[:-1]
    if not _has_operator(left) or not right:
        return None
    try:
        value, stated = evaluate(" ".join(left)), evaluate(" ".join(right))
    except NotArithmetic:
        return None
    first = right[0] if right[0] != "-" else "".join(right[:2])
    true = stated == value or (_is_number(first) and agrees(first, value))
    percent = len(right) == 5 and right[2:4] == ["/", "100"]
    return Claim(" ".join(left), value, stated, true or (percent and value == stated * 100))


def _runs(text: str) -> Iterator[list[list[str]]]:
    """Stretches of arithmetic in ``text``, each as the token lists of its sides between ``=`` signs."""
    tokens: list[str] = []
    previous, blocked, end = "", False, 0
    for match in _TOKEN.finditer(text + " ;"):
        word = match.lastgroup in ("word", "other")
        if not word:
            if not tokens:
                tight = match.start() == end
                blocked = (tight and previous.isalpha()) or previous.lower() in _RELATIONS
                blocked |= match[0] in "+*/%^)//**" or (match[0] == "-" and text[match.end() : match.end() + 1] == " ")
            tokens.append(match[0].replace(",", ""))
        elif tokens:
            if match[0].isalpha() and match.start() == end:  # a unit or a variable is glued to the last number
                tokens = tokens[: len(tokens) - 1 - tokens[::-1].index("=")] if "=" in tokens else []
            if tokens and not blocked:
                yield _split(tokens)
            tokens = []
        if word:
            previous = match[0]
        end = match.end()


def _split(tokens: list[str]) -> list[list[str]]:
    sides: list[list[str]] = [[]]
    for token in tokens:
        if token == "=":
            sides.append([])
        else:
            sides[-1].append(token)
    return sides


def _is_number(token: str) -> bool:
    return token.lstrip("-")[:1].isdigit() or token.startswith(".")


def _has_operator(tokens: list[str]) -> bool:
    """Whether some operator stands between two values; a sign is none."""
    return any(
        (_is_number(left) or left == ")") and not _is_number(token) and token not in "()"
        for left, token in itertools.pairwise(tokens)
    )


def _after_gap(tokens: list[str]) -> list[str]:
    """The part after the last two numbers in a row: in ``1 2 + 3`` the 1 is a label."""
    gaps = [i for i in range(1, len(tokens)) if _is_number(tokens[i]) and _is_number(tokens[i - 1])]
    return tokens[gaps[-1] :] if gaps else tokens


def _before_gap(tokens: list[str]) -> list[str]:
    gaps = [i for i in range(1, len(tokens)) if _is_number(tokens[i]) and _is_number(tokens[i - 1])]
    return tokens[: gaps[0]] if gaps else tokens
