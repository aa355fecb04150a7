"""Weights on their way from the learner to an engine: written, checked, taken, and checked again."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError

from ovd_gym.errors import TrainingStopped
from ovd_gym.llm.decoder import Decoder
from ovd_gym.llm.engine import Engine, Written
from ovd_gym.llm.models import quiet

__all__ = ["WeightSender"]


class WeightSender:
    """Sends an engine the weights or the LoRA adapters of a model through a folder, version after version.

    What the engine makes of them is compared with the model each time: both read a probe, and must find every token of
    it equally likely. So another model, another precision, or weights that were not taken are found before a single
    token is sampled.

    Args:
        engine: takes them.
        decoder: the model.
        adapters: send the adapters alone, or else whole weights with the adapters folded in.
        probe: token ids, two at least.
        max_gap: nats by which the two may differ on a token of the probe.
        exchange: a folder that the engine sees under the same path; None: a temporary one of this machine.
    """

    def __init__(
        self,
        engine: Engine,
        decoder: Decoder,
        *,
        adapters: bool,
        probe: Sequence[int],
        max_gap: float,
        exchange: Path | None = None,
    ) -> None:
        self._engine = engine
        self._decoder = decoder
        self._adapters = adapters
        self._probe = probe
        self._max_gap = max_gap
        if exchange is not None:
            exchange.mkdir(parents=True, exist_ok=True)
        self._home = Path(tempfile.mkdtemp(prefix="weights-", dir=exchange)).absolute()
        self._home.chmod(0o755)
        self._last: Path | None = None

    def send(self, version: int) -> None:
        """Have the engine sample with the model's weights as they are now, after ``version`` updates.

        Raises TrainingStopped, with the cause, when they cannot be written or are not taken as they are.
        """
        folder = self._home / f"version-{version:05d}"
        try:
            self._write(folder)
            weights = Written.at(folder, version)
        except (OSError, SafetensorError) as error:
            raise TrainingStopped(f"cannot write weights to {folder} ({error}): make room and resume") from error
        self._engine.load(weights)
        self._compare(version)
        if self._last is not None:
            shutil.rmtree(self._last, ignore_errors=True)
        self._last = folder

    def close(self) -> None:
        """Remove what has been written, and let go of the engine."""
        self._engine.close()
        shutil.rmtree(self._home, ignore_errors=True)

    def _write(self, folder: Path) -> None:
        if self._adapters:
            with quiet():
                cast(Any, self._decoder.model).save_pretrained(folder)
        else:
            self._decoder.save(folder)

    def _compare(self, version: int) -> None:
        own = self._decoder.logprobs(self._probe).cpu()
        gap = float((torch.tensor(self._engine.logprobs(self._probe)) - own).abs().max())
        if not gap <= self._max_gap:
            raise TrainingStopped(
                f"with weights of version {version} engine and learner are {gap:.3g} nats apart on a token of a probe, "
                f"more than engine.max_logprob_gap = {self._max_gap:g}: does it serve the same model, as precisely?"
            )
