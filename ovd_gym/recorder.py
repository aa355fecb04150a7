"""The run folder: configuration, metrics, transcripts and checkpoints.

::

    RUN/config.yaml            the whole configuration, defaults included
        versions.json          of Python and the libraries the numbers depend on
        tokenizer/             the student's: what the token ids of the trajectories stand for
        metrics.jsonl          one line a training step
        evaluations.jsonl      one line an evaluation
        trajectories/          step-00003.jsonl, eval-00003.jsonl: every episode, token by token
        critiques/             the same names: every score
        credits/               step-00003.jsonl: what the update made of them, an advantage for every step
        canaries/              step-00003.json: what the teacher made of its canary set
        tensorboard/           the metrics again
        tracking_id            the run's name at its trackers, if it has some
        checkpoints/step-00003 weights, optimiser state and position; written whole or not at all
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedTokenizerBase

from ovd_gym.config import TrainConfig
from ovd_gym.config_files import load_config
from ovd_gym.credit import Credit
from ovd_gym.errors import ConfigError, DataError, TrainingStopped
from ovd_gym.learner import Learner
from ovd_gym.provenance import file_hash, versions
from ovd_gym.records import Critique, Record, Trajectory, load_jsonl, save_jsonl
from ovd_gym.trackers import TrackedRun, Trackers, check_trackers

__all__ = ["DamagedCheckpoint", "Kind", "Recorder", "load_checkpoint", "save_checkpoint"]

Kind = Literal["step", "eval"]
_EPISODES = ("trajectories", "critiques", "credits")
_STATE = "state.json"
_WEIGHTS = ("weights.safetensors", "optimizer.safetensors")
_TRACKING = "tracking_id"
_LIBRARIES = ("ovd-gym", "torch", "transformers", "peft", "gymnasium", "numpy")


class DamagedCheckpoint(DataError):
    """A checkpoint that is not what was once written; the one before it may be whole."""


class Recorder:
    """Writes one run folder. Open it with :meth:`create` or :meth:`resume`."""

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.config = config
        self._board: SummaryWriter | None = None
        self._trackers: Trackers | None = None

    @staticmethod
    def free(path: Path) -> Path:
        """``path``, if a run can be written there. Raises :class:`ConfigError` if it exists: nothing is overwritten."""
        if path.exists():
            raise ConfigError(f"{path} exists already: continue it with --resume {path}, or choose another run_dir")
        home = next(parent for parent in path.absolute().parents if parent.exists())
        if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
            raise ConfigError(f"cannot write the run to {path}: {home} is not a folder that can be written to")
        return path

    @classmethod
    def create(cls, path: Path, config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> Recorder:
        """A new run folder, made whole or not at all. Raises :class:`ConfigError` for a tracker that is missing."""
        check_trackers(config.trackers)
        try:
            staged = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=_made(path.parent)))
        except OSError as error:  # not every file system tells beforehand, as in free()
            raise ConfigError(f"cannot write the run to {path}: {error.strerror}") from None
        staged.chmod(0o755)
        for name in (*_EPISODES, "checkpoints"):
            (staged / name).mkdir()
        tokenizer.save_pretrained(staged / "tokenizer")
        (staged / "versions.json").write_text(json.dumps(versions(*_LIBRARIES), indent=2) + "\n", encoding="utf-8")
        tree = config.model_dump(mode="json")
        (staged / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if config.trackers:
            (staged / _TRACKING).write_text(uuid4().hex, encoding="utf-8")
        staged.rename(cls.free(path))
        return cls(path, config)

    @classmethod
    def resume(cls, path: Path, settings: Mapping[str, Any] | None = None) -> Recorder:
        """An existing run folder; ``settings`` are laid over its configuration, for this time.

        Raises :class:`ConfigError` if ``path`` is none.
        """
        if not (path / "config.yaml").is_file():
            raise ConfigError(f"{path} is not a run folder (no config.yaml in it)")
        return cls(path, load_config(path / "config.yaml", settings))

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        found = [path for path in (self.path / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
        return sorted(found, key=lambda path: int(path.name[5:]))

    def restore(self, learner: Learner, say: Callable[[str], None]) -> int:
        """Load the newest checkpoint that is whole; the number of training steps it has seen, 0 without any.

        A damaged one is said, and set aside under another name. Raises :class:`DataError` when all of them are damaged,
        and for those of another model.
        """
        found = self.checkpoints()
        for path in reversed(found):
            try:
                done = load_checkpoint(path, learner)
            except DamagedCheckpoint as error:
                if path == found[0]:
                    raise DamagedCheckpoint(
                        f"{error}, and none before it is whole: delete {path.parent} to start from the beginning"
                    ) from None
                say(f"{error}; going on from the one before, and keeping it as damaged-{path.name}")
                shutil.rmtree(path.with_name(f"damaged-{path.name}"), ignore_errors=True)
                path.rename(path.with_name(f"damaged-{path.name}"))
            else:
                return done
        return 0

    def rewind(self, step: int) -> None:
        """Forget what was written after ``step`` training steps: the run will write it again."""
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            if not (self.path / name).exists():
                continue
            rows = [row for row in _rows(self.path / name) if row["step"] <= step]
            _write_atomically(self.path / name, "".join(json.dumps(row) + "\n" for row in rows))
        kept = {f"eval-{row['step']:05d}" for row in self.evaluations()} | {f"step-{i:05d}" for i in range(1, step + 1)}
        for folder in _EPISODES:
            for file in (self.path / folder).glob("*.jsonl"):
                if file.stem not in kept:
                    file.unlink()
        for staged in (self.path / "checkpoints").glob(".step-*"):  # left by a kill in the middle of a save
            shutil.rmtree(staged)
        self._close_board()
        self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step + 1)
        if self.config.trackers:
            name = (self.path / _TRACKING).read_text(encoding="utf-8")
            run = TrackedRun(name, self.path.name, self.config.model_dump(mode="json"))
            self._trackers = Trackers(self.config.trackers, run)

    def metrics(self) -> list[dict[str, Any]]:
        """Recorded training steps, in order."""
        return _rows(self.path / "metrics.jsonl")

    def evaluations(self) -> list[dict[str, Any]]:
        """Recorded evaluations, in order."""
        return _rows(self.path / "evaluations.jsonl")

    def record(
        self,
        kind: Kind,
        row: Mapping[str, Any],
        trajectories: Sequence[Trajectory],
        critiques: Sequence[Critique],
        credits: Sequence[Credit] = (),
    ) -> None:
        """Write one training step or evaluation; ``row`` holds its ``step`` and numbers.

        The row is written last: a step that has one is complete.
        """
        with _writing(self.path):
            for folder, records in zip(_EPISODES, (trajectories, critiques, credits), strict=True):
                file = self._episodes(folder, kind, row["step"])
                file.unlink(missing_ok=True)
                save_jsonl(file, records)
            name = "metrics.jsonl" if kind == "step" else "evaluations.jsonl"
            with (self.path / name).open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
        if self._board is None:
            self._board = SummaryWriter(str(self.path / "tensorboard"))
        numbers = {f"{kind}/{key}": float(v) for key, v in row.items() if key != "step" and isinstance(v, int | float)}
        for key, value in numbers.items():
            self._board.add_scalar(key, value, row["step"])
        if self._trackers is not None:
            self._trackers.log(numbers, row["step"])

    def record_canaries(self, report: Record, step: int) -> None:
        """Write what the teacher made of its canary set after ``step`` training steps."""
        with _writing(self.path):
            folder = _made(self.path / "canaries")
            _write_atomically(folder / f"step-{step:05d}.json", report.model_dump_json(indent=2) + "\n")

    def episodes(self, kind: Kind, step: int) -> list[tuple[Trajectory, Critique | None]]:
        """The recorded episodes of one step or evaluation, each with its critique."""
        critiques = {c.trajectory_id: c for c in load_jsonl(self._episodes("critiques", kind, step), Critique)}
        trajectories = load_jsonl(self._episodes("trajectories", kind, step), Trajectory)
        return [(trajectory, critiques.get(trajectory.id)) for trajectory in trajectories]

    def count(self, kind: Kind, step: int) -> int:
        """Number of recorded episodes of one step or evaluation; 0 where they were deleted to save room."""
        file = self._episodes("trajectories", kind, step)
        return file.read_bytes().count(b"\n") if file.is_file() else 0

    def versions(self) -> dict[str, str]:
        """Of Python and the libraries that the run was made with. Raises :class:`DataError` for a damaged file."""
        file = self.path / "versions.json"
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise DataError(f"{file}: cannot be read as JSON ({error}): the file is damaged") from None
        if not isinstance(found, dict) or not all(isinstance(version, str) for version in found.values()):
            raise DataError(f"{file}: expected the versions of libraries by name: the file is damaged")
        return found

    def credits(self, step: int) -> dict[str, Credit]:
        """What the update of training step ``step`` followed, by trajectory id."""
        return {credit.trajectory_id: credit for credit in load_jsonl(self._episodes("credits", "step", step), Credit)}

    def checkpoint(self, learner: Learner, step: int) -> None:
        """Save the learner after ``step`` training steps, unless that has been done, and prune older checkpoints."""
        path = self.path / "checkpoints" / f"step-{step:05d}"
        if not path.exists():
            with _writing(self.path):
                save_checkpoint(path, learner, step)
        for old in self.checkpoints()[: -self.config.keep_checkpoints]:
            shutil.rmtree(old)

    def close(self) -> None:
        """Flush what is buffered."""
        self._close_board()
        if self._trackers is not None:
            self._trackers.close()

    def _close_board(self) -> None:
        if self._board is not None:
            self._board.close()
            self._board = None

    def _episodes(self, folder: str, kind: Kind, step: int) -> Path:
        return self.path / folder / f"{kind}-{step:05d}.jsonl"


def save_checkpoint(path: Path, learner: Learner, step: int) -> None:
    """Write weights, optimiser state, position and checksums to the new folder ``path``, whole or not at all."""
    staged = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=_made(path.parent)))
    try:
        weights, moments = learner.state()
        save_file(_contiguous(weights), staged / _WEIGHTS[0])
        save_file(_contiguous(moments), staged / _WEIGHTS[1])
        sums = {file.name: file_hash(file) for file in staged.iterdir()}
        (staged / _STATE).write_text(json.dumps({"step": step, "sha256": sums}), encoding="utf-8")
        staged.chmod(0o755)
        for file in (*staged.iterdir(), staged):
            _sync(file)  # on the disk before it has its name: a power cut leaves it whole, or none
        staged.rename(path)
        _sync(path.parent)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise


def load_checkpoint(path: Path, learner: Learner) -> int:
    """Put the checkpoint ``path`` into ``learner``; the number of training steps it has seen.

    Raises :class:`DamagedCheckpoint` for a damaged one, :class:`DataError` for one of another model; the learner is
    then unchanged.
    """
    damaged = f"the checkpoint {path} is damaged"
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        for name in _WEIGHTS:  # these, whatever else a state from elsewhere may name
            if file_hash(path / name) != state["sha256"][name]:
                raise DamagedCheckpoint(f"{damaged} (checksum of {name})")
        weights, moments = (load_file(path / name) for name in _WEIGHTS)
        step = int(state["step"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{damaged} ({type(error).__name__}: {error})") from None
    shapes = {name: p.shape for name, p in learner.parameters.items()}
    if {name: weight.shape for name, weight in weights.items()} != shapes:
        raise DataError(f"the checkpoint {path} belongs to another model: its weights have other names or shapes")
    learner.load_state(weights, moments)
    return step


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a full or vanished disk into one line that says how to go on."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingStopped(
            f"cannot write to {path} ({error}): make room and continue with --resume {path}"
        ) from error


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    """Complete lines of a JSON-lines file; a last line cut short by a crash is left out.

    Raises DataError for a line that is none of ours: file names are made from ``step``, so it is a number.
    """
    if not path.exists():
        return []
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            row = json.loads(line, parse_int=_whole)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}:{number}: not JSON ({error}): the file is damaged") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or row["step"] < 0:
            raise DataError(f"{path}:{number}: expected an object whose step is a number from 0: {str(row)[:60]!r}")
        rows.append(row)
    return rows


def _whole(digits: str) -> int | float:
    """A number of a row. One of more than 18 digits is none of ours, and too long for a file's name."""
    return int(digits) if len(digits) <= 18 else float(digits)


def _write_atomically(path: Path, text: str) -> None:
    staged = path.with_name(f".{path.name}.new")
    staged.unlink(missing_ok=True)
    with staged.open("x", encoding="utf-8") as file:  # never through a link that a folder from elsewhere may hold
        file.write(text)
    os.replace(staged, path)


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
