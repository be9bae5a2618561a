"""Working from the files alone: what the commands show of a pool that has no supervisor."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from poolctl import exit_codes
from poolctl.cli.outcome import Failure, Item, Outcome, error
from poolctl.cli.time_limit import expressions_limited
from poolctl.config import masked, values_of
from poolctl.control.directory import state_dir
from poolctl.control.messages import item
from poolctl.pool.select import select

if TYPE_CHECKING:
    from poolctl.cli.pool_ref import Place
    from poolctl.cli.request import Request
    from poolctl.config import PoolConfig, ServerConfig
    from poolctl.listeners.ports import PortLedger


def load(place: Place, *, allow_empty: bool = False) -> PoolConfig:
    """The pool's configuration. Failure (5) with every problem, also when it holds no server."""
    from poolctl.config import load as load_files

    config = load_files(place.files, os.environ)
    if config.problems:
        raise Failure(invalid(config))
    if not len(config) and not allow_empty:
        raise Failure(Outcome(errors=[no_server(place)], exit_code=exit_codes.INVALID_CONFIGURATION))
    return config


def invalid(config: PoolConfig) -> Outcome:
    """The outcome of a configuration with problems."""
    return Outcome(
        errors=[problem.to_dict() for problem in config.problems],
        warnings=[str(warning) for warning in config.warnings],
        exit_code=exit_codes.INVALID_CONFIGURATION,
    )


def no_server(place: Place) -> Item:
    """The problem of files that together hold no server."""
    files = ", ".join(os.path.relpath(file) for file in place.files)
    hint = "add a [[server]], or say --allow-empty"
    return error(exit_codes.INVALID_CONFIGURATION, f"{files}: no server is configured", hint)


def choose(items: list[Item], request: Request) -> list[Item]:
    """The items that the request selects. Failure (4) when nothing matches."""
    selector = request.selector()
    with expressions_limited():
        chosen, unmatched = select(items, selector)
    if unmatched is not None:
        raise Failure(Outcome.failed(exit_codes.NOTHING_MATCHED, unmatched.message, unmatched.hint))
    return chosen


def select_from_files(request: Request, place: Place) -> list[Item]:
    """The selected servers as the files have them, none of them running."""
    config = load(place, allow_empty=bool(request.get("allow_empty")))
    from poolctl.cli.survivors import items_of

    return choose(items_of(servers_of(config, place), place), request)


def servers_of(config: PoolConfig, place: Place) -> list[ServerConfig]:
    """The configured servers, `auto` ports as an earlier start has chosen them."""
    servers = list(config)
    if not any(server.address.auto for server in servers):
        return servers
    from poolctl.listeners.ports import PortLedger

    ledger = PortLedger(f"{state_dir(os.environ, place.key)}/ports.json", *config.settings.port_range)
    return [_with_known_port(server, ledger) for server in servers]


def _with_known_port(server: ServerConfig, ledger: PortLedger) -> ServerConfig:
    port = ledger.known(server.name) if server.address.auto else None
    return server if port is None else server.at(server.address.with_port(port))


def described(server: ServerConfig) -> Item:
    """A server with its effective configuration and where each value comes from."""
    return {**item(server), "config": server.to_dict(), "origin": server.origin}


def described_from_files(request: Request, place: Place) -> list[Item]:
    """The selected servers as the files have them, described; secrets masked unless `--reveal` is given."""
    config = load(place, allow_empty=bool(request.get("allow_empty")))
    items = [described(server) for server in servers_of(config, place)]
    if not request.get("reveal"):
        hidden = values_of(config.pool_variables, os.environ)
        items = [{**each, "config": masked(each["config"], hidden=hidden)} for each in items]
    return choose(items, request)
