"""The application: every command in one list, and the options that may precede a command."""

import contextlib
import sys
from typing import Annotated

import typer

from poolctl import __version__
from poolctl.cli.group import PoolGroup
from poolctl.cli.options import with_options
from poolctl.cli.place import Place
from poolctl.exit_codes import USAGE
from poolctl.feature import features

app = typer.Typer(
    name="poolctl",
    cls=PoolGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog="poolctl help COMMAND shows a command's options and examples; help --all lists every command.",
)


def _add(panel: str, name: str, help: str, *, first: bool = False, module: str = "") -> None:
    """Register commands/NAME.py. Only commands that come `first` are in `poolctl --help`."""

    def placeholder() -> None:
        """Replaced by the command of the module when it is named."""

    app.command(name, help=help, rich_help_panel=panel)(placeholder)
    PoolGroup.modules[name] = module or f"poolctl.cli.commands.{name}"
    if not first:
        PoolGroup.more |= {name}


def _add_of_features(panel: str) -> None:
    for feature in features():
        for name, command in feature.commands.items():
            if command.panel == panel:
                module = f"{feature.package}.{command.module}"
                _add(panel, name, command.help, first=command.first, module=module)


_add("Get started", "init", "Write a starter pool.toml, or the file that -c names.", first=True)
_add("Get started", "run", "Run the pool in the foreground, or around a command.", first=True)
_add("Get started", "validate", "Check the pool's files; report every problem.", first=True)
_add_of_features("Get started")
_add("Lifecycle", "start", "Start servers; return when each is ready.", first=True)
_add("Lifecycle", "restart", "Replace servers without refusing a connection.", first=True)
_add("Lifecycle", "stop", "Stop servers; without a selection the supervisor too.", first=True)
_add("Lifecycle", "wait", "Wait until servers are ready, stopped, healthy, or in a state.")
_add("Lifecycle", "drain", "Take servers out of rotation; they keep answering.")
_add("Lifecycle", "undrain", "Put drained servers back into rotation.")
_add("Lifecycle", "signal", "Send a signal to the workers of servers.")
_add("Lifecycle", "enable", "Enable servers and start them.")
_add("Lifecycle", "disable", "Stop servers, and keep them stopped until enabled.")
_add_of_features("Lifecycle")
_add("Look", "list", "List servers.", first=True)
_add("Look", "status", "Show whether every enabled server is ready (exit 0) or not (3).", first=True)
_add("Look", "show", "Show everything about servers.", first=True)
_add("Look", "logs", "Show the servers' output.", first=True)
_add("Look", "filter", "List servers whose name, bind or expose matches a pattern.", first=True)
_add("Look", "walk", "Run a command once for each server.", first=True)
_add("Look", "exec", "Run a command in a server's environment and directory, as its user.")
_add("Look", "events", "Show events: lifecycle, health, recovery, who did what.")
_add("Look", "health", "Show the health of the servers and the gateway's routes.")
_add("Look", "metrics", "Print the pool's metrics for Prometheus.")
_add("Look", "stacks", "Show what the threads and tasks of workers do now.")
_add_of_features("Look")
_add("Change", "reload", "Apply the changed file: start, stop, restart what differs.", first=True)
_add("Change", "scale", "Change the number of workers.", first=True)
_add("Change", "add", "Add a server to the running pool.")
_add("Change", "remove", "Stop servers, and take them out of the pool.")
_add_of_features("Change")
_add("Files", "config", "Print the effective configuration.")
_add("Files", "export", "Write the pool as files for another system.")
_add_of_features("Files")
_add("Machine", "help", "Show the help of a command, or every command.")
_add("Machine", "pools", "List this user's running pools, wherever their files are.")
_add("Machine", "upgrade", "Upgrade a running pool to this version of poolctl.")
_add_of_features("Machine")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poolctl {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
@with_options
def poolctl(
    ctx: typer.Context,
    place: Place,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Show the version and exit.",
            rich_help_panel="Global options",
        ),
    ] = False,
) -> None:
    """A pool of HTTP servers: one file, one command, sockets that never close.

    To begin with: init writes a starter pool.toml, validate checks it, start runs it in the background, list shows it.
    """
    if ctx.invoked_subcommand is None:
        with contextlib.redirect_stdout(sys.stderr):
            typer.echo(ctx.get_help())
        raise typer.Exit(USAGE)
