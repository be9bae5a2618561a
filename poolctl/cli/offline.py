"""A pool without a supervisor: its servers according to the files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from poolctl import exit_codes
from poolctl.cli.options import Filters
from poolctl.cli.outcome import Failure, Outcome
from poolctl.cli.pool_ref import PoolRef
from poolctl.cli.render import problem_text, rests_until_named
from poolctl.config import masked, values_to_mask
from poolctl.control.answers import ErrorEntry, Item, error_entries, item_from_config
from poolctl.control.pool_paths import state_dir
from poolctl.control.server_answers import ServerDescription
from poolctl.errors import PoolError
from poolctl.json_form import Table
from poolctl.selection.selector import NothingMatched, select

if TYPE_CHECKING:
    from poolctl.config import Configuration, ServerConfig

Server = TypeVar("Server", bound=Item)


def load(
    ref: PoolRef,
    *,
    allow_empty: bool = False,
    env_files: bool = True,
    in_env: str = "",
    several_bind: bool = False,
) -> Configuration:
    """The pool's configuration from its files. Raises PoolValidateError if a file is unreadable.

    Without `env_files`, `.env` files are not used for `${VAR}`: their values must stay on this machine. With a format
    `in_env`, references in `env` are written in that format instead of being resolved. With `several_bind`, each worker
    will have a separate address.
    Raises Failure (exit 5) with all problems, and for a pool without servers unless `allow_empty`.
    """
    from poolctl.config import load as load_files

    config = load_files(
        ref.files,
        os.environ,
        env_files=env_files,
        in_env=in_env,
        several_bind=several_bind,
    )
    if config.problems:
        errors, warnings = map(ErrorEntry.of, config.problems), map(str, config.warnings)
        code = exit_codes.INVALID_CONFIGURATION
        raise Failure(Outcome(errors=[*errors], warnings=[*warnings], exit_code=code))
    if config.is_empty and not allow_empty:
        raise Failure(no_server_outcome(ref))
    return config


def warning_of_unusable_files(failure: PoolError | Failure, consequence: str) -> str:
    """The warning that a command works without the pool's files, and the effect on its result."""
    errors = failure.outcome.errors if isinstance(failure, Failure) else error_entries(failure)
    return f"{problem_text(errors[0])}; {consequence} (`poolctl validate` shows the fix)"


def no_server_outcome(ref: PoolRef) -> Outcome:
    """The outcome for files without any server."""
    files = ", ".join(os.path.relpath(file) for file in ref.files)
    hint = "add a [[server]], or a [[route]] to a URL; or use --allow-empty"
    return Outcome.failed(exit_codes.INVALID_CONFIGURATION, f"{files}: no server is configured", hint)


def choose(items: Sequence[Server], selection: Filters) -> list[Server]:
    """The selected items. Raises Failure (exit 4) if nothing matches."""
    selector = selection.selector()
    try:
        return select(items, selector)
    except NothingMatched as error:
        raise Failure(Outcome.failed(exit_codes.NOTHING_MATCHED, error.message, error.hint)) from None


def select_from_files(selection: Filters, ref: PoolRef) -> list[Item]:
    """Return the selected servers in the files.

    Raises the exceptions of `load` and `choose`.
    """
    config = load(ref, allow_empty=selection.allow_empty)
    return choose([*map(item_from_config, servers_with_chosen_ports(config, ref))], selection)


def servers_with_chosen_ports(
    config: Configuration, ref: PoolRef, *, choose_ports: bool = False
) -> list[ServerConfig]:
    """The configured servers, with the ports that an earlier start chose for `auto`.

    A port that was not chosen yet stays `auto`, or with `choose_ports` is chosen now.
    """
    servers = list(config)
    if not any(server.address.auto for server in servers):
        return servers
    from poolctl.listeners.port_ledger import PortLedger

    path = f"{state_dir(os.environ, ref.key, create=choose_ports)}/ports.json"
    ledger = PortLedger(path, *config.settings.port_range, key=ref.key)
    taken = {server.address.port or 0 for server in servers}
    for at, server in enumerate(servers):
        if server.address.auto:
            port = ledger.stored_port(server.name)
            if choose_ports:
                port = ledger.assign_port(server.name, server.address, avoid=taken)
                taken.add(port)
            if port is not None:
                servers[at] = server.at(server.address.with_port(port))
    return servers


def described(server: ServerConfig, config: Configuration) -> ServerDescription:
    """A server with its effective configuration and the origin of each value."""
    from poolctl.control.server_answers import ServerDescription

    item = vars(item_from_config(server))
    return ServerDescription(**item, config=server.to_dict(), origin=config.origin_of(server))


def described_from_files(
    selection: Filters, ref: PoolRef, *, reveal: bool = False
) -> list[ServerDescription]:
    """Descriptions of the selected servers in the files; secrets are masked unless `reveal`.

    Raises Failure if nothing matches.
    """
    config = load(ref, allow_empty=selection.allow_empty)
    items = [described(server, config) for server in servers_with_chosen_ports(config, ref)]
    items = _with_routes(items, config)
    if not reveal:
        hidden = values_to_mask(config.secret_variable_names, os.environ)
        items = [replace(item, config=masked(item.config, hidden=hidden)) for item in items]
    return choose(items, selection)


def _with_routes(items: list[ServerDescription], config: Configuration) -> list[ServerDescription]:
    from poolctl.config import routes_of
    from poolctl.control.gateway_answers import routes_to_servers
    from poolctl.routing.route import ExcludedRoute

    routes = routes_of(config, config.tables)
    if routes is None:
        return items
    by_server = routes_to_servers(route for route in routes if not isinstance(route, ExcludedRoute))
    return [replace(item, routes=by_server.get(item.name, ())) for item in items]


def summary_of(items: list[Item], ref: PoolRef) -> Table:
    """The summary of a pool without a supervisor, as in the answer to `status`."""
    return {
        "files": ref.files,
        "supervisor_pid": None,
        "keeper_pid": None,
        "servers": len(items),
        "should_run": sum(not (item.state == "disabled" or rests_until_named(item)) for item in items),
        "ready": sum(item.ready for item in items),
        "states": Counter(item.state for item in items),
        "health": Counter(item.health for item in items),
    }
