"""Made-up names that can be said aloud, and figures written out."""

from __future__ import annotations

import random

from ovd_gym.envs.web_search.world.schema import WORDS

__all__ = ["NameMaker", "date_forms", "number_forms"]

_TOWN_ENDINGS = ("", "", "mere", "vik", "holm", "stead", "wick", "gate")
_SHORTEST = 5
"""Letters."""


class NameMaker:
    """A stream of names, none of them twice."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._used: set[str] = set()

    def word(self, syllables: int = 3) -> str:
        """A capitalised made-up word."""
        while True:
            starts = [WORDS["clusters"], *[WORDS["onsets"]] * (syllables - 1)]
            parts = [self._rng.choice(start) + self._rng.choice(WORDS["vowels"]) for start in starts]
            word: str = ("".join(parts) + self._rng.choice(WORDS["codas"])).capitalize()
            if len(word) >= _SHORTEST and self.claim(word):
                return word

    def town(self) -> str:
        """A town's name."""
        ending = self._rng.choice(_TOWN_ENDINGS)
        return self.word(2 if ending else 3) + ending

    def work(self) -> str:
        """A work's title, with a word in it that no other name has."""
        noun, other = self._rng.sample(WORDS["title_nouns"], 2)
        adjective, word = self._rng.choice(WORDS["title_adjectives"]), self.word()
        patterns = (
            f"The {noun} of {word}",
            f"{word} and the {noun}",
            f"The {adjective} {noun} of {word}",
            f"The {noun} and the {other} of {word}",
            f"{word}, or the {adjective} {noun}",
        )
        return str(self._rng.choice(patterns))

    def claim(self, name: str) -> bool:
        """Take ``name``; False when it is taken already."""
        if name.casefold() in self._used:
            return False
        self._used.add(name.casefold())
        return True


def date_forms(day: int, month: int, year: int) -> tuple[str, ...]:
    """A date as pages write it, then as others do.

    >>> date_forms(4, 3, 1931)
    ('4 March 1931', 'March 4, 1931', '1931-03-04')
    """
    name = WORDS["months"][month - 1]
    return f"{day} {name} {year}", f"{name} {day}, {year}", f"{year}-{month:02}-{day:02}"


def number_forms(number: int) -> tuple[str, ...]:
    """A number as pages write it, and without commas where that differs.

    >>> number_forms(12345)
    ('12,345', '12345')
    """
    return tuple(dict.fromkeys((f"{number:,}", str(number))))
