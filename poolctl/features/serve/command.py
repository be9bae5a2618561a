"""`poolctl serve NAME`: runs one server as one process, without a pool: the main process of a container."""

from __future__ import annotations

from typing import Annotated

import typer

from poolctl.cli import completion
from poolctl.cli.group import PoolCommand
from poolctl.cli.options import Selection, duration, examples, with_options
from poolctl.cli.place import Place

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl serve web                 until SIGTERM or Ctrl-C",
        "poolctl serve web --listen 0.0.0.0:8000 --health 0.0.0.0:9000",
    ),
)
@with_options
def serve(
    place: Place,
    name: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]",
            help="The server; not needed if the file has only one.",
            autocompletion=completion.targets,
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen", metavar="ADDRESS", help="Listen on this address instead of the server's bind."
        ),
    ] = None,
    health: Annotated[
        str | None,
        typer.Option(
            "--health",
            metavar="ADDRESS",
            help="Answer /health and /health/live on this address, such as 0.0.0.0:9000.",
        ),
    ] = None,
    stop_delay: Annotated[
        float,
        typer.Option(
            "--stop-delay",
            metavar="DURATION",
            parser=duration,
            show_default=False,
            help="After SIGTERM, serve on for this time before draining; /health answers 503.",
        ),
    ] = 0.0,
) -> None:
    """Run one server as one process, for a container: no supervisor, no restarts.

    There is one worker. What runs the container restarts it: workers, scale, restart and limits.memory do not apply. A
    command is run as a child.
    """
    from ._launch import become_server

    become_server(place, Selection(targets=name), listen=listen, health=health, stop_delay=stop_delay)
