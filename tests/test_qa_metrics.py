"""EM, F1 and cover-EM: recorded values, hand-worked values, and what normalisation does beyond ASCII."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovd_gym.envs.web_search.metrics import cover_exact_match, exact_match, f1, normalise

PAIRS = Path(__file__).parents[1] / "../shared/data/conformance/qa_em_f1_pairs.jsonl.gz"


@pytest.mark.skipif(not PAIRS.is_file(), reason="the recorded pairs are not beside the project")
def test_recorded_pairs() -> None:
    with gzip.open(PAIRS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 495
    for row in rows:
        assert exact_match(row["pred"], [row["gold"]]) == row["em"], row
        assert f1(row["pred"], [row["gold"]]) == pytest.approx(row["f1"], abs=1e-4), row


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Lord of the Rings!", "lord of rings"),
        ("  A.B.C. ", "abc"),
        ("twenty-one", "twentyone"),
        ("an apple a day", "apple day"),
        ("Theatre", "theatre"),
        ("the", ""),
        ("?!", ""),
        ("U.S.A", "usa"),
        ("10,000", "10000"),
        ("1914–1918", "1914–1918"),
        ("“Ulysses”", "“ulysses”"),
        ("Müller", "müller"),
        ("STRAßE", "straße"),
        ("x\u00a0y\u3000z", "x y z"),
    ],
)
def test_normalise(text: str, normal: str) -> None:
    assert normalise(text) == normal


@pytest.mark.parametrize(
    ("answer", "gold", "em", "score", "cover"),
    [
        ("Ada Lovelace", "ada lovelace", 1, 1, 1),
        ("Ada Lovelace of London", "Ada Lovelace", 0, 2 / 3, 1),
        ("Lovelace", "Ada Lovelace", 0, 2 / 3, 0),
        ("Lovelace Ada", "Ada Lovelace", 0, 1, 0),
        ("no", "no", 1, 1, 1),
        ("no way", "no", 0, 0, 1),
        ("no", "no way", 0, 0, 0),
        ("Norway", "no", 0, 0, 0),
        ("", "Ada", 0, 0, 0),
        ("", "The", 1, 1, 1),
        ("Ada", "The", 0, 0, 0),
        ("new new york", "new york", 0, 0.8, 1),
        ("e\u0301", "\u00e9", 0, 0, 0),
        ("1914–1918", "1914-1918", 0, 0, 0),
        ("Ａda", "Ada", 0, 0, 0),
        ("東京都 渋谷区", "東京都", 0, 2 / 3, 1),
    ],
)
def test_hand_worked(answer: str, gold: str, em: float, score: float, cover: float) -> None:
    assert exact_match(answer, [gold]) == em
    assert f1(answer, [gold]) == pytest.approx(score)
    assert cover_exact_match(answer, [gold]) == cover


def test_the_best_gold_counts() -> None:
    golds = ["Augusta King", "Ada Lovelace", "Ada Byron"]
    assert exact_match("Ada Byron", golds) == 1
    assert f1("Byron", golds) == pytest.approx(2 / 3)
    assert cover_exact_match("she was Ada Lovelace", golds) == 1


def test_no_gold_is_an_error_and_not_a_zero() -> None:
    for metric in (exact_match, f1, cover_exact_match):
        with pytest.raises(ValueError, match="no gold answers"):
            metric("x", [])


@given(st.text(max_size=30), st.text(max_size=30))
def test_bounds(answer: str, gold: str) -> None:
    em, score, cover = (metric(answer, [gold]) for metric in (exact_match, f1, cover_exact_match))
    assert em in (0, 1)
    assert cover in (0, 1)
    assert em <= score <= 1
    assert em <= cover
    assert exact_match(answer, [answer]) == f1(answer, [answer]) == cover_exact_match(answer, [answer]) == 1
    assert f1(answer, [gold]) == f1(gold, [answer])


@given(st.text(max_size=40))
def test_normalising_again_can_only_take_more_articles(text: str) -> None:
    once = normalise(text)
    assert "  " not in once
    assert once == once.strip()
