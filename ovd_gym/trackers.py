"""Experiment trackers: the run's figures once more, at Weights & Biases, MLflow or trackio.

Each is fed by a thread of its own and can neither stop a run nor hold it up: one that fails is named once in the log
and gets nothing more. Where it writes, and under which account, is its own business and set in its own environment
variables (``WANDB_MODE``, ``WANDB_PROJECT``, ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, ...); no key of it
passes through here. A resumed run goes on where it was tracked before.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, NamedTuple, Protocol

from ovd_gym.errors import ConfigError

__all__ = ["PACKAGES", "TrackedRun", "Trackers", "check_trackers"]

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny", "trackio": "trackio"}
"""Name of a tracker, which is also its module, to the distribution that brings it."""
_PROJECT = "ovd-gym"
_PATIENCE_S = 30.0
"""How long the end of a run waits for a tracker that is still sending."""
_LOG = logging.getLogger(__name__)


class TrackedRun(NamedTuple):
    """What a tracker is told of a run."""

    id: str
    """The same when the run is resumed."""
    name: str
    config: Mapping[str, Any]


class _Client(Protocol):
    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def finish(self) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f'tracker {name!r} needs a package: pip install {PACKAGES[name]}, or "ovd-gym[trackers]"')


class Trackers:
    """The trackers of one run."""

    def __init__(self, names: Sequence[str], run: TrackedRun) -> None:
        check_trackers(names)
        self._feeds = [_Feed(name, run) for name in names]

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Pass figures on; returns at once."""
        for feed in self._feeds:
            feed.queue.put((dict(metrics), step))

    def close(self) -> None:
        """Let them finish; one that takes longer than half a minute is left behind."""
        for feed in self._feeds:
            feed.queue.put(None)
        deadline = time.monotonic() + _PATIENCE_S
        for feed in self._feeds:
            feed.join(max(0.0, deadline - time.monotonic()))
            if feed.is_alive():
                _LOG.warning("tracker %s is still sending: its last figures may be missing", feed.name)


class _Feed(threading.Thread):
    """Everything that one tracker is told, in order."""

    def __init__(self, name: str, run: TrackedRun) -> None:
        super().__init__(name=name, daemon=True)
        self.queue: SimpleQueue[tuple[dict[str, float], int] | None] = SimpleQueue()
        self._run = run
        self.start()

    def run(self) -> None:
        try:
            client = _CLIENTS[self.name](self._run)
            while (item := self.queue.get()) is not None:
                client.log(*item)
            client.finish()
        except Exception as error:  # noqa: BLE001  (a client of a foreign service raises anything; the run goes on)
            why = re.sub(r"//[^/@\s]*@", "//***@", " ".join(str(error).split()))[:200]
            _LOG.warning(
                "tracker %s failed and gets nothing more, the run goes on: %s: %s", self.name, type(error).__name__, why
            )


# The three ------------------------------------------------------------------------------------------------


class _Wandb:
    def __init__(self, run: TrackedRun) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", _PROJECT)
        self._run = wandb.init(
            project=project, id=run.id, name=run.name, config=dict(run.config), resume="allow", reinit="create_new"
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, run: TrackedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        found = self._client.search_runs([experiment], f"tags.ovd_gym = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            return
        self._id = self._client.create_run(experiment, run_name=run.name, tags={"ovd_gym": run.id}).info.run_id
        settings = [Param(key, str(value)[:500]) for key, value in _flat(run.config)]
        for first in range(0, len(settings), 100):  # the most that a request may hold
            self._client.log_batch(self._id, params=settings[first : first + 100])

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(key, value, now, step) for key, value in metrics.items()])

    def finish(self) -> None:
        self._client.set_terminated(self._id)


class _Trackio:
    def __init__(self, run: TrackedRun) -> None:
        import trackio

        name = f"{run.name}-{run.id[:8]}"
        self._run = trackio.init(_PROJECT, name=name, config=dict(run.config), resume="allow", embed=False)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


_CLIENTS: Mapping[str, Callable[[TrackedRun], _Client]] = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
