"""Action formats: what they write they read, and a hostile text is refused, never an exception of another kind."""

from __future__ import annotations

import contextlib
import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovd_gym.actions import FORMATS, Boxed, Hermes, Line, get_format, last_boxed
from ovd_gym.errors import ConfigError, InvalidCall
from ovd_gym.records import ToolCall, ToolSpec


def spec(name: str, *parameters: str, final: bool = False) -> ToolSpec:
    schema: dict[str, Any] = {"type": "object", "properties": {parameter: {} for parameter in parameters}}
    return ToolSpec(name=name, description=f"The {name} tool.\nMore.", parameters=schema, final=final)


TOOLS = (spec("python", "code"), spec("find", "query", "page"), spec("now"), spec("answer", "text", final=True))
TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OPENERS = ["<tool_call>", "</tool_call>", '{"name": ', '"python"', "}", "{", "[", "python:", "find: ", "\\boxed{"]
FRAGMENTS = [*OPENERS, "\n", "1e999"]
HOSTILE = TEXT | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


@given(name=TEXT, arguments=st.dictionaries(TEXT, JSON, max_size=4))
def test_hermes_reads_what_it_writes(name: str, arguments: dict[str, Any]) -> None:
    call = ToolCall(name=name, arguments=arguments)
    assert Hermes().parse("I think so.\n" + Hermes().render(call), TOOLS) == call


@given(value=st.one_of(TEXT, JSON))
def test_line_reads_what_it_writes_with_one_parameter(value: Any) -> None:
    call = ToolCall(name="python", arguments={"code": value})
    if isinstance(value, str) and "\n" in value:
        with pytest.raises(ValueError, match="line break"):
            Line().render(call)
    else:
        assert Line().parse(Line().render(call), TOOLS) == call


@given(query=TEXT, page=JSON)
def test_line_reads_what_it_writes_with_several_parameters(query: str, page: Any) -> None:
    call = ToolCall(name="find", arguments={"query": query, "page": page})
    assert Line().parse(Line().render(call), TOOLS) == call


def test_line_reads_what_it_writes_without_parameters() -> None:
    call = ToolCall(name="now")
    assert Line().render(call) == "now: {}\n"
    assert Line().parse("now:", TOOLS) == call


@given(answer=st.text(alphabet="{}\\boxed12 ", max_size=20))
def test_boxed_reads_what_it_writes_or_refuses_to_write_it(answer: str) -> None:
    call = ToolCall(name="answer", arguments={"text": answer})
    try:
        text = Boxed().render(call)
    except ValueError:
        assert answer != answer.strip() or "{" in answer or "}" in answer
    else:
        assert Boxed().parse(text, TOOLS) == call


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=200)
@given(text=HOSTILE)
def test_a_hostile_text_is_an_invalid_call_or_a_call_that_can_be_recorded(name: str, text: str) -> None:
    call = None
    with contextlib.suppress(InvalidCall):
        call = FORMATS[name].parse(text, TOOLS)
    assert call is None or ToolCall.model_validate_json(call.model_dump_json()) == call


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('{"name": "a", "arguments": {"x": 1e999}}', "a number that is too large"),
        ('{"name": "a", "arguments": {"x": NaN}}', "NaN is not JSON"),
        (r'{"name": "a", "arguments": {"x": "\ud800"}}', "lone surrogate"),
        (r'{"name": "\udfff", "arguments": {}}', "lone surrogate"),
        ('{"name": "a", "arguments": {"x": ' + "[" * 90 + "]" * 90 + "}}", "more than 64 nested brackets"),
        ('{"name": "a", "arguments": {"x": ' + "[" * 9999 + "]" * 9999 + "}}", "not valid JSON"),
        ('{"name": "a", "arguments": [1]}', '"arguments" must be a JSON object, got list'),
        ('{"name": 3}', "must be a JSON object with"),
        ("[]", "must be a JSON object with"),
        ("", "not valid JSON"),
    ],
)
def test_hermes_says_what_is_wrong(body: str, problem: str) -> None:
    with pytest.raises(InvalidCall, match=problem):
        Hermes().parse(f"<tool_call>{body}</tool_call>", TOOLS)


@pytest.mark.parametrize("text", ["", "no call", "<tool_call>{}", "<tool_call>1</tool_call><tool_call>2</tool_call>"])
def test_hermes_wants_exactly_one_call(text: str) -> None:
    with pytest.raises(InvalidCall, match="expected exactly one"):
        Hermes().parse(text, TOOLS)


@pytest.mark.parametrize("text", ["", "python", "python: 1\nanswer: 2", "find: 3", "find: [1]", "find: {"])
def test_line_says_what_is_wrong(text: str) -> None:
    with pytest.raises(InvalidCall, match=r"expected one line|takes a JSON object"):
        Line().parse(text, TOOLS)


def test_line_leaves_an_unknown_tool_to_the_environment() -> None:
    assert Line().parse("fly: up", TOOLS) == ToolCall(name="fly")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1}", "1"),
        (r"\boxed{1} no, \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{a \boxed{b} c}", "b"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"} \boxed{ 3 } {", "3"),
        (r"{ \boxed{4}", "4"),
        (r"\boxed{}", ""),
        (r"\boxed{", None),
        (r"\boxed 5", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, answer: str | None) -> None:
    assert last_boxed(text) == answer


def last_boxed_by_definition(text: str) -> str | None:
    """From the last box backwards, the first whose braces balance."""
    end = len(text)
    while (start := text.rfind(r"\boxed{", 0, end)) >= 0:
        depth = 0
        for i in range(start + 6, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[start + 7 : i].strip()
        end = start
    return None


@given(text=st.lists(st.sampled_from(["\\boxed{", "{", "}", "1", " "]), max_size=14).map("".join))
def test_last_boxed_is_what_its_definition_says(text: str) -> None:
    assert last_boxed(text) == last_boxed_by_definition(text)


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 9000, "<tool_call>" * 6000, "</tool_call>" + "<tool_call>" * 6000, "{" * 65_000]
)
@pytest.mark.parametrize("name", FORMATS)
def test_degenerate_repetition_is_read_in_no_time(name: str, text: str) -> None:
    begin = time.monotonic()
    with pytest.raises(InvalidCall):
        FORMATS[name].parse(text, TOOLS)
    assert time.monotonic() - begin < 5  # quadratic: minutes


def test_boxed_without_an_answer_or_a_final_tool() -> None:
    with pytest.raises(InvalidCall, match="no final answer"):
        Boxed().parse("42", TOOLS)
    with pytest.raises(ConfigError, match="final tool with one parameter"):
        Boxed().parse(r"\boxed{42}", TOOLS[:2])


@given(text=st.text(alphabet="a \t\n", max_size=30))
def test_steps_cover_a_turn(text: str) -> None:
    for format_ in FORMATS.values():
        ends = format_.step_ends(text)
        assert ends == sorted(set(ends))
        assert ends[-1] == len(text)
    starts = [0, *Boxed().step_ends(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(starts)]
    assert len(pieces) == 1 or all(piece.strip() for piece in pieces[:-1])


def test_a_paragraph_is_a_step() -> None:
    text = "1 + 1 = 2.\n\nSo 2.\n \n\\boxed{2}"
    starts = [0, *Boxed().step_ends(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(starts)]
    assert pieces == ["1 + 1 = 2.\n\n", "So 2.\n \n", "\\boxed{2}"]


@pytest.mark.parametrize("name", ["hermes", "line"])
def test_instructions_name_every_tool(name: str) -> None:
    text = FORMATS[name].instructions(TOOLS)
    assert all(tool.name in text for tool in TOOLS)


def test_get_format() -> None:
    assert get_format("line") is FORMATS["line"]
    assert get_format(own := Line()) is own
    with pytest.raises(ConfigError, match="did you mean 'hermes'"):
        get_format("herms")
