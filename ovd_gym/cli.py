"""The command line; no logic of its own.

Exit codes: 0 done, 1 an error explained in one line, 2 bad usage, 3 an evaluation in which episodes failed, 130 stopped
by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import ovd_gym
from ovd_gym import cli_eval, cli_fit, cli_new, cli_report, cli_search, cli_serve, cli_teachers
from ovd_gym.errors import ConfigError, OvdGymError
from ovd_gym.sanitize import visible

__all__ = ["app", "main"]

app = typer.Typer(
    name="ovd-gym",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train language-model agents from a teacher's digits.",
)


for part in (cli_eval, cli_report, cli_teachers, cli_fit, cli_new, cli_serve, cli_search):
    app.add_typer(part.app)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(ovd_gym.__version__)
        raise typer.Exit


Config = Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A YAML configuration.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="key=value, laid over the file.")]
Resume = Annotated[Path | None, typer.Option(help="Continue this run folder.")]


@app.command(epilog="Example: ovd-gym train examples/demo.yaml --set steps=5 --set learner.learning_rate=1e-4")
def train(config: Config = None, settings: Settings = None, resume: Resume = None) -> None:
    """Train a student and write a run folder."""
    _train(config, settings or [], resume)


@app.command(epilog="Example: ovd-gym sft warm_start.yaml --set steps=200")
def sft(config: Config = None, settings: Settings = None, resume: Resume = None) -> None:
    """Warm-start a student on its demonstrator's episodes: `train` with arm `imitation`."""
    arm = [] if resume else ["credit.arm=imitation", "rollout.group_size=1"]
    _train(config, [*arm, *(settings or [])], resume)


@app.command(epilog="Example: ovd-gym explain examples/demo.yaml --set learner.lora_rank=0")
def explain(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML configuration.")], settings: Settings = None
) -> None:
    """Say what a configuration will do: data flow, batch, and an estimate of memory and time."""
    from ovd_gym.config_files import load_config, parse_setting
    from ovd_gym.explain import explain as run

    run(load_config(config, dict(map(parse_setting, settings or []))), Console())


def _train(config: Path | None, settings: list[str], resume: Path | None) -> None:
    from ovd_gym.config_files import parse_setting
    from ovd_gym.training import train as run

    if (config is None) == (resume is None):
        raise ConfigError("give either a configuration file or --resume RUN")
    result = run(config, settings=dict(map(parse_setting, settings)), resume=resume)
    console = Console()
    if not result.outputs:
        raise typer.Exit(130)
    for row in result.evaluations:
        if row["accuracy"] is None:
            console.print(f"accuracy after {row['step']:>3} steps: no episode could be graded", highlight=False)
            continue
        console.print(
            f"accuracy after {row['step']:>3} steps: {row['accuracy']:.3f} "
            f"[{row['low']:.3f}, {row['high']:.3f}] on {row['episodes']} held-out episodes"
            + (", helped by the teacher's feedback" if row.get("helped") else ""),
            highlight=False,
            markup=False,
        )
    for path in (result.path, *result.outputs):
        console.print(str(path), highlight=False, markup=False, soft_wrap=True)


class _Visible(logging.Formatter):
    """Messages and tracebacks may quote a page, a server or a student: nothing in them acts on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def main() -> None:
    """Entry point: known errors become one line on standard error."""
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger().handlers[0].setFormatter(_Visible("%(message)s"))
    sys.path.append(os.getcwd())  # a module of one's own is named from where it lies; what is installed goes first
    try:
        app()
    except OvdGymError as error:
        print(f"error: {visible(str(error))}", file=sys.stderr)
        raise SystemExit(1) from None
