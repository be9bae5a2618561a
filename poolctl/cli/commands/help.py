"""`poolctl help`: prints the help of a command, or with --all the list of every command."""

from __future__ import annotations

from typing import Annotated

import typer

from poolctl.cli.group import PoolCommand, PoolGroup

app = typer.Typer(add_completion=False)


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    root = ctx.find_root().command
    return [name for name in getattr(root, "commands", ()) if name.startswith(incomplete)]


@app.command(cls=PoolCommand)
def show_help(
    ctx: typer.Context,
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help="The command to explain.", autocompletion=_names)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="List every command.")] = False,
) -> None:
    """Show the help of a command, or every command."""
    root = ctx.find_root()
    assert isinstance(root.command, PoolGroup)
    if command is None:
        root.resilient_parsing = every  # lists what --help leaves out
        typer.echo(root.get_help(), nl=bool(root.command.rich_markup_mode is None))
        return
    name, explained, _ = root.command.resolve_command(root, [command])
    explained.make_context(name, ["--help"], parent=root)
