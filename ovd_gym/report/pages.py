"""What the HTML pages have in common: templates in which every text is escaped, and the colour of a score."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from ovd_gym.records import Score

__all__ = ["hue", "template"]

RED_TO_GREEN = 125
"""Degrees on the colour wheel from the worst score to the best."""


def hue(score: Score | None) -> str:
    """The CSS declarations that colour an element by its score, from red (0) to green (9); none without a number."""
    return f"--hue: {RED_TO_GREEN * score.u:.0f}; --sat: 1" if score is not None and score.valid else ""


@cache
def template(name: str) -> Template:
    """The page template ``name``, with the filter ``hue``."""
    environment = Environment(
        loader=PackageLoader("ovd_gym.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["hue"] = hue
    return environment.get_template(name)
