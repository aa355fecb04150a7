"""Question sets by name: the field's benchmarks from the hub, any of them as a local file, closed sets, the world.

========================  ==============================================================================
``"nq"``, ``"hotpotqa"``  a benchmark of :data:`BENCHMARKS`, from the Hugging Face hub
``"some/file.jsonl"``     a file, plain or gzipped, in the hub's schema or in that of the closed sets
``"closed:nq_open"``      ``nq_open_closed.jsonl.gz`` in a folder that holds the passages as well
``"world"``               questions about the fictional world
========================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovd_gym.envs.hub import Benchmark, benchmark_rows
from ovd_gym.envs.jsonl import Row, plain_task, read_rows
from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.index_sources import read_passages
from ovd_gym.envs.web_search.world import World
from ovd_gym.errors import ConfigError, unknown
from ovd_gym.records import Task

__all__ = ["BENCHMARKS", "benchmark", "closed_passages", "closed_questions", "file_questions"]
__all__ += ["load_questions", "world_questions"]

_PASSAGES = "wiki_passages.jsonl.gz"


def _flashrag(config: str, split: str) -> Benchmark:
    return Benchmark(repository="RUC-NLPIR/FlashRAG_datasets", config=config, split=split)


BENCHMARKS: Mapping[str, Benchmark] = {
    "nq": _flashrag("nq", "test"),
    "triviaqa": _flashrag("triviaqa", "test"),
    "popqa": _flashrag("popqa", "test"),
    "hotpotqa": _flashrag("hotpotqa", "dev"),
    "2wikimultihopqa": _flashrag("2wikimultihopqa", "dev"),
    "musique": _flashrag("musique", "dev"),
    "bamboogle": _flashrag("bamboogle", "test"),
}
"""One collection in one schema (id, question, golden_answers, metadata): what most papers on search use.
Jin et al., "FlashRAG", arXiv 2405.13576."""


def load_questions(spec: str, **options: Any) -> Sequence[Task]:
    """The questions that ``spec`` names.

    Args:
        spec: a name of :data:`BENCHMARKS`, ``"closed:NAME"``, ``"world"``, or the path of a ``.jsonl`` or
            ``.jsonl.gz`` file.
        options: arguments of :func:`benchmark`, :func:`closed_questions` or :func:`world_questions`; a file takes none.

    Raises:
        ConfigError: an unknown name or option; DataError: a file or data set that cannot be read.
    """
    kind, _, name = spec.partition(":")
    sources: Mapping[str, Callable[..., Sequence[Task]]] = {"closed": closed_questions, "world": world_questions}
    if spec == "world" or kind == "closed":
        source, arguments = sources[kind], [name] if name else []
    elif spec.endswith((".jsonl", ".jsonl.gz")):
        source, arguments = file_questions, [spec]
    else:
        source, arguments = benchmark, [spec]
    try:
        return source(*arguments, **options)
    except TypeError as error:
        raise ConfigError(f"questions {spec!r} with options {sorted(options)}: {error}") from error


def benchmark(name: str, **options: Any) -> Sequence[Task]:
    """A benchmark from the hub.

    Args:
        name: one of :data:`BENCHMARKS`.
        options: ``split``, ``revision``, ``repository`` and others of :func:`~ovd_gym.envs.hub.benchmark_rows`.
    """
    if name not in BENCHMARKS:
        others = ("closed:NAME", "world", "FILE.jsonl", "FILE.jsonl.gz")
        raise ConfigError(unknown("question set", name, (*BENCHMARKS, *others)))
    return tuple(map(_task, benchmark_rows(name, BENCHMARKS[name], **options)))


def file_questions(path: str | Path) -> Sequence[Task]:
    """The questions of a JSON-lines file, plain or gzipped.

    A row has a ``question`` and its gold answers: ``golden_answers`` or ``answers`` (a list) or ``answer`` (a text
    or a list). ``id`` is optional. All other fields become metadata, those of an object called ``metadata`` among them;
    ``gold_titles`` and ``gold_passage_ids``, where present, are lists of texts.

    Raises:
        DataError: names file, line and field; no question of a faulty file is returned.
    """
    return tuple(_task(row) for row in read_rows(path, "questions"))


def closed_questions(name: str = "", *, data_folder: str | Path, having: str | None = None) -> Sequence[Task]:
    """A set whose answers are in the passages beside it (:func:`closed_passages`).

    Args:
        name: ``NAME`` of a file ``NAME_closed.jsonl.gz``.
        data_folder: where the files are.
        having: only the questions with this field, such as ``gold_titles``, which some sets know of some questions.
    """
    suffix = "_closed.jsonl.gz"
    path = Path(data_folder) / f"{name}{suffix}"
    if not path.is_file():
        names = [file.name.removesuffix(suffix) for file in Path(data_folder).glob(f"*{suffix}")]
        raise ConfigError(f"{unknown('closed set', name, names)} (in {data_folder})")
    found = file_questions(path)
    chosen = found if having is None else tuple(task for task in found if having in task.metadata)
    if not chosen:
        raise ConfigError(f"no question of {path} has the field {having!r}")
    return chosen


def closed_passages(data_folder: str | Path) -> Sequence[Passage]:
    """The passages that the closed sets of ``data_folder`` are answered from. Raises DataError for a faulty row."""
    return tuple(read_passages(Path(data_folder) / _PASSAGES))


def world_questions(*, world_seed: int = 0, size: int = 3000, **options: Any) -> Sequence[Task]:
    """Questions about the fictional world of that seed and size.

    Args:
        world_seed: seed of the world.
        size: its number of pages.
        options: arguments of :meth:`~ovd_gym.envs.web_search.world.World.tasks`: hops, count, seed, split.
    """
    return World.generate(world_seed, size).tasks(**options)


def _task(row: Row) -> Task:
    return plain_task(row, texts=("gold_titles", "gold_passage_ids"))
