"""The formats of model families, under the names that vLLM gives its parsers.

Sources: the models' chat templates and vLLM's ``tool_parsers``; ``docs/action-formats.md`` lists who uses which.
"""

from __future__ import annotations

from collections.abc import Mapping

from ovd_gym.actions.base import ActionFormat
from ovd_gym.actions.json_calls import JsonBetweenMarkers, JsonLines, NamedObjects
from ovd_gym.actions.pythonic import Gemma, Pythonic
from ovd_gym.actions.reading import TOOL_NAME
from ovd_gym.actions.tagged import Tagged, Tags

__all__ = ["ALIASES", "MODEL_FORMATS"]

_NAME = rf"(?P<name>{TOOL_NAME})"
_KEY = r"(?P<key>[^<>\"\n]{1,200})"

_FUNCTION_PARAMETER = Tags(
    call=rf"(?:<tool_call>\s*)?<function={_NAME}>(?P<body>.*?)",
    end="</function>",
    argument=rf"<parameter={_KEY}>\n?(?P<value>.*?)\n?(?:</parameter>|(?=<parameter=)|\Z)",
    opening_template="<tool_call>\n<function={name}>\n",
    argument_template="<parameter={key}>\n{value}\n</parameter>\n",
    closing_template="</function>\n</tool_call>",
)
_KEY_VALUE = Tags(
    call=rf"<tool_call>\s*{_NAME}\s*(?=<arg_key>|</tool_call>)(?P<body>.*?)",
    end="</tool_call>",
    argument=rf"<arg_key>{_KEY}</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
    opening_template="<tool_call>{name}\n",
    argument_template="<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n",
    closing_template="</tool_call>",
)
_SEPARATED_KEY_VALUE = Tags(
    call=rf"(?:<tool_calls>\s*)?<tool_call>\s*{_NAME}\s*<tool_sep>(?P<body>.*?)",
    end="</tool_call>",
    argument=_KEY_VALUE.argument,
    opening_template="<tool_calls>\n<tool_call>{name}<tool_sep>\n",
    argument_template=_KEY_VALUE.argument_template,
    closing_template="</tool_call>\n</tool_calls>",
)
_INVOKE = Tags(
    call=r"(?:<｜tool_calls_begin｜>)?<｜tool_call_begin｜>(?:function<｜tool_sep｜>)?"
    rf'<steptml:invoke name="{_NAME}">(?P<body>.*?)',
    end="</steptml:invoke>",
    argument=rf'<steptml:parameter name="{_KEY}">(?P<value>.*?)</steptml:parameter>',
    opening_template='<｜tool_calls_begin｜><｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="{name}">',
    argument_template='<steptml:parameter name="{key}">{value}</steptml:parameter>',
    closing_template="</steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>",
)
_DSML = Tags(
    call=rf'(?:<｜DSML｜function_calls>\s*)?<｜DSML｜invoke name="{_NAME}">(?P<body>.*?)',
    end="</｜DSML｜invoke>",
    argument=rf'<｜DSML｜parameter name="{_KEY}" string="(?P<is_text>true|false)">(?P<value>.*?)</｜DSML｜parameter>',
    opening_template='<｜DSML｜function_calls>\n<｜DSML｜invoke name="{name}">\n',
    argument_template='<｜DSML｜parameter name="{key}" string="{is_text}">{value}</｜DSML｜parameter>\n',
    closing_template="</｜DSML｜invoke>\n</｜DSML｜function_calls>",
    wrapper="arguments",
)

_DEEPSEEK = r"(?:<｜tool▁calls▁begin｜>\s*)?<｜tool▁call▁begin｜>"
_DEEPSEEK_END = "<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
_KIMI_END = "<|tool_calls_section_end|>"

MODEL_FORMATS: tuple[ActionFormat, ...] = (
    NamedObjects(
        "apertus", r"<\|tools_prefix\|>\s*\[", "<|tools_prefix|>[{call}]<|tools_suffix|>", stop=["<|tools_suffix|>"]
    ),
    JsonBetweenMarkers(
        "deepseek_v3",
        rf"{_DEEPSEEK}function<｜tool▁sep｜>{_NAME}\s*```json",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>{{name}}\n```json\n{{arguments}}\n```{_DEEPSEEK_END}",
        stop=["<｜tool▁calls▁end｜>"],
    ),
    JsonBetweenMarkers(
        "deepseek_v31",
        rf"{_DEEPSEEK}{_NAME}<｜tool▁sep｜>",
        f"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{name}}<｜tool▁sep｜>{{arguments}}{_DEEPSEEK_END}",
        stop=["<｜tool▁calls▁end｜>"],
    ),
    Tagged("deepseek_v32", _DSML, stop=["</｜DSML｜function_calls>"]),
    Gemma("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>"),
    Gemma("gemma4", "<|tool_call>", "<tool_call|>", '<|"|>'),
    JsonBetweenMarkers(
        "gigachat3",
        r"(?:<\|message_sep\|>\s*)?(?:function call<\|role_sep\|>|<\|function_call\|>)",
        "<|function_call|>{call}",
    ),
    Tagged("glm4_moe", _KEY_VALUE, stop=["</tool_call>"]),
    JsonBetweenMarkers("granite", r"<\|tool_call\|>|<tool_call>", "<|tool_call|>[{call}]"),
    JsonBetweenMarkers("granite-20b-fc", r"<function_call>", "<function_call> {call}"),
    JsonBetweenMarkers("hunyuan_a13b", r"<tool_calls>", "<tool_calls>[{call}]</tool_calls>", stop=["</tool_calls>"]),
    Tagged("hy_v3", _SEPARATED_KEY_VALUE, stop=["</tool_calls>"]),
    JsonBetweenMarkers(
        "internlm",
        r"<\|action_start\|>\s*<\|plugin\|>",
        "<|action_start|><|plugin|>{call}<|action_end|>",
        key="parameters",
        stop=["<|action_end|>"],
    ),
    JsonBetweenMarkers(
        "kimi_k2",
        rf"(?:<\|tool_calls_section_begin\|>\s*)?<\|tool_call_begin\|>\s*(?:functions\.)?{_NAME}:\d{{1,9}}\s*"
        r"<\|tool_call_argument_begin\|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{arguments}"
        f"<|tool_call_end|>{_KIMI_END}",
        stop=[_KIMI_END],
    ),
    JsonBetweenMarkers(
        "longcat",
        r"<longcat_tool_call>",
        "<longcat_tool_call>{call}</longcat_tool_call>",
        stop=["</longcat_tool_call>"],
    ),
    JsonLines("minimax", r"<tool_calls>", "<tool_calls>\n{call}\n</tool_calls>", stop=["</tool_calls>"]),
    JsonBetweenMarkers("mistral", rf"\[TOOL_CALLS\]\s*(?:{_NAME}(?:\s*\[ARGS\])?(?=\s*\{{))?", "[TOOL_CALLS] [{call}]"),
    Pythonic("olmo3", r"<function_calls>", "<function_calls>{call}</function_calls>", stop=["</function_calls>"]),
    JsonBetweenMarkers("phi4_mini_json", r"functools(?=\s*\[)", "functools[{call}]"),
    Pythonic("pythonic", r"(?:<\|python_start\|>\s*)?\[", "[{call}]"),
    Tagged("qwen3_coder", _FUNCTION_PARAMETER, stop=["</tool_call>"]),
    Tagged("step3", _INVOKE, stop=["<｜tool_calls_end｜>"]),
)

ALIASES: Mapping[str, str] = {
    "ernie45": "hermes",
    "glm47_moe": "glm4_moe",
    "jamba": "hunyuan_a13b",
    "llama3_json": "json",
    "llama4_pythonic": "pythonic",
    "qwen3_xml": "qwen3_coder",
    "step3p5": "qwen3_coder",
    "xlam": "json",
}
"""Further names of formats, for models that write another family's."""
