"""The configuration in force: from the previous supervisor or from the files, and saved for the next one."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from poolctl.config import (
    Finding,
    ServerConfig,
    Surroundings,
    Tables,
    conflicts,
    dependency_findings,
    pool_variables,
)
from poolctl.control.answers import ErrorEntry
from poolctl.core.core import Core
from poolctl.errors import PoolError, ServerError
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION
from poolctl.runners import withheld
from poolctl.runners.link import Link

from .resolve_config import ConfigResolver, ResolvedConfig, default_name
from .takeover.state_store import SavedState, StateStore, StoredConfiguration

logger = logging.getLogger("poolctl.supervisor")


class ActiveConfiguration:
    """The pool's configuration: the servers are entries of the core, everything else is here.

    `environments` holds the variables that servers were given by command. `followers` are called with the tables other
    than [[server]] whenever those have changed.
    """

    def __init__(
        self,
        files: Sequence[str],
        state_directory: str,
        store: StateStore,
        environments: dict[str, Mapping[str, str]],
    ) -> None:
        self.files = list(files)
        self.name = default_name(files[0])
        self.missing: set[str] = set()  # names of servers of the files that were removed live
        self.placed: dict[str, ServerConfig] = {}
        self.problems: list[ErrorEntry] = []
        self.environments = environments
        self.tables = Tables()
        self.followers: list[Callable[[Tables], None]] = []
        self._resolver = ConfigResolver(files, state_directory, self.name)
        self._store = store
        self._environment: Mapping[str, str] | None = None
        self._surroundings = Surroundings()
        self._port_range = (0, 0)
        self._saved_revision = -1

    async def begin(self) -> list[ServerConfig]:
        """The servers with which a supervisor begins; none when there are `problems`."""
        stored = await self._store.configuration()
        if stored is None:
            saved = self._store.saved_state()
            resolved = await self.read(keep=saved.sources)
            self.problems = resolved.problems
            self.accept(resolved)
            servers = (
                resolved.servers if self.problems else await self._with_live_changes(resolved.servers, saved)
            )
            self._store.save_configuration(self._stored(servers))
            self._saved_revision = 0
            return servers
        self.name, self.placed, self.missing = stored.name, stored.placed, set(stored.missing)
        self._surroundings, self._port_range = stored.surroundings, stored.port_range
        self._environment = stored.environment
        self.tables = stored.tables
        self._withhold(stored.servers)
        self.environments.update(stored.environments)
        return stored.servers

    async def read(
        self, environment: Mapping[str, str] | None = None, *, keep: Collection[str] = ()
    ) -> ResolvedConfig:
        """Read the files; `environment` replaces the pool's own for `${VAR}`.

        The ports of `auto` addresses stay reserved for the servers that `keep` names, in the files or not.
        """
        env = environment or self.environment
        return await asyncio.to_thread(self._resolver.resolve, env, keep=keep)

    def accept(self, resolved: ResolvedConfig, environment: Mapping[str, str] | None = None) -> None:
        """Put in force what was read, with the environment that it was read with."""
        self.name = resolved.name
        self._surroundings, self._port_range = resolved.surroundings, resolved.port_range
        self._environment = environment or self._environment
        self.missing.clear()
        self._saved_revision = -1
        self._withhold(resolved.servers, resolved.tables)
        if resolved.tables != self.tables:
            self.tables = resolved.tables
            for follower in self.followers:
                follower(self.tables)

    def _withhold(self, servers: Iterable[ServerConfig], tables: Tables | None = None) -> None:
        """Withhold the variables named by `*_env` keys from servers."""
        names = pool_variables(servers, tables or self.tables, self._surroundings.defaults)
        withheld.withhold(names, only=True)

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that `${VAR}` refers to."""
        return os.environ if self._environment is None else self._environment

    async def _with_live_changes(self, servers: list[ServerConfig], saved: SavedState) -> list[ServerConfig]:
        """The servers with those added, and without those removed, before keeper and supervisor were killed."""
        there = {server.name: server for server in servers if server.name not in saved.missing}
        self.missing = {server.name for server in servers} - there.keys()
        for name, (table, base_dir) in saved.sources.items():
            try:
                server = await self.single(
                    table, base_dir, {each.address.port or 0 for each in there.values()}
                )
            except (PoolError, ServerError) as error:
                logger.warning("%s, which was added live, is dropped: %s", name, error)
                continue
            if obstacles(server, there.values()):
                logger.warning("%s, which was added live, is dropped: it conflicts with the files", name)
            else:
                there[name] = server
        return list(there.values())

    async def single(self, table: Mapping[str, Any], base_dir: str, taken: Collection[int]) -> ServerConfig:
        """A server to be added to those that have these ports.

        Raises PoolValidateError, and ServerError when no port is free.
        """

        def made() -> ServerConfig:
            server = self._surroundings.server(table, base_dir, self.environment)
            return self._resolver.port(server, self._port_range, taken)

        server = await asyncio.to_thread(made)
        withheld.withhold(pool_variables([server], Tables()))
        return server

    def save(self, core: Core) -> None:
        """Save what is in force for a successor, if it has changed."""
        if self._saved_revision == core.registry.revision:
            return
        self._saved_revision = core.registry.revision
        entries = core.entries.values()
        placed = {
            worker.id: worker.config
            for entry in entries
            for worker in entry.workers.values()
            if worker.config is not entry.config
        }
        self._store.save_configuration(self._stored([entry.config for entry in entries], placed))

    def _stored(
        self, servers: list[ServerConfig], placed: Mapping[str, ServerConfig] | None = None
    ) -> StoredConfiguration:
        return StoredConfiguration(
            self.name,
            servers,
            dict(placed or {}),
            sorted(self.missing),
            self._surroundings,
            self._port_range,
            self._environment,
            dict(self.environments),
            self.tables,
        )


class PoolEnvironment(NamedTuple):
    """The configuration, the link to the keeper, and the directories for runtime files and state."""

    configuration: ActiveConfiguration
    keeper: Link
    directory: str
    state_directory: str


def obstacles(added: ServerConfig, there: Iterable[ServerConfig]) -> tuple[int, list[Finding]] | None:
    """Why the server cannot be added to those `there`, with the exit code; None when it can."""
    together = [*there, added]
    names = [(each.name, each.address) for each in together]
    found = [finding for position, _, finding in conflicts(names) if position == len(together) - 1]
    if found:
        return CONFLICT, found
    found = [finding for server, finding in dependency_findings(together) if server is added]
    return (INVALID_CONFIGURATION, found) if found else None
