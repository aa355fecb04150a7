"""The command line of serving environments: ``ovd-gym serve-env``."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["app", "serve_env"]

app = typer.Typer(help="Serve environments.")


@app.command(
    "serve-env", epilog="Example: ovd-gym serve-env 'ovd_gym/Math-v0 tasks=reasoning_gym:basic_arithmetic' --port 8000"
)
def serve_env(
    env: Annotated[str, typer.Argument(metavar="ENV", help="Environment id, options after it: 'ID key=value'.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    sessions: Annotated[int, typer.Option(min=1, help="Clients at a time.")] = 16,
    step_timeout_s: Annotated[
        float, typer.Option("--step-timeout", help="Seconds for a step; the episode of a longer one fails.")
    ] = 60.0,
    idle_timeout_s: Annotated[
        float, typer.Option("--idle-timeout", help="Seconds without a request after which a session is closed.")
    ] = 600.0,
) -> None:
    """Serve an environment to OpenEnv clients, until Ctrl-C or SIGTERM."""
    from ovd_gym.bridges.openenv import serve
    from ovd_gym.bridges.sessions import SessionLimits
    from ovd_gym.config_files import parse_spec

    name, options = parse_spec(env, "environment")
    serve(
        name,
        options,
        host,
        port,
        limits=SessionLimits(sessions, step_timeout_s, idle_timeout_s),
        on_ready=lambda url: typer.echo(
            f"{name} at {url} for {sessions} sessions; health at {url}/health; Ctrl-C stops"
        ),
    )
