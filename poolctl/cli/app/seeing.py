"""The commands that show what happens in a pool: their options and their help."""

from __future__ import annotations

from typing import Annotated

import typer

from poolctl.cli.top.board import SORTS

from .options import OUTPUT, SELECTION, Perform, command

_FOLLOW = typer.Option("-f", "--follow", help="Go on with what comes.")
_EVENTS = typer.Option("-n", "--lines", metavar="N", help='The last N events (default 100), or "all".')
_SINCE = typer.Option("--since", metavar="TIME", help='Not older than "10m", or than an ISO 8601 time.')
_WORDS = typer.Argument(metavar="test [NAME]", show_default=False, help="Names of receivers; none for all.")
_KIND = typer.Option("--kind", metavar="KIND", help="Of this kind: lifecycle, health, audit, recovery, …")
_LINES = typer.Option("-n", "--lines", metavar="N", help="The last N lines of each server (default 100).")
_RAW = typer.Option("--raw", help="Lines as the servers wrote them: no names, JSON as it is.")
_REOPEN = typer.Option("--reopen", help="Open the log files anew: another program has moved them away.")
_FRAMES = typer.Option(
    "-n", "--frames", metavar="N", help="End after N views; without a terminal: print them."
)
_ONCE = typer.Option("--once", help="Print one view and end.")
_INTERVAL = typer.Option("--interval", metavar="DURATION", help='Look this often (default "2s").')
_SORT = typer.Option("--sort", metavar="COLUMN", help=f"{', '.join(SORTS)}.")


def add_commands(app: typer.Typer, perform: Perform) -> None:
    """Give `app` logs, events, notify and top."""
    command(
        app,
        "logs",
        "Show what servers have written.",
        perform,
        SELECTION,
        OUTPUT,
        follow=(Annotated[bool, _FOLLOW], False),
        lines=(Annotated[str | None, _LINES], None),
        since=(Annotated[str | None, _SINCE], None),
        raw=(Annotated[bool, _RAW], False),
        reopen=(Annotated[bool, _REOPEN], False),
    )
    command(
        app,
        "events",
        "Show what has happened: lifecycle, health, who did what.",
        perform,
        SELECTION,
        OUTPUT,
        follow=(Annotated[bool, _FOLLOW], False),
        lines=(Annotated[str | None, _EVENTS], None),
        since=(Annotated[str | None, _SINCE], None),
        kind=(Annotated[list[str] | None, _KIND], None),
    )
    command(
        app,
        "notify",
        "Send a test message to those who are told of problems.",
        perform,
        OUTPUT,
        words=(Annotated[list[str] | None, _WORDS], None),
    )
    command(
        app,
        "top",
        "Watch servers live; ? there shows the keys.",
        perform,
        SELECTION,
        OUTPUT,
        frames=(Annotated[str | None, _FRAMES], None),
        once=(Annotated[bool, _ONCE], False),
        interval=(Annotated[str | None, _INTERVAL], None),
        sort=(Annotated[str | None, _SORT], None),
    )
