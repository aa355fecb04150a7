"""The student on a vLLM server, played by transformers over real sockets: the same turns, whatever goes wrong."""

from __future__ import annotations

import io
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ovd_gym.config_files import load_config
from ovd_gym.errors import ConfigError, TrainingStopped
from ovd_gym.llm import reliability
from ovd_gym.llm.base import GREEDY, Completion, Decoding, LanguageModel, Sampling
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.endpoint import Endpoint
from ovd_gym.llm.engine import Written
from ovd_gym.llm.served_lm import ServedLM
from ovd_gym.llm.transformers_lm import TransformersLM
from ovd_gym.llm.vllm_server import VllmServer
from ovd_gym.llm.weights import WeightSender
from ovd_gym.progress import Display
from ovd_gym.recorder import Recorder
from ovd_gym.records import Trajectory, load_jsonl
from ovd_gym.training import train

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own

CONTEXT = 120


class FakeVllm(ThreadingHTTPServer):
    """What vLLM 0.32 says on the routes that are used here. A restart forgets all but the model it was started with."""

    daemon_threads = True
    request_queue_size = 64
    allow_reuse_address = True

    def __init__(self, model: Path, tokenizer: PreTrainedTokenizerFast, port: int = 0, dev: bool = True) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.model, self.tokenizer, self.dev = model, tokenizer, dev
        self.scale_out = True
        self.version = "default"
        self.adapters: dict[str, Any] = {}
        self.faults: list[str] = []
        self.asked: list[tuple[str, Any]] = []
        self.connections: list[socket.socket] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.network: Any = AutoModelForCausalLM.from_pretrained(model)
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.thread.join()
        self.server_close()
        for connection in self.connections:  # else their threads would go on answering
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.append(connection)
        return connection, address

    def restarted(self) -> FakeVllm:
        """As it was at the beginning, on the same port."""
        self.stop()
        return FakeVllm(self.model, self.tokenizer, self.server_port, self.dev)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client may give up a turn."""
        assert isinstance(sys.exc_info()[1], ConnectionError)

    def sent(self, path: str) -> list[Any]:
        return [body for asked, body in self.asked if asked.partition("?")[0] == path]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        path = path.partition("?")[0]
        if path == "/v1/models":
            listed = [{"id": "tiny", "parent": None, "max_model_len": CONTEXT}]
            return 200, {"data": [*listed, *({"id": name, "parent": "tiny"} for name in self.adapters)]}
        if path == "/inference/v1/generate":
            return self.generate(body)
        if path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            return self.adapt(method, path, body)
        if not self.dev:
            return 404, {"detail": "Not Found"}
        if path == "/weight_info":
            return 200, {"weight_version": self.version}
        if path == "/collective_rpc":
            assert body["method"] == "reload_weights"
            self.network = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"])
        if path == "/update_weight_version":
            self.version = body["new_version"]
        return 200, {"success": True}

    def adapt(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method != "POST":
            return 405, {}
        name = body["lora_name"]
        if path == "/v1/unload_lora_adapter":
            return (200, "ok") if self.adapters.pop(name, None) else (404, {"error": "no such adapter"})
        base = AutoModelForCausalLM.from_pretrained(self.model)
        self.adapters[name] = PeftModel.from_pretrained(base, body["lora_path"])
        return 200, "ok"

    def generate(self, body: Any) -> tuple[int, Any]:
        if not self.scale_out:
            return 403, {"error": {"message": "Scale-out endpoints are disabled."}}
        if not body:
            return 400, {"error": {"message": "token_ids: field required"}}
        if body["model"] != "tiny" and body["model"] not in self.adapters:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        asked, ids = body["sampling_params"], body["token_ids"]
        decoder = Decoder(self.adapters.get(body["model"], self.network))
        decoding = Decoding(asked.get("temperature", 1.0), asked.get("top_p", 1.0))
        sampling = Sampling(
            asked["max_tokens"], decoding, tuple(asked.get("stop", ())), tuple(asked.get("stop_token_ids", ()))
        )
        (said,) = drive(TransformersLM(decoder, self.tokenizer, CONTEXT), sampling, [ids], [asked.get("seed", 0)])
        choice = {
            "index": 0,
            "token_ids": said.ids,
            "logprobs": {
                "content": [{"token_id": i, "logprob": p} for i, p in zip(said.ids, said.logprobs, strict=True)]
            },
            "weight_versions": [{"version": self.version, "start": 0, "end": len(said.ids)}],
        }
        places: list[Any] = [None]
        if "prompt_logprobs" in asked:
            places += [{str(i): {"logprob": float(p)}} for i, p in zip(ids[1:], decoder.logprobs(ids), strict=True)]
        return 200, {"choices": [choice], "prompt_logprobs": places}


class _Handler(BaseHTTPRequestHandler):
    server: FakeVllm
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_OPTIONS(self) -> None:
        self._answer()

    def _answer(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.loads(raw) if raw else None
        with self.server.lock:
            self.server.asked.append((self.path, body))
            fault = self.server.faults.pop(0) if self.server.faults and body and "generate" in self.path else ""
        self.close_connection = bool(fault)
        if fault == "hang":
            self.server.released.wait(30)
        if fault in ("hang", "reset"):
            return
        with self.server.lock:
            status, told = self.server.answer(self.command, self.path, body)
        if fault.isdecimal():
            status, told = int(fault), {"error": {"message": "on fire"}}
        content = fault.encode() if fault.startswith("{") else json.dumps(told).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def drive(
    lm: LanguageModel, sampling: Sampling, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
) -> list[Completion]:
    """One turn each."""
    session = lm.open(seeds, sampling)
    said = finish(session, dict(enumerate(prompts)))
    session.close()
    return [said[row] for row in range(len(prompts))]


def finish(session: Any, feeds: Mapping[int, Sequence[int]]) -> dict[int, Completion]:
    session.submit(feeds)
    said: dict[int, Completion] = {}
    deadline = time.monotonic() + 60
    while len(said) < len(feeds) and time.monotonic() < deadline:
        said |= session.advance()
    return said


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reliability, "BACKOFF_S", 0.02)


@pytest.fixture
def server(tiny_folder: Path, tokenizer: PreTrainedTokenizerFast) -> Iterator[list[FakeVllm]]:
    """One server; a test that restarts it puts the new one in its place."""
    made = [FakeVllm(tiny_folder, tokenizer)]
    yield made
    made[0].stop()


def served(
    server: FakeVllm, tokenizer: PreTrainedTokenizerFast, adapters: bool = False, timeout_s: float = 20.0
) -> ServedLM:
    endpoint = Endpoint.model_validate({"base_url": f"{server.url}/v1"})
    client = VllmServer(endpoint, adapters=adapters, timeout_s=timeout_s, sync_timeout_s=10.0)
    return ServedLM(client, tokenizer, CONTEXT)


def changed(folder: Path, adapters: bool) -> Decoder:
    """The tiny model after training: other weights, or adapters that say something."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    if adapters:
        model = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "norm" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return Decoder(model)


def sender(lm: ServedLM, decoder: Decoder, adapters: bool, max_gap: float = 1e-3) -> WeightSender:
    return WeightSender(lm, decoder, adapters=adapters, probe=[5, 6, 7, 8, 9], max_gap=max_gap)


@pytest.mark.parametrize("adapters", [False, True])
def test_turns_are_those_of_transformers_with_the_weights_that_were_sent(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, adapters: bool
) -> None:
    decoder = changed(tiny_folder, adapters)
    lm = served(server[0], tokenizer, adapters)
    link = sender(lm, decoder, adapters)
    link.send(0)
    sampling = Sampling(8, GREEDY, stop=("b",), stop_ids=(tokenizer.eos_token_id,))
    first = {row: list(range(5, 12 + row)) for row in range(6)}
    sessions = [model.open(range(6), sampling) for model in (lm, TransformersLM(decoder, tokenizer, CONTEXT))]
    for feeds in (first, {0: [5, 6], 3: [7]}, {0: [8] * 100, 1: [9]}):
        said, expected = (finish(session, feeds) for session in sessions)
        assert said.keys() == expected.keys() == feeds.keys()
        for row in feeds:
            assert (said[row].ids, said[row].text, said[row].offsets) == (
                (expected[row].ids, expected[row].text, expected[row].offsets)
            )
            assert said[row].reason == expected[row].reason
            assert said[row].logprobs == pytest.approx(expected[row].logprobs, abs=1e-5)
    assert said[0].reason == "context"
    for session in sessions:
        session.close()
    link.close()


def test_every_parameter_that_shapes_the_distribution_is_said(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = served(server[0], tokenizer)
    link = sender(lm, changed(tiny_folder, False), False)
    link.send(0)
    server[0].asked.clear()
    one, two = drive(lm, Sampling(4), [[5, 6, 7]] * 2, [3, 4])
    assert one == drive(lm, Sampling(4), [[5, 6, 7]], [3])[0]
    assert one != two
    asked = server[0].sent("/inference/v1/generate")[0]["sampling_params"]
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    neutral |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "skip_special_tokens": False}
    assert asked.items() >= neutral.items()
    session = lm.open([7], Sampling(1))
    assert finish(session, {0: [5, 6, 7]}) != finish(session, {0: [5, 6, 7]})  # a turn has a seed of its own
    session.close()
    link.close()


@pytest.mark.parametrize("fault", ["500", "503", "429", "reset", "{nonsense", '{"choices": []}'])
def test_what_passes_is_waited_out(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, fault: str
) -> None:
    lm = served(server[0], tokenizer)
    link = sender(lm, changed(tiny_folder, False), False)
    link.send(0)
    expected = drive(lm, Sampling(4), [[5, 6, 7]] * 3, [1, 2, 3])
    server[0].faults = [fault] * 4
    assert drive(lm, Sampling(4), [[5, 6, 7]] * 3, [1, 2, 3]) == expected
    assert not server[0].faults
    link.close()


@pytest.mark.parametrize("adapters", [False, True])
def test_a_server_that_comes_back_without_its_weights_is_given_them_again(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, adapters: bool
) -> None:
    lm = served(server[0], tokenizer, adapters)
    link = sender(lm, changed(tiny_folder, adapters), adapters)
    link.send(3)
    expected = drive(lm, Sampling(4), [[5, 6, 7]] * 4, range(4))
    session = lm.open(range(4), Sampling(4))
    server[0].faults = ["hang"] * 4
    session.submit({row: [5, 6, 7] for row in range(4)})
    assert session.advance() == {}
    server[0] = server[0].restarted()  # in the middle of four turns
    said: dict[int, Completion] = {}
    while len(said) < 4:
        said |= session.advance()
    assert [said[row] for row in range(4)] == expected
    server[0] = server[0].restarted()  # between two turns
    assert drive(lm, Sampling(4), [[5, 6, 7]] * 4, range(4)) == expected
    session.close()
    link.close()


def test_a_turn_that_is_given_up_closes_its_connection_and_leaves_the_others(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    lm = served(server[0], tokenizer)
    link = sender(lm, changed(tiny_folder, False), False)
    link.send(0)
    session = lm.open([1, 2], Sampling(4))
    server[0].faults = ["hang"]
    session.submit({0: [5, 6]})
    while server[0].faults:
        session.advance()
    session.end([0])
    assert finish(session, {1: [5, 6]})[1].ids
    assert session.advance() == {}
    with pytest.raises(ValueError, match="row 0 has ended"):
        session.submit({0: [5]})
    session.close()
    link.close()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("hang", "no answer within 2 s"),
        ("400", "HTTP 400 from /inference/v1/generate: .*on fire"),
        ("401", "HTTP 401"),
        ("500", "HTTP 500"),
    ],
)
def test_what_does_not_pass_stops_with_its_cause(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, fault: str, message: str
) -> None:
    lm = served(server[0], tokenizer, timeout_s=2.0)
    link = sender(lm, changed(tiny_folder, False), False)
    link.send(0)
    server[0].faults = [fault] * 1000
    with pytest.raises(TrainingStopped, match=f"gave no turn: {message}.*--resume"):
        drive(lm, Sampling(4), [[5, 6, 7]], [1])
    server[0].faults = []
    server[0].released.set()
    link.close()


def test_weights_that_are_not_the_learners_are_found_out(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = served(server[0], tokenizer)
    decoder = changed(tiny_folder, False)
    link = sender(lm, decoder, False)
    link.send(0)

    def asleep(method: str, path: str, body: Any) -> tuple[int, Any]:
        return (200, {}) if path == "/collective_rpc" else FakeVllm.answer(server[0], method, path, body)

    monkeypatch.setattr(server[0], "answer", asleep)  # it says that it has loaded them
    with torch.no_grad():
        decoder.model.get_input_embeddings().weight.mul_(1.5)  # type: ignore[operator]
    with pytest.raises(TrainingStopped, match=r"version 1 engine and learner are .* nats apart"):
        link.send(1)
    link.close()


def test_weights_that_were_changed_on_the_way_are_found_out(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lm = served(server[0], tokenizer)
    changed(tiny_folder, False).save(tmp_path / "weights")
    weights = Written.at(tmp_path / "weights", 5)
    lm.load(weights)
    (tmp_path / "weights" / "model.safetensors").unlink()  # it may be mapped: no writing into it
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"something else")
    server[0] = server[0].restarted()
    with pytest.raises(TrainingStopped, match=r"version 5 are not as they were written \(SHA-256 of model.safetensors"):
        drive(lm, Sampling(4), [[5, 6, 7]], [1])
    lm.close()


def test_old_versions_are_removed(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    lm = served(server[0], tokenizer, adapters=True)
    decoder = changed(tiny_folder, True)
    link = WeightSender(lm, decoder, adapters=True, probe=[5, 6, 7], max_gap=1e-3, exchange=tmp_path)
    for version in range(3):
        link.send(version)
    (home,) = tmp_path.iterdir()
    assert [path.name for path in home.iterdir()] == ["version-00002"]
    assert len(server[0].adapters) == 1
    link.close()
    assert not list(tmp_path.iterdir())


def test_a_server_that_cannot_be_used_is_refused(
    server: list[FakeVllm], tiny_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(ConfigError, match="holds 120 tokens a sequence"):
        ServedLM(served(server[0], tokenizer).server, tokenizer, 200)
    server[0].dev = False
    with pytest.raises(ConfigError, match=r"start vLLM .* with VLLM_SERVER_DEV_MODE=1"):
        served(server[0], tokenizer)
    server[0].scale_out = False
    with pytest.raises(ConfigError, match="with --enable-scale-out"):
        served(server[0], tokenizer)
    server[0].stop()
    with pytest.raises(ConfigError, match="no vLLM server at"):
        served(server[0], tokenizer)
    server[0] = FakeVllm(tiny_folder, tokenizer)


def settings(model: Path, server: FakeVllm, run_dir: Path, **more: Any) -> dict[str, Any]:
    return {
        "student": {"model": str(model), "chat": "plain", "max_turn_tokens": 6, "max_context": CONTEXT},
        "student.plain": {"few_shot": "?", "system": ""},
        "env.options": {"tasks": "reasoning_gym:chain_sum", "action_format": "line", "max_turns": 2},
        "teacher": None,
        "credit.arm": "grpo",
        "rollout": {"tasks_per_step": 2, "group_size": 2},
        "learner": {"lora_rank": 2, "learning_rate": 0.05, "kl_weight": 0.1},
        "engine": {"name": "vllm-server", "base_url": server.url, "max_logprob_gap": 1e-3},
        "steps": 3,
        "run_dir": str(run_dir),
        **more,
    }


@pytest.mark.parametrize("sync", ["adapters", "weights"])
def test_training_sends_the_weights_after_every_update(
    server: list[FakeVllm], tiny_folder: Path, tmp_path: Path, sync: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = settings(tiny_folder, server[0], tmp_path / "run", **{"engine.sync": sync})
    restart = threading.Event()

    def restarting(method: str, path: str, body: Any) -> tuple[int, Any]:
        if (
            len(server[0].sent("/inference/v1/generate")) == 8 and not restart.is_set()
        ):  # in the middle of the first step
            restart.set()
            server[0].version, server[0].adapters = "default", {}
            server[0].network = AutoModelForCausalLM.from_pretrained(tiny_folder)
        return FakeVllm.answer(server[0], method, path, body)

    monkeypatch.setattr(server[0], "answer", restarting)
    run = train(settings=laid, display=Display(3, Console(file=io.StringIO())))
    assert restart.is_set()
    rows = Recorder.resume(run.path).metrics()
    assert len(rows) == 3
    assert all(row["logprob_gap"] < 1e-4 for row in rows)
    route = "/v1/load_lora_adapter" if sync == "adapters" else "/update_weight_version"
    labels = [body.get("lora_name") or body["new_version"] for body in server[0].sent(route) if body]
    assert sorted({label.partition("-")[2] for label in labels}) == ["0", "1", "2", "3"]
    assert len(labels) == 5  # once more after the restart
    for step in range(3):
        played = list(load_jsonl(run.path / "trajectories" / f"step-{step + 1:05d}.jsonl", Trajectory))
        assert {t.policy_version for t in played} == {step}
        assert not [t for t in played if t.status == "failed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": {"name": "vllm-server"}}, "engine.base_url is required"),
        ({"engine": {"sync": "weights"}}, "engine.sync has no effect with engine.name 'transformers'"),
        ({"engine.options": {"enforce_eager": True}}, "engine.options has no effect with engine.name 'vllm-server'"),
        ({"engine.sync": "adapters", "learner": {"lora_rank": 0}}, "engine.sync 'adapters' needs some"),
        ({"engine.sync": "weights", "student.dtype": "bfloat16"}, "rounding swallows"),
        ({"engine.nmae": "vllm"}, "engine.nmae"),
    ],
)
def test_what_has_no_effect_is_refused(
    server: list[FakeVllm], tiny_folder: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({}, settings(tiny_folder, server[0], tmp_path, **change))
