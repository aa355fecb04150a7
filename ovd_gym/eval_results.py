"""From the episodes of an evaluation to figures with intervals, tables, and the comparison of two evaluations.

``A`` and ``B`` are two evaluations. An interval is at 95 %: Wilson's for a share of single episodes, else the bootstrap
over questions (episodes at one question resemble each other).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ovd_gym.errors import DataError
from ovd_gym.evals import Episode, EvalBatch, differences, load_settings
from ovd_gym.llm.choice import Usage
from ovd_gym.records import Record, load_jsonl
from ovd_gym.statistics import Estimate, estimate, pass_at_k, sign_test, wilson_interval

__all__ = ["Figures", "PairedFigures", "Sheet", "compare", "figures", "markdown", "sheet", "sheet_of_pairs"]

_SAME = ("agent", "versions", "plan.batch")
"""Settings that may differ between two evaluations without making their figures speak of different things."""


class Figures(Record):
    """What came of one set of questions."""

    data: str
    questions: int
    episodes: int
    failed: int
    """Episodes that broke for a reason outside the agent's power; they are left out of all else."""
    samples: int
    """Episodes per question."""
    shares: dict[str, Estimate]
    """By name: ``accuracy`` (episodes with the whole reward; with several samples, avg@k), ``pass@2`` and so on,
    ``reward`` and what the world measures."""
    means: dict[str, float]
    """Per episode: ``turns``, ``tool_calls``, ``invalid_calls``, ``tokens`` written, ``context`` in all; the share of
    ``truncated`` ones."""
    usage: Usage | None = None
    """What the agent's server reported, of all episodes."""


class PairedFigures(Record):
    """Two evaluations of the same questions."""

    data: str
    questions: int
    """In both."""
    first: dict[str, float]
    second: dict[str, float]
    difference: dict[str, Estimate]
    """B - A by name, with the paired bootstrap interval over questions."""
    better: int
    """Questions on which B has the higher accuracy."""
    worse: int
    p_value: float
    """Of the exact sign test on these two: McNemar's test where each question was asked once."""
    differing: dict[str, tuple[Any, Any]]
    """Settings that were not the same, the agent's own and versions aside."""


class Sheet(NamedTuple):
    """A table for a terminal or for Markdown."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def figures(data: str, episodes: Sequence[Episode], batches: Iterable[EvalBatch] = ()) -> Figures:
    """The figures of one set of questions."""
    played = [episode for episode in episodes if episode.reward is not None]
    by_question = _by_question(played)
    samples = max((len(found) for found in by_question.values()), default=0)
    usages = [batch.usage for batch in batches if batch.usage is not None]
    return Figures(
        data=data,
        questions=len(_by_question(episodes)),
        episodes=len(episodes),
        failed=len(episodes) - len(played),
        samples=samples,
        shares={name: found for name, found in _shares(by_question, samples) if found is not None},
        means=_means(played),
        usage=sum(usages, start=Usage()) if usages else None,
    )


def compare(first: Path, second: Path) -> list[PairedFigures]:
    """Every set of questions that both folders hold. Raises :class:`DataError` if there is none."""
    names = [name for name in _held(first) if name in _held(second)]
    if not names:
        raise DataError(f"nothing to compare: {first} holds {_listed(first)}, {second} holds {_listed(second)}")
    return [_pair(name, first / name, second / name) for name in names]


def _pair(name: str, first: Path, second: Path) -> PairedFigures:
    a, b = (_by_question(e for e in _read(path) if e.reward is not None) for path in (first, second))
    both = [question for question in a if question in b]
    apart = differences(load_settings(first), load_settings(second))
    if not both:
        raise DataError(f"{first} and {second} have no graded question in common")
    mine, other = _values(a), _values(b)
    shared = [key for key in mine if key in other]
    pairs = {key: np.array([[mine[key][q], other[key][q]] for q in both]) for key in shared}
    gaps = {key: values[:, 1] - values[:, 0] for key, values in pairs.items()}
    better, worse = int((gaps["accuracy"] > 0).sum()), int((gaps["accuracy"] < 0).sum())
    return PairedFigures(
        data=name,
        questions=len(both),
        first={key: float(values[:, 0].mean()) for key, values in pairs.items()},
        second={key: float(values[:, 1].mean()) for key, values in pairs.items()},
        difference={key: found for key, gap in gaps.items() if (found := _over(gap)) is not None},
        better=better,
        worse=worse,
        p_value=sign_test(better, worse),
        differing={key: pair for key, pair in apart.items() if not key.startswith(_SAME)},
    )


# Numbers --------------------------------------------------------------------------------------------------


def _shares(by_question: Mapping[str, Sequence[Episode]], samples: int) -> Iterable[tuple[str, Estimate | None]]:
    for name, values in _values(by_question).items():
        of_questions = np.array(list(values.values()))
        if samples == 1 and set(of_questions) <= {0.0, 1.0}:
            yield name, _wilson(of_questions)
        else:
            yield name, _over(of_questions)
        if name == "accuracy":
            yield from ((f"pass@{k}", _passing(by_question, k)) for k in _powers_of_two(samples))


def _values(by_question: Mapping[str, Sequence[Episode]]) -> dict[str, dict[str, float]]:
    """By name and question: the mean over its episodes."""
    measures: dict[str, Callable[[Episode], float]] = {"accuracy": lambda e: float(e.right)}
    names = next((list(found[0].measures) for found in by_question.values()), [])
    if any(episode.reward not in (0.0, 1.0) for found in by_question.values() for episode in found):
        measures["reward"] = lambda e: e.reward or 0.0
    measures |= {name: (lambda e, name=name: e.measures[name]) for name in names}  # type: ignore[misc]
    return {
        name: {question: float(np.mean([measure(e) for e in found])) for question, found in by_question.items()}
        for name, measure in measures.items()
    }


def _passing(by_question: Mapping[str, Sequence[Episode]], k: int) -> Estimate | None:
    """pass@k over the questions with at least ``k`` graded episodes."""
    enough = [found for found in by_question.values() if len(found) >= k]
    return _over(np.array([pass_at_k(len(found), sum(e.right for e in found), k) for found in enough]))


def _powers_of_two(samples: int) -> list[int]:
    return [2**n for n in range(1, samples.bit_length()) if 2**n <= samples]


def _over(values: Any) -> Estimate | None:
    """The mean over questions with its bootstrap interval."""
    return estimate(lambda rows: float(values[rows].mean()), range(len(values)))


def _wilson(values: Any) -> Estimate:
    low, high = wilson_interval(int(values.sum()), len(values))
    return Estimate(value=float(values.mean()), low=low, high=high, count=len(values))


def _means(played: Sequence[Episode]) -> dict[str, float]:
    if not played:
        return {}
    names = ("turns", "tool_calls", "invalid_calls", "tokens", "context")
    means = {name: float(np.mean([getattr(episode, name) for episode in played])) for name in names}
    return means | {"truncated": float(np.mean([episode.status == "truncated" for episode in played]))}


def _by_question(episodes: Iterable[Episode]) -> dict[str, list[Episode]]:
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.question, []).append(episode)
    return groups


# Tables ---------------------------------------------------------------------------------------------------


def sheet(found: Sequence[Figures]) -> Sheet:
    """One column per set of questions, one row per figure."""
    shares = dict.fromkeys(name for one in found for name in one.shares)
    means = dict.fromkeys(name for one in found for name in one.means)
    rows = [
        ["questions", *(str(one.questions) for one in found)],
        ["episodes a question", *(str(one.samples) for one in found)],
        *([name, *(_shown(one.shares.get(name)) for one in found)] for name in shares),
        *([name, *(_mean(one.means.get(name)) for one in found)] for name in means),
        ["cost", *(_cost(one) for one in found)],
        ["episodes that failed", *(str(one.failed) for one in found)],
    ]
    head = ["", *(one.data for one in found)]
    return Sheet("Evaluation", head, [row for row in rows if any(cell not in ("–", "0") for cell in row[1:])])


def sheet_of_pairs(pair: PairedFigures) -> Sheet:
    """One row per figure of two evaluations."""
    rows = [
        [name, f"{pair.first[name]:.3f}", f"{pair.second[name]:.3f}", _shown(pair.difference.get(name), sign="+")]
        for name in pair.first
    ]
    title = f"{pair.data}, {pair.questions} questions: B better on {pair.better}, worse on {pair.worse}"
    return Sheet(f"{title}, p = {pair.p_value:.2g} (sign test)", ["", "A", "B", "B - A"], rows)


def markdown(table: Sheet) -> str:
    """The table as Markdown; what a name might hold to break it, or to be more than text, is escaped."""
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("](", "]&#40;")


def _shown(found: Estimate | None, sign: str = "") -> str:
    return "–" if found is None else f"{found.value:{sign}.3f} [{found.low:{sign}.3f}, {found.high:{sign}.3f}]"


def _mean(value: float | None) -> str:
    return "–" if value is None else f"{value:,.2f}" if value < 100 else f"{value:,.0f}"


def _cost(one: Figures) -> str:
    return f"{one.usage.cost:,.4g}" if one.usage is not None and one.usage.cost else "–"


# Folders --------------------------------------------------------------------------------------------------


def _held(folder: Path) -> list[str]:
    return sorted(file.parent.name for file in folder.glob("*/settings.json"))


def _listed(folder: Path) -> str:
    return ", ".join(_held(folder)) or "no evaluation"


def _read(path: Path) -> list[Episode]:
    return list(load_jsonl(path / "episodes.jsonl", Episode))
