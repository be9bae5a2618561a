"""The commands that start and end processes, or wait for them: their options and their help."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import ORDERS, OUTPUT, SELECTION, TIMES, ByEnvironment, Force, NoDeps, Perform, Watched, command

_WAIT_FOR = typer.Option("--for", metavar="GOAL", help="ready (default), stopped, healthy, or any state.")
_LOG_FORMAT = typer.Option(
    "--log-format", metavar="FORM", help="The servers' output as text (default) or json."
)
_DEBUG = typer.Option("--debug", help="Be one server, in this terminal and unforked: breakpoints work.")
_STOP_TIMEOUT = typer.Option(
    "--stop-timeout", metavar="DURATION", help='The whole stop takes no longer; as PID 1 "8s".'
)


def add_commands(app: typer.Typer, perform: Perform) -> None:
    """Give `app` start, stop, restart, run and wait."""
    command(app, "start", "Start servers; return when each has answered.", perform, SELECTION, OUTPUT, ORDERS)
    command(
        app,
        "stop",
        "Stop servers; without a selection the supervisor too.",
        perform,
        SELECTION,
        OUTPUT,
        ORDERS,
    )
    command(
        app,
        "restart",
        "Replace servers; the new one answers before the old one ends.",
        perform,
        SELECTION,
        OUTPUT,
        ORDERS,
        env=(ByEnvironment, False),
        force=(Force, False),
    )
    command(
        app,
        "run",
        "Run the pool in the foreground, or for as long as CMD: -- CMD…",
        perform,
        SELECTION,
        OUTPUT,
        TIMES,
        no_deps=(NoDeps, False),
        watch=(Watched, False),
        debug=(Annotated[bool, _DEBUG], False),
        log_format=(Annotated[str | None, _LOG_FORMAT], None),
        stop_timeout=(Annotated[str | None, _STOP_TIMEOUT], None),
    )
    command(
        app,
        "wait",
        "Wait until servers are ready, stopped, healthy, or in a state.",
        perform,
        SELECTION,
        OUTPUT,
        TIMES,
        goal=(Annotated[str | None, _WAIT_FOR], None),
    )
