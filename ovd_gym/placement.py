"""Where a run is computed: the section ``scale`` of its configuration."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from ovd_gym.records import Record

__all__ = ["ScaleConfig"]


class ScaleConfig(Record):
    """Past one process: who else plays, judges and learns. It says where numbers are computed, not what they mean."""

    workers: Annotated[int, Field(ge=0)] = 0
    """Ray actors that play episodes, each with environments and a copy of the student; 0: the trainer plays."""
    teachers: Annotated[int, Field(ge=0)] = 0
    """Ray actors that judge, each with a copy of the teacher; 0: the trainer judges."""
    learners: Annotated[int, Field(ge=1)] = 1
    """Processes that hold the trained weights in shards (FSDP2) and split each batch; 1: the trainer alone."""
    address: str | None = None
    """Of a Ray cluster; ``auto``: the one this machine belongs to; None: one of this machine's, for the run alone."""
    episodes_per_part: Annotated[int, Field(ge=1)] | None = None
    """Episodes that a worker is handed at a time, in whole groups; None: a round is split evenly. What is lost with a
    worker, and what is batched together: the last bits of log-probabilities depend on it, not on who plays."""
    cpus_per_worker: Annotated[float, Field(ge=0)] = 1
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    cpus_per_teacher: Annotated[float, Field(ge=0)] = 1
    gpus_per_teacher: Annotated[float, Field(ge=0)] = 0
    start_timeout_s: Annotated[float, Field(gt=0)] = 600
    """Training stops when no actor of a kind has been ready for so long."""

    @model_validator(mode="after")
    def _effective(self) -> Self:
        if not self.workers + self.teachers and self.learners == 1:
            raise ValueError("scale without workers, teachers or a second learner has no effect; remove it")
        unused = {"cpus_per_worker", "gpus_per_worker", "episodes_per_part"} if not self.workers else set()
        unused |= {"cpus_per_teacher", "gpus_per_teacher"} if not self.teachers else set()
        unused |= {"address", "start_timeout_s"} if not self.workers + self.teachers else set()
        for key in sorted(unused):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"scale.{key} has no effect without the workers or teachers it is about; remove it")
        return self
