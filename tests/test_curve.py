"""The picture itself is for eyes; here: it is one, whatever is missing, and it draws the right numbers."""

import struct
from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from ovd_gym.errors import DataError
from ovd_gym.report.curve import smooth, write_curve

STEP: Mapping[str, Any] = {
    "step": 1, "reward": 0.25, "em": 0.25, "score": 4.5, "entropy": 1.2, "kl": 0.001, "grad_norm": 0.7,
}  # fmt: skip
EVALUATION: Mapping[str, Any] = {"step": 0, "accuracy": 0.3, "low": 0.2, "high": 0.42, "episodes": 64, "score": 5.0}


def size(path: Path) -> tuple[int, int]:
    """Width and height from a PNG's header."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return int(width), int(height)


@pytest.mark.parametrize(
    ("metrics", "evaluations"),
    [
        ([{**STEP, "step": n, "reward": n / 60} for n in range(60)], [EVALUATION, {**EVALUATION, "step": 59}]),
        ([STEP], []),
        ([], [EVALUATION]),
        ([{"step": 1, "entropy": 1.0}, {"step": 2}], []),
        ([{"step": 1, "reward": None, "em": nan, "score": 3.0}], [{"step": 1, "accuracy": 0.5}]),
        ([STEP], [{**EVALUATION, "accuracy": 0.2, "low": 0.2000001}]),
    ],
    ids=["whole run", "one step", "evaluation only", "few keys", "missing values", "rounded interval"],
)
def test_a_run_gives_a_picture_whatever_is_missing(
    tmp_path: Path, metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> None:
    path = tmp_path / "curve.png"
    write_curve(path, metrics, evaluations, "demo")
    assert size(path) == (1080, 780)
    assert path.stat().st_size > 8000


@pytest.mark.parametrize(
    ("metrics", "evaluations"),
    [([], []), ([{"reward": 1.0}], [{"accuracy": 0.5}]), ([{"step": 1, "loss": 0.2, "kl": nan}], [])],
    ids=["empty", "no steps", "no known key"],
)
def test_a_run_with_nothing_to_draw_is_an_error_and_writes_no_file(
    tmp_path: Path, metrics: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> None:
    with pytest.raises(DataError, match="nothing to draw for 'demo'"):
        write_curve(tmp_path / "curve.png", metrics, evaluations, "demo")
    assert not list(tmp_path.iterdir())


def test_the_picture_depends_on_the_numbers(tmp_path: Path) -> None:
    for name, reward in (("a", 0.1), ("b", 0.1), ("c", 0.9)):
        write_curve(tmp_path / name, [{**STEP, "reward": reward}], [], "demo")
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_smoothing_averages_a_window_without_lag() -> None:
    values = [0.0] * 20 + [3.0] + [0.0] * 19  # 40 values: windows of 5
    expected = [0.0] * 18 + [0.6] * 5 + [0.0] * 17
    assert smooth(values) == pytest.approx(expected, abs=1e-12)


def test_smoothing_keeps_a_constant_up_to_the_ends() -> None:
    assert smooth([2.0] * 45) == pytest.approx(np.full(45, 2.0))
