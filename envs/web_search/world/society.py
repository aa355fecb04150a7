"""Countries, towns and people of the fictional world: families, teachers, who was born and died where."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict

from ovd_gym.envs.web_search.world.cast import Cast, Draft

__all__ = ["CREATORS", "add_people", "add_places", "govern"]

CREATORS = {"novel": "novelist", "film": "film director", "opera": "composer", "painting": "painter"}
"""Who makes which sort of work."""

_OCCUPATIONS = (
    *("novelist", "novelist", "film director", "film director", "composer", "painter"),
    *("botanist", "bridge builder", "physician", "historian", "mathematician", "chess player", "surveyor"),
)
_FIRST_BIRTH, _LAST_BIRTH, _TODAY = 1780, 1975, 1999
_COUPLE_GAP = 20
"""Years."""
_FIRST_FILM_DIRECTOR = 1870
"""Year of birth."""


def add_places(cast: Cast, countries: int, towns: int) -> None:
    """Countries, each with its capital, and further towns; some towns share a name with one of another country."""
    for _ in range(countries):
        name = cast.names.word() + cast.rng.choice(["", "land", "ia"])
        cast.countries.append(Draft("country", "country", name))
    taken: dict[str, list[Draft]] = defaultdict(list)
    for n in range(towns):
        country = cast.countries[n] if n < countries else cast.rng.choice(cast.countries)
        twin = cast.rng.choice(cast.towns) if cast.towns and cast.chance(0.05) else None
        name = twin.name if twin and country not in taken[twin.name] else cast.names.town()
        taken[name].append(country)
        cast.towns.append(_town(cast, name, country))
        if n < countries:
            country.state("capital", cast.towns[-1])


def _town(cast: Cast, name: str, country: Draft) -> Draft:
    town = Draft("town", "town", name, qualifier=country.name)
    if cast.chance(0.12):
        town.call_also(cast.names.town())
    town.state("country", country)
    town.state("river", cast.names.word(2))
    town.state("population", *cast.number(800, 900_000))
    town.state("elevation", *cast.number(2, 2400))
    return town


def add_people(cast: Cast, count: int) -> None:
    """People by year of birth; couples, their children under the father's name, some namesakes."""
    rng = cast.rng
    given = [[cast.names.word(2) for _ in range(max(8, count // 8))] for _ in range(2)]
    families = [cast.names.word(rng.choice([2, 3])) for _ in range(max(10, count // 4))]
    occupations: dict[str, list[str]] = defaultdict(list)
    couples: list[tuple[Draft, Draft]] = []
    parents: dict[Draft, tuple[Draft, Draft]] = {}
    for n, birth in enumerate(sorted(rng.randint(_FIRST_BIRTH, _LAST_BIRTH) for _ in range(count))):
        first, last = (bisect_left(couples, birth - age, key=lambda couple: couple[1].year) for age in (40, 20))
        couple = couples[rng.randrange(first, last)] if first < last and cast.chance(0.6) else None
        family = couple[0].name.split()[-1] if couple else rng.choice(families)
        person = _person(cast, _full_name(cast, given[n % 2], family, occupations), birth, occupations)
        cast.people.append(person)
        if couple:
            parents[person] = couple
            _descend(person, couple)
        if n % 2 and cast.chance(0.6):  # neighbours by birth are of about one age
            _marry(cast.people[-2], person, couples, parents)
    for person in cast.people:
        person.state("teacher", _teacher(cast, person, parents.get(person, ())))


def _full_name(cast: Cast, given: list[str], family: str, occupations: dict[str, list[str]]) -> str:
    if occupations and cast.chance(0.04):
        namesake = cast.rng.choice(cast.people).name
        if len(occupations[namesake]) == 1:
            return namesake
    for _ in range(20):
        if cast.names.claim(name := f"{cast.rng.choice(given)} {family}"):
            return name
    return f"{cast.names.word(2)} {family}"


def _person(cast: Cast, name: str, birth: int, occupations: dict[str, list[str]]) -> Draft:
    rng = cast.rng
    able = [o for o in _OCCUPATIONS if o != "film director" or birth >= _FIRST_FILM_DIRECTOR]
    occupation = rng.choice([o for o in able if o not in occupations[name]])
    occupations[name].append(occupation)
    person = Draft("person", occupation, name, qualifier=occupation, year=birth, end=birth + rng.randint(40, 92))
    if cast.chance(0.12):
        person.call_also(f"{cast.names.word(2)} {cast.names.word(2)}")
    person.state("occupation", occupation)
    person.state("born_on", *cast.date(birth))
    person.state("born_in", rng.choice(cast.towns))
    if person.end <= _TODAY:
        person.state("died_on", *cast.date(person.end))
        person.state("died_in", rng.choice(cast.towns) if cast.chance(0.6) else None)
    person.end = min(person.end, _TODAY)
    return person


def _marry(
    one: Draft, other: Draft, couples: list[tuple[Draft, Draft]], parents: dict[Draft, tuple[Draft, Draft]]
) -> None:
    """Make two people a couple, unless they are siblings or too far apart in age; ``other`` is the younger."""
    siblings = one in parents and parents[one] is parents.get(other)
    if not siblings and other.year - one.year <= _COUPLE_GAP:
        one.state("spouse", other)
        other.state("spouse", one)
        couples.append((one, other))


def _descend(child: Draft, couple: tuple[Draft, Draft]) -> None:
    for role, parent in zip(("father", "mother"), couple, strict=True):
        child.state(role, parent)
        parent.state("child", child)


def _teacher(cast: Cast, person: Draft, parents: tuple[Draft, ...]) -> Draft | None:
    return cast.person(person.year - 45, person.year - 12, *parents) if cast.chance(0.5) else None


def govern(cast: Cast) -> None:
    """First mayors and presidents, twin towns, and what is only known once people and works are there."""
    for town in cast.towns:
        mayor = cast.rng.choice(cast.people)
        town.state("mayor", mayor)
        town.state("chartered", str(mayor.year_at(cast.rng, 30, 50)))
    towns = cast.rng.sample(cast.towns, len(cast.towns) // 4 * 2)
    for one, other in zip(towns[::2], towns[1::2], strict=True):
        one.state("twin_town", other)
        other.state("twin_town", one)
    novels = [work for work in cast.works if work.sort == "novel"]
    for country in cast.countries:
        country.state("currency", cast.names.word(2).lower())
        country.state("area", *cast.number(900, 800_000))
        country.state("first_president", cast.rng.choice(cast.people))
        country.state("national_novel", cast.rng.choice(novels) if novels else None)
