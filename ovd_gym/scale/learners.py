"""Several processes, one learner. Rank 0 is the trainer; the others follow it: they make every call it makes.

They are started here on this machine, or all of them by ``torchrun`` on one or many::

    torchrun --nproc-per-node 8 -m ovd_gym train run.yaml --set scale.learners=8

Plain torch, not accelerate: accelerate shards what is called as one model, and here decoder and head are called apart
so that logits exist in chunks only; what is left of it would be the launcher.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ovd_gym.batch import Batch
from ovd_gym.build import load_distiller, load_student, make_learner
from ovd_gym.config import DistillationConfig, TrainConfig
from ovd_gym.errors import OvdGymError, TrainingStopped
from ovd_gym.learner import Learner, Metrics
from ovd_gym.llm.decoder import Decoder
from ovd_gym.ranks import Ranks

__all__ = ["LeadingLearner", "follow", "leading"]

_PATIENCE = timedelta(days=30)
"""A follower waits as long as episodes take. A leader that is gone closes the connection, which is noticed at once."""
_END_S = 20.0


class Call(NamedTuple):
    """What all ranks do next; an empty name: nothing more."""

    method: str = ""
    args: tuple[Any, ...] = ()


class LeadingLearner(Learner):
    """The learner of rank 0; whatever it is asked to do, it has the other ranks do as well.

    Raises, from every call: TrainingStopped, if a process was lost.
    """

    group: dist.ProcessGroup

    def update(self, batch: Batch, step: int) -> Metrics:
        """See :class:`~ovd_gym.learner.Learner`."""
        with self._together("update", batch, step):
            return super().update(batch, step)

    def imitate(self, batch: Batch, step: int) -> Metrics:
        """See :class:`~ovd_gym.learner.Learner`."""
        with self._together("imitate", batch, step):
            return super().imitate(batch, step)

    def distill(self, batch: Batch, step: int, teacher: Decoder, config: DistillationConfig) -> Metrics:
        """See :class:`~ovd_gym.learner.Learner`; every rank has a copy of the teacher."""
        with self._together("distill", batch, step):
            return super().distill(batch, step, teacher, config)

    def weights(self) -> dict[str, Tensor]:
        """See :class:`~ovd_gym.learner.Learner`."""
        with self._together("weights"):
            return super().weights()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """See :class:`~ovd_gym.learner.Learner`."""
        with self._together("state"):
            return super().state()

    def load_state(self, weights: Mapping[str, Tensor | None], moments: Mapping[str, Tensor | None]) -> None:
        """See :class:`~ovd_gym.learner.Learner`; the tensors are dealt out, not copied to every rank."""
        counts = {name: value if name.startswith("step/") else None for name, value in moments.items()}
        with self._together("load_state", dict.fromkeys(weights), counts):
            super().load_state(weights, moments)

    @contextmanager
    def _together(self, method: str, *args: Any) -> Iterator[None]:
        try:
            dist.broadcast_object_list([Call(method, args)], src=0, group=self.group)
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise TrainingStopped(
                f"the learner's processes could not {method} together ({str(error).splitlines()[0]}): one was lost; "
                "the last checkpoint stays valid"
            ) from error


class Follower(NamedTuple):
    """A rank other than 0, and what it makes calls with."""

    learner: Learner
    distiller: Decoder | None
    config: TrainConfig

    def make(self, call: Call) -> None:
        """Make one call. What the leader's raises, too, is its to report."""
        if call.method == "distill":
            assert self.distiller is not None
            assert self.config.distillation is not None
            batch, step = call.args
            self.learner.distill(batch, step, self.distiller, self.config.distillation)
        else:
            getattr(self.learner, call.method)(*call.args)


@contextmanager
def leading(config: TrainConfig, decoder: Decoder) -> Iterator[LeadingLearner]:
    """The learner of ``config.scale.learners`` processes, on rank 0; ``decoder`` is what it holds its shard in.

    The others are those that torchrun has started, or are started here and end with the block.
    """
    assert config.scale is not None
    size = config.scale.learners
    followers: list[subprocess.Popen[bytes]] = []
    address = "env://" if dist.is_torchelastic_launched() else f"tcp://127.0.0.1:{_free_port()}"
    try:
        if address != "env://":
            followers += [_started(address, rank, size, config) for rank in range(1, size)]
        group = _join(config.student.device, address, 0, size)
        dist.broadcast_object_list([config], src=0, group=group)
        learner = make_learner(config, decoder, LeadingLearner, Ranks(group))
        learner.group = group
        yield learner
        if all(follower.poll() is None for follower in followers):
            with suppress(RuntimeError):  # one that was lost a moment ago: all of them are ended below
                dist.broadcast_object_list([Call()], src=0, group=group)
            deadline = time.monotonic() + _END_S
            while any(follower.poll() is None for follower in followers) and time.monotonic() < deadline:
                time.sleep(0.05)
    finally:
        for follower in followers:
            follower.kill()
            follower.wait()
        if dist.is_initialized():
            dist.destroy_process_group()


def follow(address: str, rank: int, size: int, device: str | None) -> None:
    """Be rank ``rank`` of ``size``, until the leader ends."""
    group = _join(device, address, rank, size)
    config: TrainConfig = _heard(group)
    decoder = load_student(config).decoder
    distiller = load_distiller(config) if config.distillation else None
    follower = Follower(make_learner(config, decoder, Learner, Ranks(group)), distiller, config)
    while (call := _heard(group)).method:
        try:
            follower.make(call)
        except OvdGymError as error:  # raised on rank 0 as well, which decides what comes of it
            print(f"rank {rank}: {error}", file=sys.stderr)
    dist.destroy_process_group()


def _join(device: str | None, address: str, rank: int, size: int) -> dist.ProcessGroup:
    """Meet the other ranks; a group for what is said on the CPU."""
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, init_method=address, rank=rank, world_size=size)
    group = dist.new_group(backend="gloo", timeout=_PATIENCE)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _heard(group: dist.ProcessGroup) -> Any:
    said: list[Any] = [None]
    dist.broadcast_object_list(said, src=0, group=group)
    return said[0]


def _started(address: str, rank: int, size: int, config: TrainConfig) -> subprocess.Popen[bytes]:
    """A follower on this machine; Ctrl-C is the leader's to handle."""
    command = [sys.executable, "-m", "ovd_gym.scale.follower", address, str(rank), str(size)]
    command += [config.student.device] if config.student.device else []
    return subprocess.Popen(command, start_new_session=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
