"""Organisations, works and events of the fictional world, and the careers they make."""

from __future__ import annotations

from collections import defaultdict

from ovd_gym.envs.web_search.world.cast import Cast, Draft
from ovd_gym.envs.web_search.world.society import CREATORS

__all__ = ["add_careers", "add_events", "add_organisations", "add_works"]

_ORGANISATIONS = ("university", "press", "film studio", "opera company", "museum", "institute", "trading house")
_ENDINGS = {
    "university": "University",
    "press": "Press",
    "film studio": "Pictures",
    "opera company": "Opera",
    "museum": "Museum",
    "institute": "Institute",
}
"""A trading house is named after two families instead."""
_MADE_BY = {"novel": "author", "film": "director", "opera": "composer", "painting": "painter"}
_BROUGHT_BY = {
    "novel": ("publisher", "press"),
    "film": ("studio", "film studio"),
    "opera": ("first_stage", "opera company"),
    "painting": ("museum", "museum"),
}
"""Sort of work -> (relation, sort of organisation)."""
_EVENTS = {"regatta": "Regatta", "chess tournament": "Chess Open", "song contest": "Song Contest", "rally": "Rally"}


def add_organisations(cast: Cast, count: int) -> None:
    """All sorts in turn; names share their first word with others now and then."""
    words = [cast.names.word() for _ in range(max(4, count // 3))]
    for n in range(count):
        sort = _ORGANISATIONS[n % len(_ORGANISATIONS)]
        town = cast.rng.choice(cast.towns)
        organisation = Draft("organisation", sort, _organisation_name(cast, sort, town, words))
        if sort == "university":
            organisation.call_also(f"University of {organisation.name.removesuffix(' University')}")
        founder = cast.person(1860 if sort == "film studio" else 0) or cast.rng.choice(cast.people)
        organisation.year = founder.year_at(cast.rng, 27, 55)
        organisation.state("founder", founder)
        founder.state("founded", organisation)
        organisation.state("founded_in", str(organisation.year))
        organisation.state("seat", town)
        organisation.state("staff", *cast.number(12, 24_000))
        organisation.state("head", cast.peer(founder))
        organisation.state("owner", cast.rng.choice(cast.organisations[""]) if n and cast.chance(0.3) else None)
        for group in ("", sort):
            cast.organisations[group].append(organisation)
    for organisations in cast.organisations.values():
        organisations.sort(key=lambda organisation: organisation.year)


def _organisation_name(cast: Cast, sort: str, town: Draft, words: list[str]) -> str:
    first, last = town.name if sort in ("university", "opera company") else cast.rng.choice(words), _ENDINGS.get(sort)
    last = last or f"& {cast.rng.choice(cast.people).name.split()[-1]}"
    name = f"{first} {last}"
    while not cast.names.claim(name):
        name = f"{cast.names.word()} {last}"
    return name


def add_works(cast: Cast, count: int) -> None:
    """Works of people whose occupation it is; some after novels, some with the title of another."""
    makers = {sort: [p for p in cast.people if p.sort == maker] for sort, maker in CREATORS.items()}
    sorts = [sort for sort in makers if makers[sort]]
    taken: set[tuple[str, str, int]] = set()
    known: dict[Draft, list[Draft]] = defaultdict(list)
    for _ in range(count):
        sort = cast.rng.choice(sorts)
        maker = cast.rng.choice(makers[sort])
        year = maker.year_at(cast.rng, 36 if sort == "film" else 22, 60)
        source = _source(cast, sort, year)
        name = _work_name(cast, source)
        if (name, sort, year) in taken:
            name = cast.names.work()
        taken.add((name, sort, year))
        work = Draft("work", sort, name, qualifier=f"{year} {sort}", year=year)
        _describe(cast, work, maker, source)
        known[maker].append(work)
        cast.works.append(work)
    for maker, works in known.items():
        maker.state("known_for", cast.rng.choice(works))


def _source(cast: Cast, sort: str, year: int) -> Draft | None:
    """An older novel to take the plot from."""
    if sort not in ("film", "opera") or not cast.chance(0.35):
        return None
    some = cast.rng.sample(cast.works, min(12, len(cast.works)))
    return next((work for work in some if work.sort == "novel" and work.year < year), None)


def _work_name(cast: Cast, source: Draft | None) -> str:
    if source and cast.chance(0.5):
        return source.name
    if cast.works and cast.chance(0.06):
        return cast.rng.choice(cast.works).name
    return cast.names.work()


def _describe(cast: Cast, work: Draft, maker: Draft, source: Draft | None) -> None:
    rng, sort = cast.rng, work.sort
    work.state("year", str(work.year))
    work.state(_MADE_BY[sort], maker)
    relation, bringer = _BROUGHT_BY[sort]
    work.state(relation, cast.organisation(bringer, work.year))
    work.state("based_on", source)
    work.state("set_in", rng.choice(cast.towns) if sort != "painting" else None)
    work.state("dedicated_to", cast.peer(maker) if cast.chance(0.5) else None)
    if sort == "painting":
        work.state("height", *cast.number(20, 400))
    elif sort == "novel":
        work.state("pages", *cast.number(80, 1400))
    else:
        work.state("minutes", *cast.number(55, 260))


def add_events(cast: Cast, count: int) -> None:
    """Contests; most are editions of one held every few years under the same name."""
    series: list[tuple[str, str]] = []
    while len(cast.events) < count:
        if not series or cast.chance(0.4):
            sort = cast.rng.choice(list(_EVENTS))
            series.append((f"{cast.names.word()} {_EVENTS[sort]}", sort))
        name, sort = cast.rng.choice(series[-6:])
        winner = cast.rng.choice(cast.people)
        year = winner.year_at(cast.rng, 18, 45)
        if cast.names.claim(edition := f"{year} {name}"):
            cast.events.append(_event(cast, Draft("event", sort, edition, year=year), winner))


def _event(cast: Cast, event: Draft, winner: Draft) -> Draft:
    event.state("opened_on", *cast.date(event.year))
    event.state("held_in", cast.rng.choice(cast.towns))
    event.state("winner", winner)
    winner.state("won", event)
    event.state("runner_up", cast.peer(winner))
    event.state("organiser", cast.organisation("", event.year))
    event.state("participants", *cast.number(9, 3000))
    return event


def add_careers(cast: Cast) -> None:
    """Where people studied and worked."""
    for person in cast.people:
        person.state("studied_at", cast.organisation("university", person.year + 24) if cast.chance(0.7) else None)
        person.state("employer", cast.organisation("", person.year + 40) if cast.chance(0.6) else None)
