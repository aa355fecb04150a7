"""All action formats: conformance with recorded model outputs, what they write they read, and time on hostile text."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_gym.actions import ALIASES, FORMATS, ActionFormat, get_format
from ovd_gym.errors import InvalidCall
from ovd_gym.records import ToolCall, ToolSpec

ROOT = Path(__file__).parents[1]
DATA = ROOT / "../shared/data/conformance"
DATASET_NAMES = {
    "deepseekv31": "deepseek_v31",
    "deepseekv32": "deepseek_v32",
    "ernie45_moe": "ernie45",
    "qwen3coder": "qwen3_coder",
    "search_r1_answer": "search-r1",
    "search_r1_tags": "search-r1",
}
"""The data set's names where they are not ours."""
TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "null": type(None), "array": list}


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


CALLS, REACT = rows("tool_calls.jsonl.gz"), rows("tool_calls_react_real.jsonl.gz")
needs_data = pytest.mark.skipif(not CALLS, reason="the conformance data is not beside the project")


def format_of(row: Mapping[str, Any]) -> ActionFormat:
    return get_format(DATASET_NAMES.get(row["format"], row["format"]))


def is_a(value: Any, kind: str) -> bool:
    return isinstance(value, TYPES.get(kind, dict)) and (kind == "boolean" or not isinstance(value, bool))


@needs_data
@pytest.mark.parametrize("row", CALLS, ids=[f"{row['format']}-{row['id']}" for row in CALLS])
def test_recorded_calls(row: dict[str, Any]) -> None:
    expect = row["expect"]
    calls = format_of(row).extract(row["input"])  # that it returns at all is what "no_raise" asks
    names, arguments = [call.name for call in calls], [call.arguments for call in calls]
    assert len(calls) == expect.get("n_calls", len(calls))
    assert len(calls) >= expect.get("min_calls", 0)
    assert names == expect.get("names", names)
    for got, wanted in zip(arguments, expect.get("args", []), strict="args" in expect):
        assert wanted is None or got == wanted
    for got, wanted in zip(arguments, expect.get("args_subset", []), strict="args_subset" in expect):
        assert {key: got.get(key) for key in wanted} == wanted
    for got, keys in zip(arguments, expect.get("arg_keys", []), strict="arg_keys" in expect):
        assert set(keys) <= set(got)
    for got, kinds in zip(arguments, expect.get("arg_types", []), strict="arg_types" in expect):
        assert all(is_a(got[key], kind) for key, kind in kinds.items())
    assert not expect.get("args_nonempty") or all(arguments)
    if "content" in expect:  # None, "" and blanks: the recorded parsers do not agree on them among themselves
        assert format_of(row).content(row["input"]).strip() == (expect["content"] or "").strip()
    if "first_name" in expect:
        assert (names[0], arguments[0]["query"]) == (expect["first_name"], expect["first_query"])
    if "answer" in expect:
        assert [a["text"] for a in arguments] == ([] if expect["answer"] is None else [expect["answer"]])
    assert expect.keys() <= {
        "n_calls", "min_calls", "names", "args", "args_subset", "arg_keys", "arg_types", "args_nonempty", "content",
        "first_name", "first_query", "answer", "no_raise",
    }  # fmt: skip


@needs_data
def test_recorded_react_turns() -> None:
    for row in REACT:
        calls = format_of(row).extract(row["input"])
        assert len(calls) == row["expect"]["n_calls"], row["id"]
        assert [call.name for call in calls] == row["expect"].get("names", []), row["id"]
        assert [call.arguments for call in calls] == row["expect"].get("args", []), row["id"]


@needs_data
def test_every_format_of_the_data_is_supported() -> None:
    assert {format_of(row).name for row in [*CALLS, *REACT]} <= FORMATS.keys()
    assert len({row["format"] for row in CALLS}) == 33


DOCS = ROOT / "docs/action-formats.md"


@pytest.mark.skipif(not DOCS.is_file(), reason="the documentation belongs to a checkout")
def test_the_documentation_lists_every_format_and_alias() -> None:
    rows = [line.split("|") for line in DOCS.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    named = {row[1].strip(" `") for row in rows}
    assert set(FORMATS) <= named
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{alias}`" in text for alias in ALIASES)


# What they write they read ---------------------------------------------------------------------------------


def spec(name: str, final: bool = False, required: tuple[str, ...] = (), **types: str | None) -> ToolSpec:
    properties: dict[str, Any] = {key: {"type": kind} if kind else {} for key, kind in types.items()}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "required": list(required)}
    return ToolSpec(name=name, description=f"The {name} tool.", parameters=schema, final=final)


TOOLS = (
    spec("search", required=("query",), query="string", top_k="integer"),
    spec("open", required=("url",), url=None, page="integer"),
    spec("find", required=("text",), text="string"),
    spec("answer", final=True, required=("text",), text="string"),
)
MARKERS = [
    *(piece for f in FORMATS.values() for piece in (*f.stop, f.example)),
    "<tool_call>", "</tool_call>", "<parameter=", "</parameter>", "<arg_value>", "\nAction: find[x]", "[TOOL_CALLS]",
    '<|"|>', "<escape>", "<think>", "</think>", "<answer>", "\\", '"', "'", "]", "}", "{", "[", "\n", " ", "42", "null",
    '{"name": "find", "arguments": {"text": "x"}}', "Observation:", "Action Input:", '"quoted"', "{'a': 1}",
]  # fmt: skip
TEXT = st.text(max_size=30) | st.lists(st.sampled_from(MARKERS), max_size=4).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
SENSIBLE = st.one_of(
    st.builds(lambda q: ToolCall(name="search", arguments={"query": q}), TEXT),
    st.builds(lambda q, k: ToolCall(name="search", arguments={"query": q, "top_k": k}), TEXT, st.integers()),
    st.builds(lambda u: ToolCall(name="open", arguments={"url": u}), TEXT),
    st.builds(lambda u, p: ToolCall(name="open", arguments={"url": u, "page": p}), JSON, JSON),
    st.builds(lambda t: ToolCall(name="answer", arguments={"text": t}), TEXT),
)
ANY = st.builds(
    lambda name, arguments: ToolCall(name=name, arguments=arguments), TEXT, st.dictionaries(TEXT, JSON, max_size=3)
)
FAITHFUL = [name for name in FORMATS if name not in ("line", "boxed")]
"""The other two are tested in test_actions.py: they write less."""


def reads_what_it_writes(format_: ActionFormat, call: ToolCall, tools: tuple[ToolSpec, ...]) -> bool:
    """False if the format refuses to write ``call``."""
    try:
        text = format_.render(call)
    except ValueError:
        return False
    assert format_.parse(text, tools) == call
    assert format_.parse("I think so.\n" + text, tools) == call
    return True


@pytest.mark.parametrize("name", FAITHFUL)
@settings(max_examples=40)
@given(call=SENSIBLE)
def test_a_format_reads_the_calls_it_writes(name: str, call: ToolCall) -> None:
    reads_what_it_writes(FORMATS[name], call, TOOLS)


@pytest.mark.parametrize("name", [name for name in FAITHFUL if name not in ("react", "search-r1")])
@settings(max_examples=40)
@given(call=ANY)
def test_a_format_reads_calls_of_unknown_tools(name: str, call: ToolCall) -> None:
    reads_what_it_writes(FORMATS[name], call, ())


@pytest.mark.parametrize("name", [*FAITHFUL, "line"])
@pytest.mark.parametrize(
    "call",
    [
        ToolCall(name="search", arguments={"query": "Who wrote “Ulysses”?", "top_k": 5}),
        ToolCall(name="search", arguments={"query": '"exact phrase" 2 < 3 & 1984'}),
        ToolCall(name="search", arguments={"query": "1984"}),
        ToolCall(name="open", arguments={"url": "https://example.org/a?b=c&d=[e]#f", "page": 2}),
        ToolCall(name="find", arguments={"text": "null"}),
        ToolCall(name="answer", arguments={"text": "Ōe Kenzaburō"}),
    ],
    ids=lambda call: call.name,
)
def test_every_format_writes_ordinary_calls(name: str, call: ToolCall) -> None:
    format_ = FORMATS[name]
    assert format_.parse(format_.render(call), TOOLS) == call
    if format_.stop:  # where sampling stops, the call must be complete
        text = format_.render(call)
        ends = [text.index(stop) + len(stop) for stop in format_.stop if stop in text]
        assert not ends or format_.parse(text[: min(ends)], TOOLS) == call
    assert all(tool.name in format_.instructions(TOOLS) for tool in TOOLS)


# Hostile text ----------------------------------------------------------------------------------------------

PIECES = [
    *MARKERS, *(f.render(ToolCall(name="find", arguments={"text": "x"})) for f in FORMATS.values()),
    "<function=find>", "<tool_call>find", "<arg_key>", "functools[", "[find(text=", "find(", "Action: find[",
    "Action: find", "<｜tool▁call▁begin｜>find<｜tool▁sep｜>", "[TOOL_CALLS]find{", "<|tool_call>call:find{text:",
    '{"find": ', "```json\n", '{"', '{"a":', "['", '["', "(", ",", "\\u", "\\'", "-", "1e999", "<search>", "\ud800",
    '<｜DSML｜invoke name="find">', '{"name":', '{"name": "find", "arguments": ', "<|action_start|><|plugin|>",
    "<tool_calls>", "<tool_sep>", "\x00",
]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=60)
@given(text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=80))
def test_no_text_crashes_a_parser(name: str, text: str) -> None:
    call = None
    with contextlib.suppress(InvalidCall):
        call = FORMATS[name].parse(text, TOOLS)
    assert call is None or ToolCall.model_validate_json(call.model_dump_json()) == call


HEADS = [
    "[TOOL_CALLS]find",
    "<tool_call>find",
    "Action: find",
    "Action:",
    "```json",
    "[find",
    "[",
    "<think>",
    '{"name": "',
]


@pytest.mark.parametrize("name", FORMATS)
def test_no_64_kb_text_makes_a_parser_hang(name: str) -> None:
    """A piece over and over, alone and with a sign behind it, or a long run behind a piece."""
    format_ = FORMATS[name]
    signed = [piece + sign for piece in PIECES[-12:] for sign in (" ", "\n", '"', "\\")]
    repeated = [piece * math.ceil(65_536 / len(piece)) for piece in [*PIECES, *signed]]
    runs = [head + run * 60_000 for head in [*HEADS, format_.example.partition("NAME")[0]] for run in ' \na"']
    end = format_.stop[-1] if format_.stop else "]"
    for text in [*repeated, *runs]:
        begin = time.process_time()
        format_.extract(f"{end}{text}{end}", TOOLS)
        assert time.process_time() - begin < 10.0, (name, text[:20])  # linear: 1 s at most; quadratic: minutes
