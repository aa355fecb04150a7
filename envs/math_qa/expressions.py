"""A parser of mathematical text that never evaluates it as Python: ``sympify`` and ``parse_expr`` use ``eval``.

The text is read by :mod:`ast`, and every node, name and function in it must be listed here. Sizes are checked before
anything is computed: ``9**9**9`` is refused, not attempted. Imports SymPy, so only the worker process imports it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from typing import Any

import sympy
from sympy.polys.polyerrors import BasePolynomialError

from ovd_gym.errors import ToolError, unknown

__all__ = ["MAX_CHARS", "MAX_FACTORIAL", "check_power", "parse"]

MAX_CHARS = 1000
MAX_DEPTH = 80
"""Nesting of operators and calls."""
MAX_BITS = 100_000
"""Size of an integer that a power may produce, in bits: about 30,000 digits."""
MAX_EXPONENT = 1000
"""Largest exponent of something that is not a number."""
MAX_FACTORIAL = 5000

_SYMBOL = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,19}", re.ASCII)
_EQUALS = re.compile(r"(?<![<>=!])=(?!=)")

_REFUSALS: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, AttributeError, ArithmeticError, NotImplementedError, RecursionError, MemoryError),
    BasePolynomialError,
)
"""What :mod:`ast` raises for hostile text, and SymPy for arguments that make no sense."""

_CONSTANTS: Mapping[str, Any] = {
    "pi": sympy.pi,
    "E": sympy.E,
    "I": sympy.I,
    "oo": sympy.oo,
    "inf": sympy.oo,
    "infinity": sympy.oo,
}

_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{
        name: getattr(sympy, name)
        for name in (  # noqa: SIM905  (a long list of names is easier to read unquoted)
            "Abs acos acosh acot arg asin asinh atan atan2 atanh cbrt ceiling conjugate cos cosh cot csc exp "
            "floor gcd im lcm log Max Min Mod re Rational root sec sign sin sinh sqrt tan tanh"
        ).split()
    },
    "abs": sympy.Abs,
    "ceil": sympy.ceiling,
    "ln": sympy.log,
    "max": sympy.Max,
    "min": sympy.Min,
    "factorial": lambda n: sympy.factorial(_small(n)),
    "binomial": lambda n, k: sympy.binomial(_small(n), _small(k)),
    "gamma": lambda n: sympy.gamma(_small(n)),
}

_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.FloorDiv: lambda a, b: sympy.floor(a / b),
    ast.Mod: sympy.Mod,
    ast.Pow: lambda a, b: check_power(a, b) and a**b,
}

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: sympy.Eq,
    ast.NotEq: sympy.Ne,
    ast.Lt: sympy.Lt,
    ast.LtE: sympy.Le,
    ast.Gt: sympy.Gt,
    ast.GtE: sympy.Ge,
}


def parse(text: str) -> Any:
    """The SymPy object that ``text`` denotes: an expression, an equation ("x**2 = 4") or an inequality ("x < 2").

    ``^`` is read as a power. Raises :class:`~ovd_gym.errors.ToolError` for anything that is not such a text.

    >>> parse("x^2 - 1")
    x**2 - 1
    """
    if len(text) > MAX_CHARS:
        raise ToolError(f"the expression has {len(text)} characters, at most {MAX_CHARS} are allowed")
    source = _EQUALS.sub("==", text.strip().replace("^", "**"))
    try:
        tree = ast.parse(source, mode="eval")
        return _convert(tree.body, MAX_DEPTH)
    except SyntaxError:
        raise ToolError(f"cannot read {_quote(text)}: write products with *, as in 2*x, and powers with **") from None
    except ToolError:
        raise
    except _REFUSALS as error:
        raise ToolError(f"cannot read {_quote(text)}: {str(error)[:200] or type(error).__name__}") from None


def check_power(base: Any, exponent: Any) -> bool:
    """True if ``base**exponent`` is small enough to compute; raises :class:`~ovd_gym.errors.ToolError` if not."""
    if exponent.is_Integer and base.is_Rational:
        size = max(abs(base.p).bit_length(), base.q.bit_length())
        allowed = size <= 1 or size * abs(int(exponent)) <= MAX_BITS
    elif exponent.is_Number and exponent.is_finite:
        # A rational base is split into factors to simplify its root.
        allowed = abs(exponent) <= MAX_EXPONENT and not (base.is_Rational and abs(base.p).bit_length() > 256)
    else:
        allowed = True
    if not allowed:
        raise ToolError(f"the power with exponent {_quote(str(exponent))} is too large to compute")
    return True


def _convert(node: ast.AST, depth: int) -> Any:
    if depth == 0:
        raise ToolError(f"the expression is nested deeper than {MAX_DEPTH} levels")
    match node:
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int(value)):
            return sympy.Integer(value)
        case ast.Constant(value=float(value)):
            return sympy.Float(value)
        case ast.Name(id=name):
            return _name(name)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _convert(operand, depth - 1)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_convert(operand, depth - 1)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_convert(left, depth - 1), _convert(right, depth - 1))
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            return _COMPARISONS[type(op)](_convert(left, depth - 1), _convert(right, depth - 1))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            if name not in _FUNCTIONS:
                raise ToolError(unknown("function", name[:40], _FUNCTIONS))
            return _FUNCTIONS[name](*(_convert(arg, depth - 1) for arg in args))
    raise ToolError(f"{type(node).__name__} is not allowed in an expression: use numbers, names, + - * / ** and calls")


def _name(name: str) -> Any:
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if not _SYMBOL.fullmatch(name):
        raise ToolError(f"{_quote(name)} is not a variable name: use at most 20 letters, digits and _")
    return sympy.Symbol(name)


def _small(number: Any) -> Any:
    if number.is_number and not (number.is_real and abs(number) <= MAX_FACTORIAL):
        raise ToolError(f"the argument must be a real number of size at most {MAX_FACTORIAL}")
    return number


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "...")
