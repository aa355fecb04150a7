"""Extraction against real pages with human annotations (third-party data, not part of the project)."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.envs.web_search.base import Page
from ovd_gym.envs.web_search.extract import ExtractLimits, extract
from ovd_gym.envs.web_search.fetch import Fetched

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "html" / "pages_cc.jsonl.gz"

pytestmark = pytest.mark.skipif(not DATA.is_file(), reason="no evaluation data beside the project (../shared/data)")


def plain(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def pages() -> list[tuple[dict[str, Any], Page]]:
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [(row, read(row)) for row in rows]


def read(row: dict[str, Any]) -> Page:
    url = row.get("url") or "https://example.org/"
    return extract(Fetched(url, "text/html", row["encoding"], row["html"].encode(row["encoding"])), ExtractLimits(30))


def test_wanted_segments_are_kept_and_unwanted_ones_dropped(pages: list[tuple[dict[str, Any], Page]]) -> None:
    kept = [(s, plain(s) in plain(page.text)) for row, page in pages for s in row.get("with") or []]
    dropped = [(s, plain(s) not in plain(page.text)) for row, page in pages for s in row.get("without") or []]
    for name, results in (("kept", kept), ("dropped", dropped)):
        right = sum(good for _, good in results)
        print(f"\n{name}: {right}/{len(results)}; wrong: {[segment for segment, good in results if not good]}")
        assert len(results) >= 25
        assert right >= 0.95 * len(results)


def test_the_words_of_expected_texts_are_kept(pages: list[tuple[dict[str, Any], Page]]) -> None:
    rates = {}
    for row, page in pages:
        if expected := set((row.get("expected_text") or "").split()):
            rates[row["id"]] = len(expected & set(page.text.split())) / len(expected)
    print(f"\nwords kept: {rates}")
    assert rates
    assert min(rates.values()) >= 0.95


def test_titles_and_links_are_found(pages: list[tuple[dict[str, Any], Page]]) -> None:
    for row, page in pages:
        assert page.title, row["id"]
        assert len(page.links) > 10, row["id"]
        assert len({link.url for link in page.links}) == len(page.links)
        assert all(link.url.startswith(("http://", "https://")) for link in page.links)
        if row.get("title"):
            assert plain(row["title"]).split(" - ")[0] in page.title
