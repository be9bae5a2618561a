"""The commands that change a running pool: their options and their help."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import (
    ALL,
    FILTERS,
    ORDERS,
    OUTPUT,
    TIMES,
    ByEnvironment,
    Force,
    NoWait,
    Perform,
    Watched,
    command,
)

_NUMBER = typer.Argument(metavar="TARGET… N", show_default=False, help="Names or addresses, then the number.")
_NAME = typer.Argument(metavar="NAME", show_default=False, help="The new server's name.")
_BIND = typer.Option("--bind", metavar="ADDRESS", help="Where it listens.")
_APP = typer.Option("--app", metavar="MODULE:ATTRIBUTE", help="What it serves.")
_SET = typer.Option("--set", metavar="KEY=VALUE", help="Another key of it: workers=2, env.LEVEL=debug.")
_FILE = typer.Option("-f", "--file", metavar="FILE", help="Add the servers of this file instead.")
_DRY_RUN = typer.Option("--dry-run", help="Print the difference and change nothing; exit 3 if there is one.")

_RESTART = typer.Option("--restart", help="Replace the servers' workers too, as restart does.")
_FORCE = typer.Option("--force", help="Even if the version is the same.")
_SAVE = typer.Option("--save", help="Write the change to the file too; its comments stay.")
_SHOW = typer.Option(
    "--dry-run", help="Print what --save would write and change nothing; exit 3 if anything."
)

_TARGETS = typer.Argument(
    metavar="TARGET", show_default=False, help="Names or addresses; * and ? are wildcards."
)
# These commands never mean all servers by default.
_REQUIRED_SELECTION: dict[str, tuple[Any, Any]] = {
    "targets": (Annotated[list[str] | None, _TARGETS], None),
    **FILTERS,
    **ALL,
}
SAVES: dict[str, tuple[Any, Any]] = {
    "save": (Annotated[bool, _SAVE], False),
    "dry_run": (Annotated[bool, _SHOW], False),
}
WAITS: dict[str, tuple[Any, Any]] = {**TIMES, "no_wait": (NoWait, False)}


def add_commands(app: typer.Typer, perform: Perform) -> None:
    """Give `app` reload, scale, drain, undrain, enable, disable, add, remove and upgrade."""
    command(
        app,
        "reload",
        "Apply the changed file: start, stop, restart what differs.",
        perform,
        OUTPUT,
        WAITS,
        dry_run=(Annotated[bool, _DRY_RUN], False),
        watch=(Watched, False),
        env=(ByEnvironment, False),
        force=(Force, False),
    )
    _add_overrides(app, perform)
    _add_membership(app, perform)
    command(
        app,
        "upgrade",
        "Let this version of poolctl take over a pool that runs.",
        perform,
        OUTPUT,
        TIMES,
        restart=(Annotated[bool, _RESTART], False),
        force=(Annotated[bool, _FORCE], False),
    )


def _add_overrides(app: typer.Typer, perform: Perform) -> None:
    selection = _REQUIRED_SELECTION
    numbered = {**selection, "targets": (Annotated[list[str] | None, _NUMBER], None)}
    command(
        app, "scale", "Change the number of workers: scale web 4.", perform, numbered, OUTPUT, WAITS, SAVES
    )
    rotation = (selection, OUTPUT, TIMES, {"save": SAVES["save"]})
    command(app, "drain", "Take servers out of rotation; they go on answering.", perform, *rotation)
    command(app, "undrain", "Take drained servers back into rotation.", perform, *rotation)
    command(app, "enable", "Enable servers, and start them.", perform, selection, OUTPUT, WAITS, SAVES)
    command(
        app,
        "disable",
        "Stop servers, and keep them stopped until enabled.",
        perform,
        selection,
        OUTPUT,
        WAITS,
        SAVES,
    )


def _add_membership(app: typer.Typer, perform: Perform) -> None:
    command(
        app,
        "add",
        "Add a server to the running pool.",
        perform,
        OUTPUT,
        WAITS,
        SAVES,
        server=(Annotated[str | None, _NAME], None),
        bind=(Annotated[str | None, _BIND], None),
        app=(Annotated[str | None, _APP], None),
        set=(Annotated[list[str] | None, _SET], None),
        file=(Annotated[str | None, _FILE], None),
    )
    command(
        app,
        "remove",
        "Stop servers, and take them out of the pool.",
        perform,
        _REQUIRED_SELECTION,
        OUTPUT,
        ORDERS,
        SAVES,
    )
