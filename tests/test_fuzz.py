"""Any text and bytes, for parsers of untrusted ones that no other test fuzzes: read, or refused by a known error."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ovd_gym.bridges.sessions import _Beginning
from ovd_gym.envs.jsonl import read_rows, take_text, take_texts, task_of
from ovd_gym.envs.math_qa.equivalence import compare_numbers, compare_plain
from ovd_gym.envs.math_qa.shell import show_last_value
from ovd_gym.envs.web_search.addresses import parse_address
from ovd_gym.envs.web_search.manners import Robots
from ovd_gym.errors import ConfigError, DataError, ToolError
from ovd_gym.llm.choice import Prompt, Reading
from ovd_gym.llm.replies import Completion, read_distribution, read_text
from ovd_gym.teachers.labelled import load_attempts

KEYS = ["id", "question", "answer", "steps", "text", "label", "problem", "solution", "prompt", "ratings"]
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
LINES = st.lists(JSON.map(json.dumps).map(str.encode) | st.binary(max_size=20), max_size=3).map(b"\n".join)
DEEP = b'{"question": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
HUGE = b'{"question": "q", "answer": ' + b"1" * 5000 + b"}"
on_one_folder = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@on_one_folder
@given(content=LINES)
@example(content=DEEP)
@example(content=HUGE)
def test_any_file_holds_questions_or_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any.jsonl").write_bytes(content)
    with suppress(DataError):
        for row in read_rows(tmp_path / "any.jsonl"):
            task_of(row, take_text(row, "question"), take_texts(row, "answer") if "answer" in row.fields else ["a"])


@on_one_folder
@given(content=LINES)
@example(content=DEEP)
@example(content=HUGE)
def test_any_file_holds_attempts_or_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "any.jsonl").write_bytes(content)
    with suppress(DataError):
        load_attempts(tmp_path / "any.jsonl")


WORDS = [*"0123456789", " 7", "10", "SCORE: ", "\n", "", "９"]
CHANCES = st.fixed_dictionaries({"token": st.sampled_from(WORDS), "logprob": st.floats(max_value=1)})
TOKENS = st.lists(
    st.tuples(CHANCES, st.lists(CHANCES, max_size=3)).map(lambda pair: {**pair[0], "top_logprobs": pair[1]}), max_size=4
)
REPLY = st.fixed_dictionaries(
    {
        "message": st.fixed_dictionaries({"content": st.sampled_from(["SCORE: 7", "7", " 7", "SCORE: 10", "", "７"])}),
        "logprobs": st.none() | st.fixed_dictionaries({"content": TOKENS}),
    }
)
PROMPT = Prompt(system="s", user="u", prefill="SCORE: ")


@settings(max_examples=300)
@given(reply=REPLY, continued=st.booleans(), min_mass=st.none() | st.just(0.5))
def test_no_reply_gives_anything_but_a_digit_or_a_status(reply: Any, continued: bool, min_mass: float | None) -> None:
    try:
        completion = Completion.model_validate_json(json.dumps({"choices": [reply]}))
    except ValidationError:
        return  # NaN, infinity, a probability above 1
    one = completion.choices[0]
    for reading in (
        read_distribution(one, PROMPT, "0123456789", continued=continued, min_mass=min_mass),
        read_text([one] * 3, PROMPT, "0123456789", continued=continued, min_share=0.5),
    ):
        check(reading)


def check(reading: Reading) -> None:
    assert (reading.choice is None) == (reading.status != "ok")
    if reading.choice is not None:
        assert 0 <= reading.choice <= 9
    if reading.probs is not None:
        assert sum(reading.probs) == pytest.approx(1.0)


RULES = st.sampled_from(["User-agent: *", "Disallow: /", "Allow:", "Crawl-delay: x", "\ufeff", "%"])


@given(text=st.text() | st.lists(RULES).map("\n".join))
def test_any_robots_txt_is_read(text: str) -> None:
    with suppress(ToolError):
        Robots("ovd-gym").check(parse_address("http://example.com/a"), lambda url: text)


@given(code=st.text() | st.text(alphabet="()[]{}'\"\\\n :=fx0#"))
def test_any_code_is_source_or_refused(code: str) -> None:
    with suppress(ToolError):
        assert isinstance(show_last_value(code, 100), str)


@given(text=st.text() | st.text(alphabet="0123456789.,/+-eE$\\{}boxed ()π"))
def test_any_answer_is_compared(text: str) -> None:
    assert compare_numbers("7", text).equal in (True, False)
    assert compare_plain("7", text) is None or compare_plain("7", text).equal in (True, False)  # type: ignore[union-attr]


OPTIONS = st.sampled_from(["seed", "task_index", "episode_id", "task"])


@given(options=st.dictionaries(OPTIONS | st.text(), JSON, max_size=3))
def test_any_reset_is_understood_or_refused(options: dict[str, Any]) -> None:
    with suppress(ConfigError):
        asked = _Beginning.of(options)
        assert asked.seed is None or asked.seed >= 0
