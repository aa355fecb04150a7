"""The grader against real answers and labels (third-party data, not part of the project)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.envs.math_qa import MathEnv, jsonl_tasks, processes
from ovd_gym.envs.math_qa.equivalence import compare, compare_plain
from ovd_gym.records import ToolCall

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no evaluation data beside the project (../shared/data)")


def rows(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def agreement(name: str, cases: list[dict[str, Any]], judge: Callable[[dict[str, Any]], bool]) -> float:
    wrong = [case for case in cases if judge(case) != case["equal"]]
    rate = 1 - len(wrong) / len(cases)
    print(f"\n{name}: {len(cases) - len(wrong)}/{len(cases)} = {rate:.1%}; disagreements:")
    for case in wrong:
        print(
            f"  {case['id']}: gold {case['gold']!r}, label {case['equal']}, got {case.get('pred_text', case['pred'])!r}"
        )
    return rate


def equal(case: dict[str, Any]) -> bool:
    options = {key: case[key] for key in ("digits", "strict", "allow_set_relation_comp") if key in case}
    return compare(case["gold"], case["pred"], **options).equal


def test_equivalence_labels() -> None:
    cases = [case for case in rows("conformance/math_equivalence") if not case.get("note")]
    assert agreement("math_equivalence", cases, equal) >= 0.988


def test_real_final_answers() -> None:
    cases = [case for case in rows("conformance/math_final_answers_real") if r"\boxed" in case["pred_text"]]
    rate = agreement("math_final_answers_real", cases, lambda case: compare(case["gold"], case["pred_text"]).equal)
    assert rate >= 0.97


def test_the_fast_path_agrees_with_math_verify() -> None:
    pairs = {(c["gold"], c["pred"]) for c in rows("conformance/math_equivalence")}
    pairs |= {(c["gold"], c["pred"]) for c in rows("conformance/math_final_answers_real") if c.get("pred")}
    decided = 0
    for gold, predicted in pairs:
        plain = compare_plain(gold, predicted)
        if plain is not None:
            decided += 1
            arguments = (gold, predicted, 6, True, False, None)
            assert processes.call("verify", *arguments, timeout_s=10.0) == plain.equal, (gold, predicted)
    assert decided > 100


@pytest.mark.parametrize("name", ["gsm8k_test", "olympiadbench_en_text"])
def test_gold_answers_score_one(name: str) -> None:
    tasks = jsonl_tasks(DATA / "math" / f"{name}.jsonl.gz")
    assert len(tasks) == len(rows(f"math/{name}"))
    env = MathEnv(tasks)
    for index, task in enumerate(tasks):
        for gold in task.answers:
            env.reset(options={"task_index": index})
            action = env.action_format.render(ToolCall(name="answer", arguments={"text": gold}))
            assert env.step(action)[1] == 1.0, task.id
    env.close()


def test_gold_answers_hold_without_the_same_text() -> None:
    tasks = jsonl_tasks(DATA / "math" / "olympiadbench_en_text.jsonl.gz")
    failures = [
        task.id for task in tasks if not compare(task.answers[0], rf"So: \boxed{{{task.answers[0].strip('$')}}}").equal
    ]
    print(f"\nnot recognised inside a boxed answer: {failures}")
    assert len(failures) <= 0.03 * len(tasks)
