"""The command line of searching: ``ovd-gym index build|add|query|info`` and ``ovd-gym serve-retriever``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

__all__ = ["app", "index"]

app = typer.Typer(no_args_is_help=True, help="Build and serve search indices.")
index = typer.Typer(no_args_is_help=True, help="Build, update, ask and inspect a full-text index.")
app.add_typer(index, name="index")

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")]
Sources = Annotated[
    list[Path],
    typer.Argument(
        metavar="SOURCE",
        help=".jsonl or .jsonl.gz files with id, title, text (or Search-R1's contents); .html files; folders of these.",
        show_default=False,
    ),
]
Memory = Annotated[int, typer.Option("--memory-mb", min=15, help="Memory for the writer, in megabytes.")]


@index.command(
    epilog="Example: ovd-gym index build wiki corpus.jsonl.gz\n\nExample: ovd-gym index build site pages/ --overwrite"
)
def build(
    path: IndexPath,
    sources: Sources,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that exists.")] = False,
    memory_mb: Memory = 64,
) -> None:
    """Build an index. It appears when it is complete; Ctrl-C leaves nothing behind."""
    from ovd_gym.envs.web_search.index_sources import read_passages
    from ovd_gym.envs.web_search.local import LocalIndex

    with _progress("building") as count:
        passages = count(read_passages(*sources))
        built = LocalIndex.build(path, passages, overwrite=overwrite, heap_bytes=memory_mb * 1_000_000)
    _say(f"{path}: {len(built):,} passages")


@index.command(epilog="Example: ovd-gym index add wiki more.jsonl")
def add(path: IndexPath, sources: Sources, memory_mb: Memory = 64) -> None:
    """Add passages; those with an id that is there already are replaced. All are added, or none."""
    from ovd_gym.envs.web_search.index_sources import read_passages
    from ovd_gym.envs.web_search.local import LocalIndex

    opened = LocalIndex.open(path)
    before = len(opened)
    with _progress("adding") as count:
        after = opened.add(count(read_passages(*sources)), heap_bytes=memory_mb * 1_000_000)
    _say(f"{path}: {after:,} passages, {before:,} before")


@index.command(epilog='Example: ovd-gym index query wiki "who wrote Dracula" --top-k 3')
def query(
    path: IndexPath,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to search for.")],
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, max=1000, help="Number of results.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Search, and print title, id, score and the part around the match."""
    from ovd_gym.envs.web_search.local import LocalIndex

    with LocalIndex.open(path) as opened:
        hits = opened.search(text, top_k)
    for rank, hit in enumerate(hits, start=1):
        if as_json:
            typer.echo(hit.model_dump_json())
        else:
            _say(f"{rank}. {hit.title}  [{hit.id}]  {hit.score:.2f}\n   {hit.snippet}")
    if not hits and not as_json:
        _say("nothing matched")


@index.command(epilog="Example: ovd-gym index info wiki")
def info(
    path: IndexPath, as_json: Annotated[bool, typer.Option("--json", help="The manifest as it is stored.")] = False
) -> None:
    """Show what an index holds, after comparing all of it with its checksums."""
    from ovd_gym.envs.web_search.index_store import verify
    from ovd_gym.envs.web_search.local import LocalIndex

    manifest = verify(path)
    if as_json:
        typer.echo(manifest.model_dump_json(indent=2))
        return
    with LocalIndex.open(path) as opened:
        facts: dict[str, Any] = dict(opened.describe())
    size = sum(file.bytes for file in manifest.files.values())
    facts |= {"format": manifest.version, "tantivy": manifest.tantivy, "size": f"{size / 1e6:,.1f} MB", "intact": "yes"}
    for name, value in facts.items():
        _say(f"{name.replace('_', ' '):14}{value if isinstance(value, str) else json.dumps(value)}")


@app.command("serve-retriever", epilog="Example: ovd-gym serve-retriever wiki --port 8000")
def serve_retriever(
    path: IndexPath,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    threads: Annotated[int, typer.Option(min=1, help="Threads that search.")] = 4,
) -> None:
    """Serve an index by the retriever API of Search-R1, until Ctrl-C or SIGTERM."""
    from ovd_gym.envs.web_search.local import LocalIndex
    from ovd_gym.envs.web_search.retriever_server import ServerLimits, serve

    opened = LocalIndex.open(path)
    serve(
        opened,
        host,
        port,
        limits=ServerLimits(threads=threads),
        on_ready=lambda url: _say(f"{len(opened):,} passages at {url}/retrieve; health at {url}/health; Ctrl-C stops"),
    )


class _Counter:
    """Counts passages as they go by, on a live line if there is a terminal."""

    def __init__(self, progress: Progress, what: str) -> None:
        self._progress = progress
        self._task = progress.add_task(what, total=None, rate=0.0)

    def __call__(self, passages: Iterator[Any]) -> Iterator[Any]:
        started = time.monotonic()
        for number, passage in enumerate(passages, start=1):
            if number % 500 == 0:
                rate = number / (time.monotonic() - started)
                self._progress.update(self._task, completed=number, rate=rate)
            yield passage


@contextmanager
def _progress(what: str) -> Iterator[_Counter]:
    console = Console(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description} {task.completed:,.0f} passages, {task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Counter(progress, what)


def _say(text: str) -> None:
    """Print as it is: titles and snippets may hold what would be markup to rich."""
    typer.echo("".join(c if c.isprintable() or c == "\n" else " " for c in text))
