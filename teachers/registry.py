"""Teachers by name: built in, from any installed package, or given as an object."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from ovd_gym.errors import ConfigError, OvdGymError, unknown
from ovd_gym.plugins import check_options
from ovd_gym.teachers.base import Teacher

__all__ = ["BUILT_IN", "ENTRY_POINTS", "make_teacher"]

ENTRY_POINTS = "ovd_gym.teachers"
"""Group of entry points under which another package offers a teacher: ``name = "package.module:ClassName"``."""
BUILT_IN = {
    "math-rules": "ovd_gym.teachers.rules:MathRules",
    "search-rules": "ovd_gym.teachers.search_rules:SearchRules",
    "digits": "ovd_gym.teachers.digits:DigitTeacher",
    "likelihood": "ovd_gym.teachers.likelihood:LikelihoodTeacher",
    "rubric": "ovd_gym.teachers.rubric:RubricTeacher",
    "ranking": "ovd_gym.teachers.ranking:RankingTeacher",
    "ensemble": "ovd_gym.teachers.combine:Ensemble",
    "fallback": "ovd_gym.teachers.combine:Fallback",
    "cached": "ovd_gym.teachers.cache:Cached",
    "calibrated": "ovd_gym.teachers.calibration:CalibratedTeacher",
    "human": "ovd_gym.teachers.human:HumanTeacher",
    "fitted": "ovd_gym.teachers.fitted:FittedTeacher",
}


def make_teacher(spec: str | Teacher | Mapping[str, Any], **options: Any) -> Teacher:
    """The teacher that ``spec`` names, made with ``options``.

    Args:
        spec: a name of :data:`BUILT_IN`, the name of an entry point, ``"package.module:ClassName"``, a mapping with the
            name as ``name`` and options beside it, or a teacher (returned as it is).
        options: keyword arguments of the teacher; they go before those in a mapping.

    Raises:
        ConfigError: an unknown name, an unknown or missing option, or something that is no teacher.

    >>> make_teacher("math-rules").name
    'math-rules'
    """
    if isinstance(spec, Teacher):
        if options:
            raise ConfigError(f"options {sorted(options)} for a teacher that is made already: give them to its class")
        return spec
    if isinstance(spec, Mapping):
        rest = dict(spec)
        if not isinstance(name := rest.pop("name", None), str):
            keys = sorted(map(str, spec))  # not the values, which may be secret
            raise ConfigError(f"a teacher needs a 'name', got the keys {keys}")
        return make_teacher(name, **rest | options)
    factory = _find(spec)
    check_options(f"teacher {spec!r}", factory, options)
    try:
        return factory(**options)
    except OvdGymError:
        raise
    except Exception as error:  # a plug-in may raise anything while it is made; it becomes one line
        raise ConfigError(f"teacher {spec!r} cannot be made: {type(error).__name__}: {error}") from error


def _find(spec: str) -> type[Teacher]:
    if spec in BUILT_IN:
        return _import(spec, BUILT_IN[spec])
    found = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    if spec in found:
        return _import(spec, found[spec])
    if ":" in spec:
        return _import(spec, spec)
    raise ConfigError(unknown("teacher", spec, {*BUILT_IN, *found}) + ", or 'package.module:ClassName'")


def _import(spec: str, path: str) -> type[Teacher]:
    """The class at ``path``; only a Teacher is ever called, whatever a configuration file may name."""
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # importing a plug-in runs its code; what it raises becomes one line
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"cannot import teacher {spec!r} from {path!r}: {problem}") from error
    if not (isinstance(found, type) and issubclass(found, Teacher)):
        raise ConfigError(f"teacher {spec!r}: {path!r} is no subclass of ovd_gym.Teacher")
    if found.__abstractmethods__:
        raise ConfigError(f"teacher {spec!r} lacks {', '.join(sorted(found.__abstractmethods__))}()")
    return found
