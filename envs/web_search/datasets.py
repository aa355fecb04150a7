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

from ovd_gym.envs.hub import hub_rows
from ovd_gym.envs.jsonl import Row, read_rows, take_text, take_texts, task_of
from ovd_gym.envs.web_search.base import Passage
from ovd_gym.envs.web_search.index_sources import read_passages
from ovd_gym.envs.web_search.world import World
from ovd_gym.errors import ConfigError, DataError, unknown
from ovd_gym.records import Record, Task

__all__ = ["BENCHMARKS", "Benchmark", "benchmark", "closed_passages", "closed_questions", "file_questions"]
__all__ += ["load_questions", "world_questions"]

_ANSWER_FIELDS = ("golden_answers", "answers", "answer")
_PASSAGES = "wiki_passages.jsonl.gz"


class Benchmark(Record):
    """Where a benchmark lies on the hub."""

    repository: str = "RUC-NLPIR/FlashRAG_datasets"
    """One collection in one schema (id, question, golden_answers, metadata): what most papers on search use.
    Jin et al., "FlashRAG", arXiv 2405.13576."""
    config: str
    split: str
    """The part that results are reported on; some have no public test part."""
    revision: str | None = None
    """Commit of the repository. None takes its newest state: no commit has been checked for this list. The one that
    was loaded is logged and stands in each task's metadata, ``loaded_from``, hence in the trajectories of a run; set it
    (``load_questions("nq", revision="...")``) to load the same again."""


BENCHMARKS: Mapping[str, Benchmark] = {
    "nq": Benchmark(config="nq", split="test"),
    "triviaqa": Benchmark(config="triviaqa", split="test"),
    "popqa": Benchmark(config="popqa", split="test"),
    "hotpotqa": Benchmark(config="hotpotqa", split="dev"),
    "2wikimultihopqa": Benchmark(config="2wikimultihopqa", split="dev"),
    "musique": Benchmark(config="musique", split="dev"),
    "bamboogle": Benchmark(config="bamboogle", split="test"),
}


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


def benchmark(
    name: str, *, split: str | None = None, revision: str | None = None, repository: str | None = None, **options: Any
) -> Sequence[Task]:
    """A benchmark from the hub.

    Args:
        name: one of :data:`BENCHMARKS`.
        split: another part than the usual one, such as "train".
        revision: commit of the repository; None takes the one pinned in :data:`BENCHMARKS`, if any.
        repository: another home of the same schema: a hub name, or a local folder.
        options: further arguments of :func:`datasets.load_dataset`.
    """
    if name not in BENCHMARKS:
        others = ("closed:NAME", "world", "FILE.jsonl", "FILE.jsonl.gz")
        raise ConfigError(unknown("question set", name, (*BENCHMARKS, *others)))
    home = BENCHMARKS[name]
    options["revision"] = revision or home.revision
    rows = hub_rows(repository or home.repository, split or home.split, home.config, **options)
    return tuple(_task(row._replace(default_id=f"{name}-{n}")) for n, row in enumerate(rows))


def file_questions(path: str | Path) -> Sequence[Task]:
    """The questions of a JSON-lines file, plain or gzipped.

    A row has a ``question`` and its gold answers: ``golden_answers`` or ``answers`` (a list) or ``answer`` (a text
    or a list). ``id`` is optional. All other fields become metadata, those of an object called ``metadata`` among them;
    ``gold_titles`` and ``gold_passage_ids``, where present, are lists of texts.

    Raises:
        DataError: names file, line and field; no question of a faulty file is returned.
    """
    return tuple(_task(row) for row in read_rows(path, "questions"))


def closed_questions(name: str = "", *, data_folder: str | Path) -> Sequence[Task]:
    """A set whose answers are in the passages beside it (:func:`closed_passages`).

    Args:
        name: ``NAME`` of a file ``NAME_closed.jsonl.gz``.
        data_folder: where the files are.
    """
    suffix = "_closed.jsonl.gz"
    path = Path(data_folder) / f"{name}{suffix}"
    if not path.is_file():
        found = [file.name.removesuffix(suffix) for file in Path(data_folder).glob(f"*{suffix}")]
        raise ConfigError(f"{unknown('closed set', name, found)} (in {data_folder})")
    return file_questions(path)


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
    question = take_text(row, "question")
    field = next((name for name in _ANSWER_FIELDS if name in row.fields), None)
    if field is None:
        raise DataError(f"{row.where}: no gold answers: expected one of the fields {', '.join(_ANSWER_FIELDS)}")
    answers = dict.fromkeys(take_texts(row, field))
    nested = row.fields.pop("metadata", {})
    if not isinstance(nested, dict):
        raise DataError(f"{row.where}: field 'metadata' must be an object, got {type(nested).__name__}")
    row.fields.update({key: value for key, value in nested.items() if value is not None and key not in row.fields})
    for name in ("gold_titles", "gold_passage_ids"):
        if name in row.fields:
            row.fields[name] = take_texts(row, name)
    return task_of(row, question, tuple(answers))
