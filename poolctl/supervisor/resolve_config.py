"""The servers of the files as they will run: validated, with the ports of `auto` addresses chosen."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from poolctl.config import Configuration, ServerConfig, Surroundings, Tables, load
from poolctl.control.answers import ErrorEntry, entries
from poolctl.errors import PoolError, ServerError
from poolctl.listeners.port_ledger import PortLedger

_USUAL = frozenset({"pool.toml", "pool.yaml", "pool.yml", "pool.json", "pyproject.toml"})


@dataclass
class ResolvedConfig:
    """The result of reading the files: the servers in their order and the pool's name, or the problems."""

    name: str
    servers: list[ServerConfig] = field(default_factory=list)
    problems: list[ErrorEntry] = field(default_factory=list)
    surroundings: Surroundings = field(default_factory=Surroundings)
    port_range: tuple[int, int] = (0, 0)
    config: Configuration | None = None
    tables: Tables = field(default_factory=Tables)

    def outside(self, names: Collection[str]) -> list[ErrorEntry]:
        """The problems of the files, users and programs that these servers name; blocks on the disk.

        Warnings are found for all servers.
        """
        if self.config is None:
            return []
        found = self.config.outside(names=names)
        return [ErrorEntry.of(problem) for problem in found] if names else []

    @property
    def warnings(self) -> list[str]:
        """Warnings; after `outside` also those that it found."""
        return [str(warning) for warning in self.config.warnings] if self.config is not None else []


class ConfigResolver:
    """Reads the files of one pool; `name` is used where they name none."""

    def __init__(self, files: Sequence[str], state_directory: str, name: str) -> None:
        self._files = list(files)
        self._ledger = os.path.join(state_directory, "ports.json")
        self._name = name

    def resolve(self, env: Mapping[str, str], *, keep: Collection[str] | None = None) -> ResolvedConfig:
        """Read the files, with `env` for `${VAR}`. Blocks on the disk.

        Ports stay reserved for the servers of the files, and for those that `keep` names.
        """
        try:
            config = load(self._files, env)
            if config.problems:
                return ResolvedConfig(
                    self._name, problems=[ErrorEntry.of(problem) for problem in config.problems]
                )
            settings = config.settings
            base_dir = os.path.dirname(self._files[0])
            return ResolvedConfig(
                settings.name or self._name,
                self._with_ports(list(config), settings.port_range, keep or ()),
                surroundings=Surroundings(config.defaults, base_dir, settings.handlers),
                port_range=settings.port_range,
                config=config,
                tables=config.tables,
            )
        except PoolError as error:
            return ResolvedConfig(self._name, problems=[*entries(error)])
        except ServerError as error:
            return ResolvedConfig(self._name, problems=[ErrorEntry.of(error)])

    def port(self, server: ServerConfig, port_range: tuple[int, int], avoid: Collection[int]) -> ServerConfig:
        """The server with its chosen port, if its address is `auto`. Raises ServerError; blocks."""
        if not server.address.auto:
            return server
        ledger = PortLedger(self._ledger, *port_range)
        return server.at(server.address.with_port(ledger.port(server.name, server.address, avoid=avoid)))

    def _with_ports(
        self, servers: list[ServerConfig], port_range: tuple[int, int], keep: Collection[str]
    ) -> list[ServerConfig]:
        if not any(server.address.auto for server in servers):
            return servers
        ledger = PortLedger(self._ledger, *port_range)
        names = {server.name for server in servers}
        ledger.keep_only([*names, *keep])
        vacated = [port for name in keep if name not in names and (port := ledger.known(name)) is not None]
        taken = {server.address.port for server in servers if server.address.port}
        settled = []
        for server in servers:
            if server.address.auto:
                port = ledger.port(server.name, server.address, avoid=taken, vacated=vacated)
                taken.add(port)
                server = server.at(server.address.with_port(port))
            settled.append(server)
        return settled


def default_name(file: str) -> str:
    """The name of a pool that has none: its directory's for a file of a usual name, else the file's own."""
    directory, base = os.path.split(file)
    name = os.path.basename(directory) if base in _USUAL else os.path.splitext(base)[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "pool"
