"""Choices read off a local model's logits: what counts as a choice, what is refused, and how prompts are written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.errors import ConfigError
from ovd_gym.llm.choice import Prompt, Reading, make_choice_model
from ovd_gym.llm.choice_local import LocalChoices

DIGITS = tuple("0123456789")
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
)


def prompt(user: str = "Grade it.", prefill: str = "SCORE: ") -> Prompt:
    return Prompt(system="You grade.", user=user, prefill=prefill)


def bytewise(*merges: tuple[str, str], template: str | None = None) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*alphabet, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="!", chat_template=template)


class Oracle(torch.nn.Module):
    """A model whose next token has the probabilities it was given; remembers its prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, probabilities: dict[str, float]) -> None:
        super().__init__()
        self.config = SimpleNamespace(max_position_embeddings=4000)
        self.device = torch.device("cpu")
        self.prompts: list[str] = []
        self._tokenizer = tokenizer
        rest = (1 - sum(probabilities.values())) / (len(tokenizer) - len(probabilities))
        self._logits = torch.full((len(tokenizer),), rest).log()
        for token, probability in probabilities.items():
            self._logits[tokenizer.convert_tokens_to_ids(token)] = torch.tensor(probability).log()

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        tokens = self._tokenizer.convert_ids_to_tokens(input_ids[0].tolist())
        self.prompts.append("".join(tokens).replace("Ġ", " ").replace("Ċ", "\n"))
        return SimpleNamespace(logits=self._logits.expand(1, input_ids.shape[1], -1))


def oracle(
    tokenizer: PreTrainedTokenizerFast, probabilities: dict[str, float], **options: Any
) -> tuple[LocalChoices, Oracle]:
    network: Any = Oracle(tokenizer, probabilities)
    return LocalChoices((network, tokenizer), **options), network


def read(model: LocalChoices, *choices: str, prefill: str = "SCORE: ") -> Reading:
    (reading,) = model.read([prompt(prefill=prefill)], choices or DIGITS)
    return reading


# Choices ----------------------------------------------------------------------------------------------------


def test_probabilities_are_renormalised_over_the_choices(tokenizer: PreTrainedTokenizerFast) -> None:
    model, network = oracle(tokenizer, {"7": 0.5, "2": 0.25, "x": 0.2})
    reading = read(model)
    assert reading.choice == 7
    assert reading.mass == pytest.approx(0.75, abs=0.01)
    assert reading.probs is not None
    assert sum(reading.probs) == pytest.approx(1.0)
    assert reading.probs[2] == pytest.approx(0.25 / 0.75, abs=0.01)
    assert network.prompts[-1].endswith("<|im_start|>assistant\nSCORE: ")


def test_with_and_without_a_blank_it_is_one_choice() -> None:
    tokenizer = bytewise(*(("Ġ", str(d)) for d in range(10)))
    model, network = oracle(tokenizer, {"7": 0.4, "Ġ7": 0.4, "Ġ1": 0.2})
    reading = read(model)
    assert reading.probs is not None
    assert reading.probs[7] == pytest.approx(0.8, abs=1e-3)
    assert reading.mass == pytest.approx(1.0, abs=1e-3)
    assert network.prompts == ["You grade.\n\nGrade it.\n\nSCORE:"]  # the blank belongs to the next token


def test_words_are_read_by_their_first_token() -> None:
    tokenizer = bytewise(("Ġ", "y"), ("Ġ", "n"), ("e", "s"))
    reading = read(oracle(tokenizer, {"Ġy": 0.3, "y": 0.3, "Ġn": 0.2, "es": 0.2})[0], "yes", "no", prefill="VERDICT: ")
    assert reading.choice == 0
    assert reading.probs == pytest.approx((0.75, 0.25), abs=0.01)


def test_too_little_mass_on_the_choices_is_no_choice(tokenizer: PreTrainedTokenizerFast) -> None:
    reading = read(oracle(tokenizer, {"7": 0.4, "x": 0.6})[0])
    assert (reading.choice, reading.status) == (None, "low_mass")
    assert reading.mass == pytest.approx(0.4, abs=1e-3)
    assert "less than min_mass 0.5" in reading.text
    assert read(oracle(tokenizer, {"7": 0.4, "x": 0.6}, min_mass=0.3)[0]).choice == 7


def test_a_broken_model_makes_no_choice(tokenizer: PreTrainedTokenizerFast) -> None:
    reading = read(oracle(tokenizer, {"7": float("nan")})[0])
    assert (reading.choice, reading.status) == (None, "error")


def test_prompts_may_end_differently(tokenizer: PreTrainedTokenizerFast) -> None:
    model, network = oracle(tokenizer, {"7": 0.9})
    readings = model.read([prompt(prefill="SCORE: "), prompt(prefill="D="), prompt()], DIGITS)
    assert [reading.choice for reading in readings] == [7, 7, 7]
    assert sorted(text.rpartition("\n")[2] for text in network.prompts) == ["D=", "SCORE: "]
    assert model.read([], DIGITS) == []


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (("same", "sorry"), "begins two of .* with the same token"),
        (("A", "A"), "begins two of"),
        (("é", "è"), "does not begin 'é'"),
        (("", "no"), "two or more words"),
        (("yes",), "two or more words"),
    ],
)
def test_choices_that_cannot_be_told_apart(
    tokenizer: PreTrainedTokenizerFast, choices: tuple[str, ...], message: str
) -> None:
    model, _ = oracle(tokenizer, {})
    with pytest.raises(ConfigError, match=message):
        model.check("VERDICT: ", choices)
    with pytest.raises(ConfigError, match=message):
        model.read([prompt()], choices)


def test_choices_without_tokens_of_their_own() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "SCORE": 1}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<unk>")
    with pytest.raises(ConfigError, match="does not begin '0' after 'SCORE: ' with a token of its own"):
        oracle(tokenizer, {})[0].check("SCORE: ", DIGITS)


# Prompts ----------------------------------------------------------------------------------------------------


def test_a_template_without_a_system_turn_gets_one_user_turn() -> None:
    model, network = oracle(bytewise(template=NO_SYSTEM), {"7": 0.9})
    assert read(model).choice == 7
    assert network.prompts == ["<|im_start|>You grade.\n\nGrade it.<|im_end|>SCORE: "]


def test_a_template_that_thinks_first_is_told_not_to() -> None:
    template = "{{ messages[-1]['content'] }}{% if enable_thinking is not false %}<think>{% endif %}\n"
    model, network = oracle(bytewise(template=template), {"7": 0.9})
    assert read(model).choice == 7
    assert network.prompts == ["Grade it.SCORE: "]


def test_special_tokens_are_reserved(tokenizer: PreTrainedTokenizerFast) -> None:
    model, _ = oracle(tokenizer, {})
    assert set(model.reserved) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


def test_a_prompt_that_is_too_long_is_over_budget(tokenizer: PreTrainedTokenizerFast) -> None:
    model, network = oracle(tokenizer, {"7": 0.9})
    long = prompt("ab" * 2500)
    assert (model.fits(prompt()), model.fits(long)) == (True, False)
    readings = model.read([prompt(), long, prompt()], DIGITS)
    assert [reading.status for reading in readings] == ["ok", "over_budget", "ok"]
    assert "more than 4000 tokens" in readings[1].text
    assert len(network.prompts) == 1
    assert oracle(tokenizer, {}, max_tokens=9000)[0].fits(long)


# Models -----------------------------------------------------------------------------------------------------


def history(steps: int) -> list[Prompt]:
    """What a teacher asks about each step of an attempt: every prompt begins like the one before it."""
    read = ["Question: 1 + 2?" + "".join(f"\nstep {j}: add {j}" for j in range(k)) for k in range(1, steps + 1)]
    return [prompt(f"{text}\nGrade step {k}.") for k, text in enumerate(read)]


def test_prompts_share_a_pass_and_give_what_they_give_alone(tiny_folder: Path) -> None:
    spec = {"model": str(tiny_folder), "min_mass": 0.0, "device": "cpu"}
    together, alone = (make_choice_model(spec) for _ in range(2))
    assert isinstance(together, LocalChoices)
    assert together.separate is None
    prompts = history(8)
    packed = together.read(prompts, DIGITS)
    for reading, each in zip(packed, prompts, strict=True):
        (single,) = alone.read([each], DIGITS)
        assert reading.probs == pytest.approx(single.probs, abs=1e-4)
        assert reading.mass == pytest.approx(single.mass, abs=1e-4)
    assert together.usage().requests == alone.usage().requests == 8
    assert together.usage().prompt_tokens < alone.usage().prompt_tokens / 2
    assert len({reading.mass for reading in packed}) == 8


def test_the_name_says_which_weights(tiny: LlamaForCausalLM, tiny_folder: Path, tokenizer: Any) -> None:
    name = LocalChoices(str(tiny_folder), device="cpu").name
    assert name.startswith("local(tiny")
    assert str(tiny_folder.parent) not in name
    pair = LocalChoices((tiny, tokenizer)).name
    assert "LlamaForCausalLM@" in pair
    with torch.no_grad():
        tiny.model.norm.weight += 0.1
    assert LocalChoices((tiny, tokenizer)).name != pair
    assert LocalChoices((tiny, tokenizer), min_mass=0.1).name != LocalChoices((tiny, tokenizer)).name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_mass": 2}, r"min_mass must be in \[0, 1\], got 2"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
        ({"min_mas": 0.1}, "did you mean 'min_mass'"),
        ({"dtype": "float8"}, "unknown dtype"),
    ],
)
def test_options_that_cannot_work(tiny_folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_choice_model({"model": str(tiny_folder), "device": "cpu", **options})
