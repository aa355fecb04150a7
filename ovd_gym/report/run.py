"""Run folders to what a reader opens: a learning curve as one picture, and one page with everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tokenizers import Tokenizer

from ovd_gym.errors import DataError
from ovd_gym.recorder import Kind, Recorder
from ovd_gym.records import Score
from ovd_gym.report.calibration import reliability
from ovd_gym.report.charts import charts_of, number
from ovd_gym.report.curve import write_curve
from ovd_gym.report.episodes import FLAGS, Episode, Vocabulary, body, paired, row, spread
from ovd_gym.report.page import pack, write_page

__all__ = ["EPISODES", "report_on", "write_report"]

EPISODES = 5000
"""Most episodes of a page."""
_BLOCK = 50
"""Episodes that are unpacked together."""

OnSection = Callable[[int, int], None]
"""Told how many of how many steps and evaluations have been read."""


def write_report(recorder: Recorder) -> list[Path]:
    """Write ``curve.png`` and ``report.html`` into the run folder and return their paths."""
    curve, page = recorder.path / "curve.png", recorder.path / "report.html"
    write_curve(curve, recorder.metrics(), recorder.evaluations(), _title([recorder]))
    report_on({recorder.path.name: recorder}, page)
    return [curve, page]


def report_on(
    runs: Mapping[str, Recorder],
    path: Path,
    limit: int = EPISODES,
    on_section: OnSection = lambda done, total: None,
) -> None:
    """Write one page about ``runs``, by the names they are to have in it, to ``path``.

    All of their metrics are drawn. Episodes are those of whole training steps and evaluations, evenly spread, first
    and last included, at most ``limit`` in all and, of each run, half of them at most from evaluations.

    Raises :class:`DataError` for a run that has nothing recorded, or a damaged file in it.
    """
    chosen = [_chosen(recorder, limit // len(runs)) for recorder in runs.values()]
    if empty := [name for name, run in runs.items() if not run.metrics() and not run.evaluations()]:
        raise DataError(f"nothing to report on: no finished training step or evaluation in {', '.join(empty)}")
    reader = _Reader(sum(map(len, chosen)), on_section)
    facts = []
    for which, (recorder, sections) in enumerate(zip(runs.values(), chosen, strict=True)):
        judged = reader.read(which, recorder, sections)
        facts.append(_facts(list(runs)[which], recorder) | {"calibration": judged})
    overview = {
        "runs": facts,
        "charts": charts_of([{"metrics": r.metrics(), "evaluations": r.evaluations()} for r in runs.values()]),
        "flags": FLAGS,
        "block": _BLOCK,
    }
    write_page(path, _title(list(runs.values())), {"overview": pack(overview)}, reader.blocks())


class _Section(NamedTuple):
    """One training step or evaluation of a run."""

    kind: Kind
    step: int


def _chosen(recorder: Recorder, limit: int) -> list[_Section]:
    """What is shown of a run, in the order in which it happened."""

    def of(kind: Kind, rows: Iterable[Mapping[str, Any]], room: int) -> list[_Section]:
        sizes = {_Section(kind, row["step"]): recorder.count(kind, row["step"]) for row in rows}
        kept = {section: size for section, size in sizes.items() if size}
        return [list(kept)[i] for i in spread(list(kept.values()), room)]

    held_out = of("eval", recorder.evaluations(), limit // 2)
    left = limit - sum(recorder.count(kind, step) for kind, step in held_out)
    return sorted([*held_out, *of("step", recorder.metrics(), left)], key=lambda s: (s.step, s.kind == "eval"))


class _Reader:
    """Reads episodes run by run, and packs them as it goes: never more than a section of them is in memory."""

    def __init__(self, total: int, on_section: OnSection) -> None:
        self._total, self._on_section = total, on_section
        self._sections: list[dict[str, Any]] = []
        self._rows: list[list[Any]] = []
        self._waiting: list[dict[str, Any]] = []
        self._blocks: dict[str, str] = {}
        self._tokens: list[dict[int, str] | None] = []
        """What the token ids of each run stand for; None where it keeps no tokenizer."""

    def read(self, run: int, recorder: Recorder, sections: Sequence[_Section]) -> dict[str, Any]:
        """Take in the episodes of a run; what its teacher's scores were worth in them, by kind."""
        file = recorder.path / "tokenizer" / "tokenizer.json"
        vocabulary = Vocabulary(_tokenizer(file)) if file.is_file() else None
        judged: dict[Kind, list[tuple[Score, float]]] = {"step": [], "eval": []}
        for kind, step in sections:
            credits = recorder.credits(step) if kind == "step" else {}
            episodes = paired(recorder.episodes(kind, step), credits)
            self._add(episodes, vocabulary)
            self._sections.append({"run": run, "kind": kind, "step": step, "count": len(episodes)})
            for episode in episodes:
                if episode.score is not None and episode.trajectory.reward is not None:
                    judged[kind].append((episode.score, episode.trajectory.reward))
            self._on_section(len(self._sections), self._total)
        self._tokens.append(vocabulary.texts if vocabulary else None)
        return {kind: reliability(pairs) for kind, pairs in judged.items()}

    def blocks(self) -> dict[str, str]:
        """All blocks of data, packed."""
        self._pack()
        tokens = {f"tokens-{run}": pack(texts) for run, texts in enumerate(self._tokens)}
        return {"index": pack({"sections": self._sections, "rows": self._rows}), **tokens, **self._blocks}

    def _add(self, episodes: Sequence[Episode], vocabulary: Vocabulary | None) -> None:
        groups: dict[str, int] = {}
        for episode in episodes:
            group = groups.setdefault(episode.trajectory.group_id, len(groups))
            self._rows.append([len(self._sections), *row(episode, group)])
            self._waiting.append(body(episode, vocabulary))
            if len(self._waiting) == _BLOCK:
                self._pack()

    def _pack(self) -> None:
        if self._waiting:
            self._blocks[f"episodes-{len(self._blocks)}"] = pack(self._waiting)
            self._waiting = []


def _tokenizer(file: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{file}: not a tokenizer ({error})") from error


def _facts(name: str, recorder: Recorder) -> dict[str, Any]:
    """What the page says of a run besides its numbers."""
    config = recorder.config
    changed = config.model_dump(mode="json", exclude_defaults=True)
    return {
        "name": name,
        "student": config.student.model,
        "env": config.env.id,
        "arm": config.credit.arm,
        "teacher": config.teacher.name if config.teacher else None,
        "seed": config.seed,
        "steps": len(recorder.metrics()),
        "planned": config.steps,
        "credit": _credit(recorder),
        "config": yaml.safe_dump(changed, sort_keys=False, allow_unicode=True),
        "versions": recorder.versions(),
        "accuracy": list(_ends(recorder.evaluations(), "accuracy")),
        "reward": [value["reward"] for value in _ends(recorder.metrics(), "reward")],
    }


def _credit(recorder: Recorder) -> str | None:
    """What the numbers in the run's credits are."""
    if recorder.config.credit.arm in ("imitation", "token-opd"):
        return None
    return "reward" if recorder.config.credit.estimator == "gae" else "advantage"


def _ends(rows: Sequence[Mapping[str, Any]], key: str) -> Iterator[dict[str, Any]]:
    """The first and the last of the rows that hold a number for ``key``."""
    known = [row for row in rows if number(row.get(key)) is not None]
    for found in (known[0], known[-1]) if len(known) > 1 else known:
        yield {name: number(found.get(name)) for name in ("step", key, "low", "high", "episodes")}


def _title(runs: Sequence[Recorder]) -> str:
    titles = list(dict.fromkeys(f"{run.config.student.model} in {run.config.env.id}" for run in runs))
    return titles[0] if len(titles) == 1 else f"{len(runs)} runs"
