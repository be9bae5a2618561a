"""`poolctl validate`: reports every problem of every file in one run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from poolctl.cli.group import PoolCommand
from poolctl.cli.offline import no_server_outcome, servers_with_chosen_ports
from poolctl.cli.options import Form, examples, with_options
from poolctl.cli.outcome import Outcome
from poolctl.cli.place import Place
from poolctl.cli.pool_ref import find_pool
from poolctl.cli.render import server_count_text
from poolctl.control.answers import ErrorEntry, error_entries, item_from_config
from poolctl.exit_codes import DONE, INVALID_CONFIGURATION

if TYPE_CHECKING:
    from poolctl.config import Configuration

app = typer.Typer(add_completion=False)


@app.command(
    cls=PoolCommand,
    epilog=examples(
        "poolctl validate --import     import the applications too",
        "poolctl -c pool.toml -c production.toml validate",
    ),
)
@with_options
def validate(
    place: Place,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", readable=False, help="More files, like those of -c."),
    ] = None,
    output: Form = None,
    import_apps: Annotated[bool, typer.Option("--import", help="Also import every app.")] = False,
    allow_empty: Annotated[
        bool, typer.Option("--allow-empty", help="Accept files without a server.")
    ] = False,
) -> Outcome:
    """Check the pool's files; report every problem."""
    if files:
        place = replace(place, config=[*(place.config or ()), *files])
    pool = find_pool(place, missing_ok=True)
    from poolctl.config import load
    from poolctl.errors import PoolValidateError

    try:
        config = load(pool.files, os.environ)
    except PoolValidateError as unreadable:
        return _with_exit_code(Outcome(errors=error_entries(unreadable)))
    external_problems = config.check_external(import_apps=import_apps)
    items = [item_from_config(server) for server in servers_with_chosen_ports(config, pool)] if output else []
    outcome = Outcome(items, warnings=[str(warning) for warning in config.warnings])
    outcome.errors = [ErrorEntry.of(problem) for problem in (*config.problems, *external_problems)]
    if not outcome.errors and config.is_empty and not allow_empty:
        outcome.errors = no_server_outcome(pool).errors
    if not outcome.errors:
        outcome.message = _summary_line(config, import_apps=import_apps)
        outcome.notes = [*_notes(config)]
    return _with_exit_code(outcome)


def _summary_line(config: Configuration, *, import_apps: bool) -> str:
    routes = config.tables.routes
    content = server_count_text(len(config))
    if routes and not len(config):
        content = f"no server, {routes} route{'s' * (routes > 1)}"
    is_checked = import_apps or all(server.command for server in config)
    return f"{content}, ok{'' if is_checked else ' (applications not imported: --import)'}"


def _notes(config: Configuration) -> Iterator[str]:
    names = [name for name, middleware in config.wsgi_middleware.items() if middleware == "a2wsgi"]
    if names:
        yield f"WSGI, served by a2wsgi: {', '.join(names)}"
    from poolctl.config import active_environment, directory_of

    # A systemd unit has no active environment.
    active = active_environment(os.environ)
    is_below = any(f"{active}/".startswith(f"{directory_of(file)}/") for file in config.files)
    if active and not is_below and any((server.python or "").startswith(f"{active}/") for server in config):
        yield f"servers run in the active environment {active}; python = {active!r} names it"
    # A server that relies on such a variable would otherwise fail only when it runs in the pool.
    if names := sorted(config.secret_variable_names):
        hint = f'env = {{ {names[0]} = "${{{names[0]}}}" }} passes it to a server'
        yield f"not passed to servers: {', '.join(names)} (used by the pool itself); {hint}"


def _with_exit_code(outcome: Outcome) -> Outcome:
    """Set the exit code to 0, or 5 for an invalid configuration, and have errors printed to standard output."""
    outcome.errors_are_result = True
    outcome.exit_code = INVALID_CONFIGURATION if outcome.errors else DONE
    return outcome
