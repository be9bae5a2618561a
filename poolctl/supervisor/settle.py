"""From the files to the servers as they will run: validated, with the ports of `auto` addresses chosen."""

from __future__ import annotations

import os
from collections.abc import Sequence

from poolctl.config.load import load
from poolctl.config.model import ServerConfig
from poolctl.control.messages import Document
from poolctl.errors import PoolError, ServerError
from poolctl.listeners.ports import PortLedger


def settle_configuration(
    files: Sequence[str], state_directory: str, name: str
) -> tuple[list[ServerConfig], str, list[Document]]:
    """The servers in the file's order, the pool's name, and every problem (then there are no servers). Blocks."""
    try:
        config = load(files, os.environ)
        if config.problems:
            return [], name, [problem.to_dict() for problem in config.problems]
        name = config.settings.name or name
        return _with_ports(list(config), state_directory, config.settings.port_range), name, []
    except PoolError as error:
        return [], name, error.to_list()
    except ServerError as error:
        return [], name, [error.to_dict()]


def _with_ports(
    servers: list[ServerConfig], state_directory: str, port_range: tuple[int, int]
) -> list[ServerConfig]:
    if not any(server.address.auto for server in servers):
        return servers
    ledger = PortLedger(os.path.join(state_directory, "ports.json"), *port_range)
    ledger.keep_only(server.name for server in servers)
    fixed = {server.address.port for server in servers if server.address.port}
    settled = []
    for server in servers:
        if server.address.auto:
            port = ledger.port(server.name, server.address, avoid=fixed)
            server = server.at(server.address.with_port(port))
        settled.append(server)
    return settled
