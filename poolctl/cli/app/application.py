"""The slow lane: the whole command line as a Typer application.

It is the one source of truth about commands and options: the fast lane's table and the shell completions are made
from it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from poolctl import __version__
from poolctl.cli import commands
from poolctl.cli.outcome import Outcome
from poolctl.exit_codes import USAGE

from . import files, lifecycle, live, looking, seeing
from .examples import beginning
from .options import HELP, Config, Perform, PoolName, Quiet, Verbose

FAST = (
    "list",
    "status",
    "wait",
    "start",
    "stop",
    "restart",
    "run",
    "walk",
    "show",
    "logs",
    "events",
    "top",
    "config",
    "validate",
    "reload",
    "scale",
    "drain",
    "undrain",
    "enable",
    "disable",
    "remove",
)
# These take a command of the user's after `--`; for all others `--` ends the options.
WITH_COMMAND = ("walk", "run")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poolctl {__version__}")
        raise typer.Exit


_VERSION = typer.Option(
    "--version", is_eager=True, callback=_print_version, help="Show the version and exit."
)


def build(perform: Perform = commands.perform) -> typer.Typer:
    """The application. Its commands hand their requests to `perform`."""
    app = typer.Typer(
        name="poolctl",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=HELP,
        help="A pool of HTTP servers: one file, one command, sockets that never close.",
        epilog=beginning(),
    )
    app.callback()(_before)
    for group in (lifecycle, live, looking, seeing, files):
        group.add_commands(app, perform)
    return app


def _before(
    ctx: typer.Context,
    config: Config = None,
    pool: PoolName = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    version: Annotated[bool, _VERSION] = False,
) -> None:
    given = {"config": config or [], "pool": pool, "quiet": quiet, "verbose": verbose}
    ctx.obj = {**(ctx.obj or {}), **given}


@functools.cache
def _application(perform: Perform) -> Any:
    """The commands for whoever performs them. Made once: Typer takes 50 ms for it."""
    return typer.main.get_command(build(perform))


def perform_args(args: Sequence[str], perform: Perform = commands.perform) -> Outcome:
    """What a command line came to. Raises UsageError and what commands raise; prints nothing but help."""
    from poolctl.cli.usage import as_help, as_usage_error, split

    words, own_command = split(as_help(list(args)), WITH_COMMAND)
    application = _application(perform)
    if not words:
        with contextlib.redirect_stdout(sys.stderr):
            application.main(["--help"], prog_name="poolctl", standalone_mode=False)
        return Outcome(exit_code=USAGE)
    try:
        result = application.main(words, prog_name="poolctl", standalone_mode=False, obj=own_command)
    except Exception as error:
        usage = as_usage_error(error, words)
        if usage is None:
            raise
        raise usage from None
    return result if isinstance(result, Outcome) else Outcome()
