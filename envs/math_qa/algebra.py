"""The ``sympy`` module of the sandbox: plain numbers, strings and lists in, plain numbers, strings and lists out.

Runs in the worker process only. Expressions are read by :mod:`.expressions`; variables are given by name, as text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sympy

from ovd_gym.envs.math_qa.expressions import MAX_FACTORIAL, check_power, parse
from ovd_gym.errors import ToolError

__all__ = ["FUNCTIONS", "call", "names"]

MAX_RESULT_CHARS = 10_000
MAX_RANGE = 100_000
"""Longest range of numbers that is listed."""


def names() -> list[str]:
    """The functions the module offers."""
    return sorted(FUNCTIONS)


def call(name: str, *arguments: Any) -> Any:
    """``sympy.name(*arguments)`` as plain data. Raises :class:`~ovd_gym.errors.ToolError` for unfit arguments."""
    return _plain(FUNCTIONS[name](*arguments))


# Calculus and algebra: arguments are expressions ("x**2 - 1"), equations ("x + y = 3") or numbers. ----------


def _solve(equations: Any, *symbols: Any) -> Any:
    wanted = [_symbol(s) for group in symbols for s in (group if isinstance(group, list) else [group])]
    return sympy.solve(_expr(equations), *wanted, dict=len(wanted) > 1)


def _diff(expression: Any, symbol: Any = None, order: int = 1) -> Any:
    f = _expr(expression)
    return sympy.diff(f, _variable(f, symbol), _integer(order, 50))


def _integrate(expression: Any, symbol: Any = None, low: Any = None, high: Any = None) -> Any:
    f = _expr(expression)
    if isinstance(symbol, list):
        symbol, low, high = _three(symbol)
    if (low is None) != (high is None):
        raise ToolError("integrate takes both bounds or none: integrate('x**2', 'x', 0, 1)")
    x = _variable(f, symbol)
    return sympy.integrate(f, x if low is None else (x, _expr(low), _expr(high)))


def _limit(expression: Any, symbol: Any, point: Any, direction: str = "+") -> Any:
    if direction not in ("+", "-", "+-"):
        raise ToolError(f"the direction of a limit is '+', '-' or '+-', got {str(direction)[:20]!r}")
    return sympy.limit(_expr(expression), _symbol(symbol), _expr(point), direction)


def _series(expression: Any, symbol: Any = None, point: Any = 0, terms: int = 6) -> Any:
    f = _expr(expression)
    return sympy.series(f, _variable(f, symbol), _expr(point), _integer(terms, 30))


def _over_range(operation: Callable[..., Any]) -> Callable[..., Any]:
    def apply(expression: Any, symbol: Any, low: Any = None, high: Any = None) -> Any:
        if isinstance(symbol, list):
            symbol, low, high = _three(symbol)
        return operation(_expr(expression), (_symbol(symbol), _expr(low), _expr(high)))

    return apply


def _subs(expression: Any, old: Any, new: Any = None) -> Any:
    f = _expr(expression)
    pairs = old if isinstance(old, dict) else {old: new}
    known = {_symbol(name): _expr(value) for name, value in pairs.items()}
    for power in f.atoms(sympy.Pow):
        check_power(power.base.subs(known), power.exp.subs(known))
    return f.subs(known)


def _evaluate(expression: Any, digits: int = 15) -> Any:
    return sympy.N(_expr(expression), _integer(digits, 1000))


def _nsolve(equation: Any, symbol: Any, start: Any) -> Any:
    f = _expr(equation)
    return sympy.nsolve(f, _variable(f, symbol), _expr(start))


def _of_expressions(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: function(*map(_expr, arguments))


# Number theory: arguments are whole numbers. -------------------------------------------------------------------


def _of_integers(function: Callable[..., Any], limit: int | None = None) -> Callable[..., Any]:
    return lambda *arguments: function(*(_integer(value, limit) for value in arguments))


def _primerange(low: int, high: int | None = None) -> Any:
    low, high = (2, _integer(low)) if high is None else (_integer(low), _integer(high))
    if high - low > MAX_RANGE:
        raise ToolError(f"primerange spans {high - low} numbers, at most {MAX_RANGE} are allowed")
    return list(sympy.primerange(low, high))


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{
        name: _of_expressions(getattr(sympy, name))
        for name in (  # noqa: SIM905  (a long list of names is easier to read unquoted)
            "simplify expand factor cancel together apart trigsimp expand_trig radsimp powsimp logcombine nsimplify "
            "gcd lcm degree sqrt cbrt root Rational Abs floor ceiling sin cos tan asin acos atan exp log "
            "numer denom quo rem"
        ).split()
    },
    **{
        name: _of_integers(getattr(sympy, name))
        for name in (  # noqa: SIM905
            "factorint isprime prime primepi nextprime prevprime primefactors divisors divisor_count divisor_sigma "
            "totient mod_inverse n_order is_primitive_root primitive_root integer_nthroot binomial"
        ).split()
    },
    **{
        name: _of_integers(getattr(sympy, name), limit=MAX_FACTORIAL)
        for name in ("factorial", "fibonacci", "lucas", "catalan", "npartitions", "harmonic", "bernoulli")
    },
    "diff": _diff,
    "integrate": _integrate,
    "limit": _limit,
    "series": _series,
    "solve": _solve,
    "nsolve": _nsolve,
    "subs": _subs,
    "summation": _over_range(sympy.summation),
    "product": _over_range(sympy.product),
    "N": _evaluate,
    "primerange": _primerange,
}


# From plain data to SymPy and back ---------------------------------------------------------------------------


def _expr(value: Any) -> Any:
    match value:
        case bool() | None | dict():
            raise ToolError(f"expected a number or an expression as text, got {value!r:.40}")
        case int():
            return sympy.Integer(value)
        case float():
            return sympy.Float(value)
        case list():
            return [_expr(item) for item in value]
    return parse(value)


def _symbol(value: Any) -> Any:
    if isinstance(value, str) and (symbol := parse(value)).is_Symbol:
        return symbol
    raise ToolError(f"expected the name of a variable as text, such as 'x', got {value!r:.40}")


def _variable(expression: Any, value: Any) -> Any:
    if value is not None:
        return _symbol(value)
    free = sorted(expression.free_symbols, key=str)
    if len(free) != 1:
        raise ToolError(f"say which variable: the expression has {', '.join(map(str, free)) or 'none'}")
    return free[0]


def _integer(value: Any, limit: int | None = None) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ToolError(f"expected a whole number, got {value!r:.40}")
    if limit is not None and abs(value) > limit:
        raise ToolError(f"expected a whole number of size at most {limit}, got {value!r:.40}")
    return value


def _three(bounds: list[Any]) -> list[Any]:
    if len(bounds) != 3:
        raise ToolError(f"a range is (variable, low, high), got {len(bounds)} values")
    return bounds


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, sympy.Integer):
        return int(value)
    if value in (sympy.true, sympy.false):
        return bool(value)
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    text = str(value)
    if len(text) > MAX_RESULT_CHARS:
        raise ToolError(f"the result has {len(text)} characters, at most {MAX_RESULT_CHARS} are allowed")
    return text
