"""A teacher of two: a model behind an API and a program of rules, the mean of their digits, on three attempts.

Without `--base-url` a server of this file stands in for the API, so that nothing leaves the machine. A real one takes
its key from an environment variable, whose NAME is given: `api_key_env`.

Example: python examples/teachers/api_and_rules.py --base-url http://localhost:8000/v1 --model qwen
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import JsonValue

from ovd_gym import make_teacher
from ovd_gym.teachers.base import StepText, View

ATTEMPTS: dict[str, list[tuple[str, dict[str, JsonValue], str]]] = {
    "calculated": [("python", {"code": "38 * 74"}, "2812"), ("answer", {"text": "2812"}, "2812")],
    "guessed": [("answer", {"text": "2812"}, "2812")],
    "wrong": [("python", {"code": "38 * 74"}, "2812"), ("answer", {"text": "2182"}, "2182")],
}


class StandIn(BaseHTTPRequestHandler):
    """Speaks as a model behind an OpenAI-compatible API would, and thinks well of everything."""

    def do_POST(self) -> None:
        """One chat completion."""
        self.rfile.read(int(self.headers["Content-Length"]))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "SCORE: 7"}}
        usage = {"prompt_tokens": 100, "completion_tokens": 5, "total_tokens": 105}
        head = {"id": "1", "object": "chat.completion", "created": 0, "model": "stand-in"}
        body = json.dumps({**head, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        """Keep quiet."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge the attempts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url")
    parser.add_argument("--model", default="stand-in")
    chosen = parser.parse_args(arguments)
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = chosen.base_url or f"http://127.0.0.1:{server.server_port}/v1"

    api = {"engine": "openai", "model": chosen.model, "base_url": url, "mode": "text"}
    members = [{"name": "digits", "model": api}, {"name": "math-rules"}]
    teacher = make_teacher("ensemble", teachers=members)
    views = [whole(steps) for steps in ATTEMPTS.values()]
    for name, score in zip(ATTEMPTS, teacher.score_batch(views), strict=True):
        print(f"{name}: {score.status if score.mean is None else format(score.mean, '.1f')}")
    print(f"{teacher.name}: {teacher.usage().requests} requests")
    server.shutdown()
    server.server_close()


def whole(steps: Sequence[tuple[str, dict[str, JsonValue], str]]) -> View:
    """An attempt as a teacher reads it: tool, arguments and what came back, step by step."""
    texts = tuple(
        StepText(text=f"{tool}: {next(iter(arguments.values()))}", observation=seen, tool=tool, arguments=arguments)
        for tool, arguments, seen in steps
    )
    return View(kind="trajectory", question="Calculate 38 * 74.", steps=texts, answer=steps[-1][2])


if __name__ == "__main__":
    main()
