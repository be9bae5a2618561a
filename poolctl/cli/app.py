"""The slow lane: the whole command line as a Typer application.

It is the one source of truth about commands and options: the fast lane's table and the shell completions are made
from it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from poolctl import __version__
from poolctl.cli import commands, live, seeing
from poolctl.cli.options import (
    FILTERS,
    HELP,
    METRICS,
    ORDERS,
    OUTPUT,
    SELECTION,
    TIMES,
    AllowEmpty,
    ByEnvironment,
    Config,
    NoDeps,
    Perform,
    PoolName,
    Quiet,
    Verbose,
    Watched,
    command,
)
from poolctl.cli.outcome import Outcome
from poolctl.exit_codes import USAGE

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

_WAIT_FOR = typer.Option("--for", metavar="GOAL", help="ready (default), stopped, healthy, or any state.")
_FIELD = typer.Option("--field", metavar="FIELD", help="Print this field of each server, one a line.")
_FILTER_FIELD = typer.Argument(metavar="FIELD", help="name, bind or expose.", show_default=False)
_FILTER_PATTERN = typer.Argument(
    metavar="PATTERN", help="Equals the field, ignoring case.", show_default=False
)
_REGEX = typer.Option("--regex", metavar="RE", help="Is found in the field.")
_TARGET = typer.Option("--target", metavar="FIELD", help="Print this field of each match, one a line.")
_HEALTHCHECK = typer.Option("--healthcheck", help="Exit with 1 instead of 3, as containers want it.")
_LOG_FORMAT = typer.Option(
    "--log-format", metavar="FORM", help="The servers' output as text (default) or json."
)
_STOP_TIMEOUT = typer.Option(
    "--stop-timeout", metavar="DURATION", help='The whole stop takes no longer; as PID 1 "8s".'
)
_SYSTEM = typer.Argument(metavar="SYSTEM", help="systemd.", show_default=False)
_INTO = typer.Option("-o", "--output", metavar="DIRECTORY", help="Write the files there, not to stdout.")
_FOR_USER = typer.Option("--user", help="For the user's own service manager.")
_LISTEN = typer.Option("--listen", metavar="NAME=ADDRESS", help="What systemd opens for a server on fd:NAME.")
_JOBS = typer.Option("-j", "--jobs", metavar="N", help="Run this many at once (default 1).")
_FAIL_FAST = typer.Option("--fail-fast", help="Start no other once one has failed.")
_IMPORT = typer.Option("--import", help="Import every app as well.")
_WITH_APP = typer.Option("--app", help="Write a tiny application too.")
_FORCE = typer.Option("--force", help="Overwrite what is there.")
_DIRECTORY = typer.Argument(metavar="DIRECTORY", help="Where to write; default: here.", show_default=False)
_SHELL = typer.Argument(metavar="SHELL", help="bash, zsh or fish; default: $SHELL.", show_default=False)


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
    )
    app.callback()(_before)
    _lifecycle(app, perform)
    live.add_commands(app, perform)
    _looking(app, perform)
    seeing.add_commands(app, perform)
    _files(app, perform)
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


def _lifecycle(app: typer.Typer, perform: Perform) -> None:
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
    )
    command(
        app,
        "run",
        "Run the pool in the foreground, or around a command: run -- CMD…",
        perform,
        SELECTION,
        OUTPUT,
        TIMES,
        no_deps=(NoDeps, False),
        watch=(Watched, False),
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


def _looking(app: typer.Typer, perform: Perform) -> None:
    field = (Annotated[str | None, _FIELD], None)
    command(app, "list", "List servers.", perform, SELECTION, OUTPUT, field=field)
    command(
        app,
        "filter",
        "List the servers of which a field equals a pattern or contains an expression.",
        perform,
        OUTPUT,
        FILTERS,
        filter_field=(Annotated[str, _FILTER_FIELD], ...),
        pattern=(Annotated[str | None, _FILTER_PATTERN], None),
        regex=(Annotated[str | None, _REGEX], None),
        target=(Annotated[str | None, _TARGET], None),
    )
    command(
        app,
        "walk",
        "Run a command once for each server: walk [SELECTOR] -- CMD…",
        perform,
        SELECTION,
        OUTPUT,
        jobs=(Annotated[str | None, _JOBS], None),
        fail_fast=(Annotated[bool, _FAIL_FAST], False),
    )
    command(
        app,
        "status",
        "Say whether all that should run is ready (0) or not (3).",
        perform,
        SELECTION,
        OUTPUT,
        healthcheck=(Annotated[bool, _HEALTHCHECK], False),
    )
    command(app, "show", "Show everything about servers.", perform, SELECTION, OUTPUT)
    command(app, "routes", "List the gateway's routes.", perform, OUTPUT)
    command(app, "dashboard", "Print the link to the pool's page, token included.", perform, OUTPUT)
    command(app, "metrics", "Print the pool's metrics for Prometheus.", perform, SELECTION, OUTPUT, METRICS)
    command(app, "hosts", "List the gateway's backends and their breakers.", perform, OUTPUT)


def _files(app: typer.Typer, perform: Perform) -> None:
    command(
        app,
        "validate",
        "Check the pool's files; report every problem.",
        perform,
        OUTPUT,
        import_apps=(Annotated[bool, _IMPORT], False),
        allow_empty=(AllowEmpty, False),
    )
    command(app, "config", "Print the effective configuration.", perform, SELECTION, OUTPUT)
    command(app, "schema", "Print the JSON Schema of the configuration.", perform)
    command(
        app,
        "init",
        "Write a starter pool.toml.",
        perform,
        directory=(Annotated[str | None, _DIRECTORY], None),
        with_app=(Annotated[bool, _WITH_APP], False),
        force=(Annotated[bool, _FORCE], False),
    )
    command(
        app,
        "completion",
        "Print the completion script of a shell.",
        perform,
        shell=(Annotated[str | None, _SHELL], None),
    )
    command(
        app,
        "export",
        "Write the pool for another system: systemd.",
        perform,
        system=(Annotated[str, _SYSTEM], ...),
        into=(Annotated[str | None, _INTO], None),
        for_user=(Annotated[bool, _FOR_USER], False),
        listen=(Annotated[list[str] | None, _LISTEN], None),
    )
    command(app, "pools", "List this user's pools, wherever their files are.", perform, OUTPUT)
    command(app, "doctor", "Find what is wrong with this machine or pool, and the mend.", perform, OUTPUT)
    command(app, "version", "Print the version.", perform, OUTPUT)


def perform_args(args: Sequence[str], perform: Perform = commands.perform) -> Outcome:
    """What a command line came to. Raises UsageError and what commands raise; prints nothing but help."""
    from poolctl.cli.usage import as_usage_error, split

    words, own_command = split(args, WITH_COMMAND)
    application = typer.main.get_command(build(perform))
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
