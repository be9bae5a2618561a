"""From the files to the servers as they will run: validated, with the ports of `auto` addresses chosen."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from poolctl.config.load import load
from poolctl.config.model import ServerConfig
from poolctl.control.messages import Document
from poolctl.errors import PoolError, ServerError
from poolctl.listeners.ports import PortLedger


@dataclass
class Settled:
    """What the files came to: the servers in their order and the pool's name, or every problem and no servers."""

    name: str
    servers: list[ServerConfig] = field(default_factory=list)
    problems: list[Document] = field(default_factory=list)


def settle(files: Sequence[str], state_directory: str, name: str, env: Mapping[str, str]) -> Settled:
    """What the files say; `name` is the pool's where they name none. Blocks on the disk."""
    try:
        config = load(files, env)
        if config.problems:
            return Settled(name, problems=[problem.to_dict() for problem in config.problems])
        servers = _with_ports(list(config), state_directory, config.settings.port_range)
        return Settled(config.settings.name or name, servers)
    except PoolError as error:
        return Settled(name, problems=error.to_list())
    except ServerError as error:
        return Settled(name, problems=[error.to_dict()])


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
