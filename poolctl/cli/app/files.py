"""The commands about files and machines, which need no running pool: their options and their help."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import OUTPUT, SELECTION, AllowEmpty, Perform, Reveal, command

_SYSTEM = typer.Argument(metavar="SYSTEM", help="systemd.", show_default=False)
_INTO = typer.Option("-o", "--output", metavar="DIRECTORY", help="Write the files there, not to stdout.")
_FOR_USER = typer.Option("--user", help="For the user's own service manager.")
_LISTEN = typer.Option("--listen", metavar="NAME=ADDRESS", help="What systemd opens for a server on fd:NAME.")
_IMPORT = typer.Option("--import", help="Import every app as well.")
_WITH_APP = typer.Option("--app", help="Write a tiny application too.")
_FORCE = typer.Option("--force", help="Overwrite what is there.")
_DIRECTORY = typer.Argument(metavar="DIRECTORY", help="Where to write; default: here.", show_default=False)
_SHELL = typer.Argument(metavar="SHELL", help="bash, zsh or fish; default: $SHELL.", show_default=False)


def add_commands(app: typer.Typer, perform: Perform) -> None:
    """Give `app` validate, config, schema, init, completion, export, pools, doctor and version."""
    command(
        app,
        "validate",
        "Check the pool's files; report every problem.",
        perform,
        OUTPUT,
        import_apps=(Annotated[bool, _IMPORT], False),
        allow_empty=(AllowEmpty, False),
    )
    command(
        app,
        "config",
        "Print the effective configuration.",
        perform,
        SELECTION,
        OUTPUT,
        reveal=(Reveal, False),
    )
    command(app, "schema", "Print the JSON Schema of the configuration.", perform)
    command(
        app,
        "init",
        "Write a starter pool.toml, or the FILE of -c.",
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
