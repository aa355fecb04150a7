"""Shared fixtures: a language model of a few thousand parameters with a byte tokenizer, and a small world."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the network; read when the libraries below are imported

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ovd_gym.config_files import load_config
from ovd_gym.envs.base import ToolEnv
from ovd_gym.envs.tools import tool
from ovd_gym.errors import InfrastructureError
from ovd_gym.llm.tiny import save_model, tiny_llama
from ovd_gym.recorder import Recorder
from ovd_gym.records import Step, Task, ToolCall, Trajectory

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Adder(ToolEnv):
    """Adds; `break` plays an outage."""

    @tool
    def add(self, text: str) -> str:
        """Add numbers separated by spaces."""
        if text == "break":
            raise InfrastructureError("the adder is on fire")
        numbers = [int(word) for word in text.split() if word.lstrip("-").isascii() and word.lstrip("-").isdigit()]
        return str(sum(numbers))

    def grade(self, task: Task, answer: str) -> float:
        return float(answer == task.answers[0])


def adding_tasks(count: int) -> list[Task]:
    return [Task(id=str(i), question=f"{i} + {i + 1}", answers=(str(2 * i + 1),)) for i in range(count)]


@pytest.fixture(scope="session")
def interpreter_of() -> Callable[..., Path]:
    """The Python of an environment for packages that do not go together with ours; it is made once, for all runs."""

    def made(name: str, *told: Sequence[str]) -> Path:
        """``told``: what pip is told to make it; where that fails, the test is skipped with pip's last line."""
        cache = Path(os.environ.get("OVD_GYM_CACHE") or Path.home() / ".cache" / "ovd_gym")
        folder = cache / "environments" / name
        python, done = folder / "bin" / "python", folder / "complete"
        if not done.is_file():
            shutil.rmtree(folder, ignore_errors=True)
            pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
            for command in ([sys.executable, "-m", "venv", str(folder)], *([*pip, *words] for words in told)):
                ran = subprocess.run(command, capture_output=True, text=True, timeout=1200)
                if ran.returncode:
                    last = (ran.stderr.strip() or ran.stdout.strip()).splitlines()[-1:]
                    pytest.skip(f"no environment {name}: {' '.join(command[:5])} failed: {last}")
            done.touch()
        return python

    return made


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(name, special=True) for name in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )


TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A transformers folder with a random two-layer Llama."""
    folder = tmp_path_factory.mktemp("tiny")
    save_model(tiny_llama(tokenizer, **TINY), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def roomy_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The same with room for a teacher's whole prompt, byte by byte."""
    folder = tmp_path_factory.mktemp("roomy")
    save_model(tiny_llama(tokenizer, max_position_embeddings=8192, **TINY), tokenizer, folder)
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> LlamaForCausalLM:
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    assert isinstance(model, LlamaForCausalLM)
    model.eval()
    return model


@pytest.fixture
def adders() -> Callable[[int], list[ToolEnv]]:
    """A maker of Adder worlds that speak the line format."""
    return lambda count: [Adder(adding_tasks(10), action_format="line", max_turns=4) for _ in range(count)]


@pytest.fixture(scope="session")
def played(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Trajectory]:
    """A maker of episodes from text, token by token; ``steps`` are (what was said, what came back)."""

    def play(
        name: str = "a",
        steps: Sequence[tuple[str, str]] = (("add: 6 7", "13"), ("answer: 13", "13")),
        reward: float | None = 1.0,
        question: str = "What is 6 + 7?",
        **fields: Any,
    ) -> Trajectory:
        ids = tokenizer(question).input_ids
        made = []
        for said, heard in steps:
            start, spoken = len(ids), tokenizer(said).input_ids
            ids = [*ids, *spoken, *tokenizer(heard).input_ids]
            call = ToolCall(name=said.partition(":")[0])
            made.append(Step(text=said, start=start, end=start + len(spoken), call=call, observation=heard))
        sampled = {i for step in made for i in range(step.start, step.end)}
        rest = {"group_id": "g", "status": "failed" if reward is None else "terminated", "answer": "13"} | fields
        return Trajectory(
            id=name,
            task=Task(id="t", question=question, answers=("13", "thirteen")),
            steps=tuple(made),
            token_ids=tuple(ids),
            logprobs=tuple(-0.25 if i in sampled else 0.0 for i in range(len(ids))),
            reward=reward,
            **rest,
        )

    return play


@pytest.fixture(scope="session")
def run_folder(tokenizer: PreTrainedTokenizerFast) -> Callable[..., Recorder]:
    """A maker of run folders without training: ``sections`` are the arguments of :meth:`Recorder.record`."""

    def write(path: Path, *sections: tuple[Any, ...], **config: Any) -> Recorder:
        recorder = Recorder.create(path, load_config({"student": {"model": "tiny"}, **config}), tokenizer)
        for section in sections:
            recorder.record(*section)
        recorder.close()
        return recorder

    return write
