"""Question sets: schemas, names, errors that name file, line and field, and the closed sets where they are at hand."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ovd_gym.envs.web_search.datasets import BENCHMARKS, benchmark, closed_passages, closed_questions, load_questions
from ovd_gym.envs.web_search.world import World
from ovd_gym.errors import ConfigError, DataError
from ovd_gym.records import Task

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "qa"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared evaluation data: ../shared/data")


def write(path: Path, *rows: Any) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
@pytest.mark.parametrize(
    ("row", "task"),
    [
        (  # FlashRAG
            {
                "id": "test_0",
                "question": "who?",
                "golden_answers": ["Ada", "Ada L."],
                "metadata": {"type": "bridge", "x": None},
            },
            Task(id="test_0", question="who?", answers=("Ada", "Ada L."), metadata={"type": "bridge"}),
        ),
        (  # the closed sets
            {
                "id": "h1",
                "question": "q",
                "answers": ["yes"],
                "gold_titles": ["A", "B"],
                "gold_passage_ids": ["w1", "w2"],
            },
            Task(
                id="h1",
                question="q",
                answers=("yes",),
                metadata={"gold_titles": ["A", "B"], "gold_passage_ids": ["w1", "w2"]},
            ),
        ),
        ({"question": "q", "answer": "1945"}, Task(id="f-1", question="q", answers=("1945",))),
        ({"question": "q", "answer": ["a", "b", "a"]}, Task(id="f-1", question="q", answers=("a", "b"))),
        ({"id": 7, "question": "q", "answers": [1945]}, Task(id="7", question="q", answers=("1945",))),
        (
            {"question": "q", "answers": ["a"], "type": "outer", "metadata": {"type": "inner", "k": 1}},
            Task(id="f-1", question="q", answers=("a",), metadata={"type": "outer", "k": 1}),
        ),
    ],
)
def test_schemas(tmp_path: Path, row: dict[str, Any], task: Task, suffix: str) -> None:
    assert load_questions(str(write(tmp_path / f"f.{suffix}", row))) == (task,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, r"f.jsonl:2: no gold answers: expected one of the fields golden_answers, answers, answer"),
        ({"answers": ["a"]}, r"f.jsonl:2: field 'question' is missing"),
        ({"question": 3, "answers": ["a"]}, r"f.jsonl:2: field 'question' is missing or not a text"),
        ({"question": "q", "golden_answers": []}, r"f.jsonl:2: field 'golden_answers' must be"),
        ({"question": "q", "answers": [" "]}, r"f.jsonl:2: field 'answers' must be"),
        ({"question": "q", "answers": [["a"]]}, r"f.jsonl:2: field 'answers' must be"),
        (
            {"question": "q", "answers": ["a"], "metadata": "m"},
            r"f.jsonl:2: field 'metadata' must be an object, got str",
        ),
        ({"question": "q", "answers": ["a"], "gold_titles": [{}]}, r"f.jsonl:2: field 'gold_titles' must be"),
        ({"question": "\ud800", "answers": ["a"]}, r"f.jsonl:2: question: "),
        (["q"], r"f.jsonl:2: expected a JSON object, got list"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path / "f.jsonl", {"question": "q", "answers": ["a"]}, row)
    with pytest.raises(DataError, match=message):
        load_questions(str(path))


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "cut.jsonl").write_text('{"question": ', encoding="utf-8")
    (tmp_path / "no.jsonl.gz").write_text("not gzip", encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    for name, message in (
        ("cut.jsonl", "cut.jsonl:1: not valid JSON"),
        ("no.jsonl.gz", "cannot be read"),
        ("empty.jsonl", "no questions in it"),
        ("missing.jsonl", "cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            load_questions(str(tmp_path / name))


# Benchmarks -------------------------------------------------------------------------------------------------


def test_the_field_s_benchmarks_are_known() -> None:
    assert set(BENCHMARKS) == {
        *("nq", "triviaqa", "popqa", "hotpotqa", "2wikimultihopqa", "musique", "bamboogle"),
    }
    assert {name: home.split for name, home in BENCHMARKS.items() if home.split == "dev"}.keys() == {
        *("hotpotqa", "2wikimultihopqa", "musique"),
    }


@pytest.mark.parametrize("name", BENCHMARKS)
def test_benchmarks_ask_the_hub_for_what_they_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def load_dataset(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((arguments, options))
        return [{"id": "dev_0", "question": "q?", "golden_answers": ["a"], "metadata": {"level": "hard", "none": None}}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (task,) = load_questions(name)
    home = BENCHMARKS[name]
    source = {"name": home.repository, "config": name, "split": home.split, "revision": None}
    metadata: dict[str, Any] = {"level": "hard", "loaded_from": source}
    assert task == Task(id="dev_0", question="q?", answers=("a",), metadata=metadata)
    load_questions(name, split="train", revision="abc123", repository="me/mirror")
    assert asked == [
        (("RUC-NLPIR/FlashRAG_datasets", name), {"split": home.split, "revision": None}),
        (("me/mirror", name), {"split": "train", "revision": "abc123"}),
    ]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Loaded(list[dict[str, Any]]):
    """What ``datasets`` returns: rows, and the files they are kept in."""

    def __init__(self, folder: str) -> None:
        super().__init__([{"question": "q?", "golden_answers": ["a"]}])
        self.cache_files = [{"filename": f"cache/me___mirror/nq/0.0.0/{folder}/mirror-test.arrow"}]


@pytest.mark.parametrize(
    ("folder", "asked", "recorded", "told"),
    [
        (COMMIT, None, COMMIT, f"me/mirror (revision newest): loaded commit {COMMIT}"),
        (COMMIT, "main", COMMIT, f"me/mirror (revision main): loaded commit {COMMIT}"),
        (COMMIT, COMMIT, COMMIT, ""),
        ("8f14e45fceea167a", None, None, "loaded commit unknown"),
        ("8f14e45fceea167a", "v1", "v1", "(revision v1): loaded commit unknown"),
    ],
)
def test_the_commit_that_was_loaded_is_recorded_and_told(
    folder: str, asked: str | None, recorded: str | None, told: str, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Loaded(folder))
    (task,) = benchmark("nq", repository="me/mirror", revision=asked)
    assert task.metadata["loaded_from"] == {"name": "me/mirror", "config": "nq", "split": "test", "revision": recorded}
    assert len(caplog.messages) == bool(told)
    assert told in caplog.text


def test_a_benchmark_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    mirror = tmp_path / "mirror"
    (mirror / "nq").mkdir(parents=True)
    write(mirror / "nq" / "test.jsonl", {"question": "q?", "golden_answers": ["a", "b"]})
    configs = "configs:\n- config_name: nq\n  data_files:\n  - split: test\n    path: nq/test.jsonl\n"
    (mirror / "README.md").write_text(f"---\n{configs}---\n", encoding="utf-8")
    (task,) = benchmark("nq", repository=str(mirror))
    assert (task.id, task.question, task.answers) == ("nq-0", "q?", ("a", "b"))
    assert task.metadata["loaded_from"] == {"name": str(mirror), "config": "nq", "split": "test", "revision": None}
    with pytest.raises(DataError, match="split 'nosuch'"):
        benchmark("nq", repository=str(mirror), split="nosuch")


def test_benchmarks_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r'pip install "ovd-gym\[train\]"'):
        load_questions("nq")


def test_the_package_is_loaded_only_when_needed() -> None:
    code = "import sys, ovd_gym.envs.web_search.datasets; print('datasets' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# Names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("hotpot", {}, "did you mean 'hotpotqa'"),
        ("nq", {"splt": "dev", "data_files": 3}, "nq"),
        ("closed:nq", {"data_folder": "nowhere"}, "unknown closed set 'nq'"),
        ("closed:nq", {}, "data_folder"),
        ("some.jsonl", {"split": "dev"}, "unexpected keyword argument 'split'"),
        ("world", {"seeds": 1}, "unexpected keyword argument 'seeds'"),
        ("world:3", {}, "unknown question set 'world:3'"),
    ],
)
def test_errors_name_what_is_allowed(
    spec: str, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(name: str, config: str, split: str, revision: str | None) -> list[dict[str, Any]]:
        raise AssertionError("must not be called")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigError, match=message):
        load_questions(spec, **options)


def test_the_world_is_a_question_set() -> None:
    questions = load_questions("world", world_seed=1, size=80, hops=(2,), count=6, split="held_out")
    assert questions == World.generate(1, 80).tasks(hops=(2,), count=6, split="held_out")


# Closed sets ------------------------------------------------------------------------------------------------


def test_closed_sets_lie_in_the_folder_that_is_named(tmp_path: Path) -> None:
    write(tmp_path / "mini_closed.jsonl.gz", {"id": "1", "question": "q", "answers": ["a"], "gold_passage_ids": ["w0"]})
    write(tmp_path / "wiki_passages.jsonl.gz", {"id": "w0", "title": "T", "text": "a is it", "src": ["x"]})
    (task,) = load_questions("closed:mini", data_folder=tmp_path)
    (passage,) = closed_passages(tmp_path)
    assert task.metadata["gold_passage_ids"] == [passage.id]
    assert passage.metadata == {"src": ["x"]}
    with pytest.raises(ConfigError, match="did you mean 'mini'"):
        load_questions("closed:mimi", data_folder=tmp_path)


@needs_shared
@pytest.mark.parametrize("name", ["nq_open", "hotpotqa", "musique", "morehopqa", "2wikimultihopqa"])
def test_shared_closed_sets(name: str) -> None:
    tasks = closed_questions(name, data_folder=SHARED)
    assert len({task.id for task in tasks}) == len(tasks) > 40
    assert all(task.question and task.answers for task in tasks)


@needs_shared
def test_shared_gold_passages_are_among_the_passages() -> None:
    passages = {passage.id: passage for passage in closed_passages(SHARED)}
    for task in closed_questions("hotpotqa", data_folder=SHARED):
        ids, titles = task.metadata["gold_passage_ids"], task.metadata["gold_titles"]
        assert isinstance(ids, list)
        assert isinstance(titles, list)
        assert {passages[str(id)].title for id in ids} == set(titles)


@needs_shared
@pytest.mark.parametrize("file", sorted(SHARED.glob("*.jsonl.gz")) if SHARED.is_dir() else [], ids=lambda f: f.name)
def test_shared_question_files(file: Path) -> None:
    if file.name == "wiki_passages.jsonl.gz":
        assert len(closed_passages(SHARED)) == 12_766
    else:
        assert len(load_questions(str(file))) > 40
