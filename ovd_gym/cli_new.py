"""The command line of extending: ``ovd-gym new``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "new"]

app = typer.Typer(help="Write a package of one's own.")


class Part(StrEnum):
    """What the package adds."""

    env = "env"
    teacher = "teacher"


@app.command(epilog="Example: ovd-gym new env warehouse\n\nExample: ovd-gym new teacher my-critic --folder ~/code")
def new(
    kind: Annotated[Part, typer.Argument(help="A tool environment, or a teacher.")],
    name: Annotated[str, typer.Argument(help="Of the package, such as my-critic.")],
    folder: Annotated[Path, typer.Option(help="Where its folder goes.")] = Path(),
) -> None:
    """Write a package with an environment or a teacher to start from: a module, and a test that passes."""
    from ovd_gym.scaffold import write_package

    path = write_package(kind.value, name, folder)
    for file in sorted(path.rglob("*")):
        if file.is_file():
            typer.echo(str(file))
    typer.echo(f"test it: cd {path} && python -m pytest    install it: pip install -e {path}")
