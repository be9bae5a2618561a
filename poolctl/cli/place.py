"""The options with which every command finds its pool, and for verbosity."""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer


def _merge_with_global_option(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """`poolctl -c x list` means `poolctl list -c x`; files given before and after the command are joined."""
    before = ctx.parent.params.get(param.name or "") if ctx.parent else None
    if not before:
        return value
    return [*before, *(value or ())] if isinstance(before, list | tuple) else value or before


def _pools(incomplete: str) -> list[str]:
    """The names of running pools, for completion."""
    from poolctl.control.pool_paths import runtime_root_candidates

    roots = [root for root in runtime_root_candidates(os.environ) if os.path.isdir(root)]
    names = {entry[1:] for root in roots for entry in os.listdir(root) if entry.startswith("@")}
    return sorted(name for name in names if name.startswith(incomplete))


_place = functools.partial(
    typer.Option, rich_help_panel="Global options", show_default=False, callback=_merge_with_global_option
)


@dataclass(frozen=True)
class Place:
    """Which pool a command is about, and how much it says; these options may also precede the command."""

    config: Annotated[
        list[Path] | None,
        _place(
            "-c",
            "--config",
            metavar="FILE",
            readable=False,  # the configuration says what is wrong with it
            help="The pool's file; repeatable, later ones override.",
        ),
    ] = None
    pool: Annotated[
        str | None, _place("--pool", metavar="NAME", help="Name of a running pool.", autocompletion=_pools)
    ] = None
    quiet: Annotated[bool, _place("-q", "--quiet", help="Print only results and errors.")] = False
    verbose: Annotated[bool, _place("-v", "--verbose", help="Print more details.")] = False
