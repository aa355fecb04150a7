"""From critiques to what can be said of the teachers: numbers, agreement, and the attempts worth reading."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path

from ovd_gym.critique import Batch, Judged, score_attempts
from ovd_gym.errors import DataError
from ovd_gym.records import Critique, Record, Score
from ovd_gym.report.critique import Case, CaseStep, Chapter, Page, Reliability, Table, write_page
from ovd_gym.statistics import Estimate
from ovd_gym.teachers.labelled import Attempt
from ovd_gym.teachers.measure import Agreement, FewerSteps, Measurement, agreement, measure

__all__ = ["Comparison", "Findings", "compare", "most_different", "tables", "write_findings"]

_SHOWN = 8
"""Attempts in a chapter of the page."""
_NOTES = {
    "AUROC": "a right attempt scores above a wrong one; ties count half",
    "pairs at one question": "the same among attempts at the same question",
    "ties": "share of right and wrong pairs with the same score",
    "rank correlation": "Spearman, of score and outcome",
    "calibration error": "the score on [0, 1] as the probability of being right, ten bins",
    "after calibration": "isotonic, fitted to one half of the questions, measured on the other",
    "step AUROC": "steps up to the first wrong one, those after it have no label",
    "first error F1": "of the two shares below, as in ProcessBench; threshold chosen on the other half unless given",
    "no number": "share of all scores asked for",
}


class Comparison(Record):
    """Two teachers, or two passes of one."""

    first: str
    second: str
    trajectories: Agreement | None
    steps: Agreement | None


class Findings(Record):
    """What is known of some teachers."""

    measurements: dict[str, Measurement]
    """By label; the last is the control."""
    costs: dict[str, Batch]
    comparisons: tuple[Comparison, ...]


def compare(attempts: Sequence[Attempt], judged: Sequence[Judged], threshold: float | None = None) -> Findings:
    """Measure everything in ``judged`` on ``attempts``, beside a control that reads nothing.

    Args:
        attempts: with their labels.
        judged: critiques of them, of some teachers; second passes are compared with the first, not measured.
        threshold: mean score below which a step counts as wrong; None chooses it by halves.
    """
    control = FewerSteps()
    critiques = {critique.trajectory_id: critique for critique in score_attempts(control, attempts)}
    columns = [*(one for one in judged if not one.again), Judged(label=control.name, critiques=critiques)]
    return Findings(
        measurements={one.label: measure(*one.of(attempts), threshold=threshold) for one in columns},
        costs={one.label: one.cost for one in judged if one.cost is not None},
        comparisons=tuple(
            _comparison(first, second) for first, second in combinations(judged, 2) if _apt(first, second)
        ),
    )


def tables(findings: Findings) -> list[Table]:
    """The findings as tables: one column per teacher, one row per pair of teachers."""
    measured = findings.measurements
    rows = [(name, *cells) for name, *cells in _measured_rows(findings) if any(cell != "–" for cell in cells)]
    found = [Table("Measured", ("", *measured), rows, _NOTES)]
    if findings.comparisons:
        head = ("", "scores", "rank correlation", "same digit", "within 1", "weighted kappa")
        agreed = [row for pair in findings.comparisons for row in _agreement_rows(pair)]
        found.append(Table("Agreement", head, agreed, {}))
    return found


def write_findings(
    folder: Path, findings: Findings, attempts: Sequence[Attempt], judged: Sequence[Judged], title: str
) -> list[Path]:
    """Write ``measurements.json`` and ``critique.html`` into ``folder``; their paths."""
    numbers, page = folder / "measurements.json", folder / "critique.html"
    columns = [one for one in judged if not one.again]
    labels = [one.label for one in columns]
    curves = [Reliability(one.label, _bins(*one.of(attempts))) for one in columns]
    chapters = [most_different(attempts, columns)] if len(columns) > 1 else []
    chapters += [_most_wrong(attempts, columns, index) for index in range(len(columns))]
    try:
        numbers.write_text(findings.model_dump_json(indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot write {numbers}: {error.strerror}") from None
    write_page(page, Page(title, labels, tables(findings), [c for c in curves if c.bins], chapters))
    return [numbers, page]


# Tables ----------------------------------------------------------------------------------------------------


def _measured_rows(findings: Findings) -> Iterable[tuple[str, ...]]:
    measured = list(findings.measurements.values())
    errors = [m.first_errors for m in measured]
    costs = [findings.costs.get(label) for label in findings.measurements]
    yield "attempts", *(str(m.attempts) for m in measured)
    yield "AUROC", *(_shown(m.auroc) for m in measured)
    yield "pairs at one question", *(_shown(m.pair_accuracy) for m in measured)
    yield "ties", *(_percent(m.ties) for m in measured)
    yield "rank correlation", *(_shown(m.spearman) for m in measured)
    yield "calibration error", *(_shown(m.calibration_error) for m in measured)
    yield "after calibration", *(_shown(m.calibrated_error) for m in measured)
    yield "step AUROC", *(_shown(m.step_auroc) for m in measured)
    yield "step ties", *(_percent(m.step_ties) for m in measured)
    yield "first error F1", *(_shown(e.f1 if e else None) for e in errors)
    yield "with an error", *(_shown(e.erroneous if e else None) for e in errors)
    yield "without one", *(_shown(e.error_free if e else None) for e in errors)
    yield "threshold", *(" and ".join(f"{t:.2f}" for t in e.thresholds) if e else "–" for e in errors)
    yield "no number", *(_statuses(m) for m in measured)
    yield "tokens an attempt", *(_per_attempt(c, "tokens") for c in costs)
    yield "cost an attempt", *(_per_attempt(c, "cost") for c in costs)
    yield "seconds an attempt", *(_per_attempt(c, "seconds") for c in costs)


def _shown(estimate: Estimate | None) -> str:
    return "–" if estimate is None else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _statuses(measured: Measurement) -> str:
    return ", ".join(f"{_percent(share)} {status}" for status, share in measured.invalid.items()) or "0 %"


def _per_attempt(cost: Batch | None, what: str) -> str:
    if cost is None or not cost.attempts:
        return "–"
    if what == "seconds":
        return f"{cost.seconds / cost.attempts:.3g}"
    usage = cost.usage
    total = usage.cost if what == "cost" else usage.prompt_tokens + usage.completion_tokens
    return f"{total / cost.attempts:,.4g}" if total else "–"


def _agreement_rows(pair: Comparison) -> Iterable[tuple[str, ...]]:
    same = pair.second == f"{pair.first} (again)"
    for what, agreed in (("attempts", pair.trajectories), ("steps", pair.steps)):
        if agreed is not None:
            name = f"{pair.first} asked again, {what}" if same else f"{pair.first} / {pair.second}, {what}"
            shares = (_percent(agreed.exact), _percent(agreed.within_1))
            yield name, str(agreed.count), _number(agreed.spearman), *shares, _number(agreed.kappa)


# Agreement -------------------------------------------------------------------------------------------------


def _apt(first: Judged, second: Judged) -> bool:
    """Two teachers, or both passes of one."""
    if not first.again and not second.again:
        return True
    return f"{first.label} (again)" == second.label


def _comparison(first: Judged, second: Judged) -> Comparison:
    both = [(first.critiques[name], second.critiques[name]) for name in first.critiques if name in second.critiques]
    return Comparison(
        first=first.label,
        second=second.label,
        trajectories=agreement((a.trajectory for a, _ in both), (b.trajectory for _, b in both)),
        steps=agreement((s for a, _ in both for s in a.steps), (s for _, b in both for s in b.steps)),
    )


# Attempts worth reading ------------------------------------------------------------------------------------


def most_different(attempts: Sequence[Attempt], judged: Sequence[Judged]) -> Chapter:
    """The attempts whose scores lie farthest apart, at least a digit."""
    gaps = [(_gap(_whole(one, attempt) for one in judged), attempt) for attempt in attempts]
    apart = sorted((pair for pair in gaps if pair[0] >= 1), key=lambda pair: -pair[0])[:_SHOWN]
    why = "The attempts whose scores lie farthest apart, at least one digit."
    return Chapter("Where the teachers differ most", why, [_case(attempt, judged) for _, attempt in apart])


def _most_wrong(attempts: Sequence[Attempt], judged: Sequence[Judged], index: int) -> Chapter:
    """The attempts whose scores are farthest from their outcome."""
    off = []
    for attempt in attempts:
        score = _whole(judged[index], attempt)
        if attempt.correct is not None and score is not None and score.valid:
            off.append((abs(score.u - attempt.correct), attempt))
    worst = sorted((pair for pair in off if pair[0] > 0.5), key=lambda pair: -pair[0])[:_SHOWN]
    why = "Wrong attempts with the highest scores, right ones with the lowest."
    title = f"Where {judged[index].label} is most wrong"
    return Chapter(title, why, [_case(attempt, judged) for _, attempt in worst])


def _case(attempt: Attempt, judged: Sequence[Judged]) -> Case:
    critiques = [one.critiques.get(attempt.id) or _silent(attempt) for one in judged]
    steps = [
        CaseStep(step.text, step.observation, label, [critique.steps[k] for critique in critiques])
        for k, (step, label) in enumerate(zip(attempt.steps, attempt.step_labels, strict=True))
    ]
    return Case(
        id=attempt.id,
        question=attempt.question,
        answer=attempt.answer,
        gold=attempt.gold,
        right=attempt.correct,
        about=" · ".join(filter(None, (attempt.source, attempt.model))),
        steps=steps,
        scores=[critique.trajectory for critique in critiques],
    )


def _silent(attempt: Attempt) -> Critique:
    """The place of a critique that was never made."""
    nothing = Score.invalid("error", "not scored")
    return Critique(trajectory_id=attempt.id, teacher="", steps=(nothing,) * len(attempt.steps), trajectory=nothing)


def _whole(judged: Judged, attempt: Attempt) -> Score | None:
    critique = judged.critiques.get(attempt.id)
    return None if critique is None else critique.trajectory


def _gap(scores: Iterable[Score | None]) -> float:
    means = [score.mean for score in scores if score is not None and score.mean is not None]
    return max(means) - min(means) if means else 0.0


def _bins(attempts: Sequence[Attempt], critiques: Sequence[Critique]) -> list[tuple[float, float, int]]:
    """(mean score on [0, 1], share right, count) of the labelled attempts, by digit."""
    found: dict[int, list[tuple[float, bool]]] = {}
    for attempt, critique in zip(attempts, critiques, strict=True):
        score = critique.trajectory
        if attempt.correct is not None and score.value is not None:
            found.setdefault(score.value, []).append((score.u, attempt.correct))
    return [
        (sum(u for u, _ in pairs) / len(pairs), sum(right for _, right in pairs) / len(pairs), len(pairs))
        for _, pairs in sorted(found.items())
    ]
