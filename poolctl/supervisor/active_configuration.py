"""The configuration in force: from the supervisor before, or from the files; left to the supervisor that follows."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from poolctl.config import (
    Finding,
    ServerConfig,
    Surroundings,
    Tables,
    conflicts,
    dependency_findings,
    pool_variables,
)
from poolctl.control.messages import Document
from poolctl.core.core import Core
from poolctl.errors import PoolError, ServerError
from poolctl.exit_codes import CONFLICT, INVALID_CONFIGURATION
from poolctl.runners import withheld

from .resolve_config import ConfigResolver, ResolvedConfig, default_name
from .takeover.state_store import Kept, Left, StateStore

logger = logging.getLogger("poolctl.supervisor")


class ActiveConfiguration:
    """The pool's files and what came of them; `environments` are those that servers were given by command.

    `followers` are called with what is configured beside the servers, whenever that has changed.
    """

    def __init__(
        self,
        files: Sequence[str],
        state_directory: str,
        memory: StateStore,
        environments: dict[str, Mapping[str, str]],
    ) -> None:
        self.files = list(files)
        self.name = default_name(files[0])
        self.missing: set[str] = set()  # names of servers of the files that were removed live
        self.placed: dict[str, ServerConfig] = {}
        self.problems: list[Document] = []
        self.environments = environments
        self.tables = Tables()
        self.followers: list[Callable[[Tables], None]] = []
        self._resolver = ConfigResolver(files, state_directory, self.name)
        self._memory = memory
        self._environment: Mapping[str, str] | None = None
        self._surroundings = Surroundings()
        self._port_range = (0, 0)
        self._written = -1

    async def begin(self) -> list[ServerConfig]:
        """The servers with which a supervisor begins; none when there are `problems`."""
        kept = await self._memory.configuration()
        if kept is None:
            left = self._memory.left()
            resolved = await self.read(keep=left.sources)
            self.problems = resolved.problems
            self.accept(resolved)
            servers = resolved.servers if self.problems else await self._as_left(resolved.servers, left)
            self._memory.keep(self._kept(servers))
            self._written = 0
            return servers
        self.name, self.placed, self.missing = kept.name, kept.placed, set(kept.missing)
        self._surroundings, self._port_range = kept.surroundings, kept.port_range
        self._environment = kept.environment
        self.tables = kept.tables
        self._withhold(kept.servers)
        self.environments.update(kept.environments)
        return kept.servers

    async def read(
        self, environment: Mapping[str, str] | None = None, *, keep: Collection[str] = ()
    ) -> ResolvedConfig:
        """What the files say now; `environment` is what `${VAR}` sees instead of the pool's own.

        The ports of `auto` addresses are kept for the servers that are named, be they in the files or not.
        """
        env = environment or self.environment
        return await asyncio.to_thread(self._resolver.resolve, env, keep=keep)

    def accept(self, resolved: ResolvedConfig, environment: Mapping[str, str] | None = None) -> None:
        """Let what was read be in force, with the environment that it was read with."""
        self.name = resolved.name
        self._surroundings, self._port_range = resolved.surroundings, resolved.port_range
        self._environment = environment or self._environment
        self.missing.clear()
        self._written = -1
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
        """What `${VAR}` sees."""
        return os.environ if self._environment is None else self._environment

    async def _as_left(self, servers: list[ServerConfig], left: Left) -> list[ServerConfig]:
        """The servers with the live changes of a pool whose keeper was killed with its supervisor."""
        there = {server.name: server for server in servers if server.name not in left.missing}
        self.missing = {server.name for server in servers} - there.keys()
        for name, (table, base_dir) in left.sources.items():
            try:
                server = await self.single(
                    table, base_dir, {each.address.port or 0 for each in there.values()}
                )
            except (PoolError, ServerError) as error:
                logger.warning("%s, which was added live, is not there any more: %s", name, error)
                continue
            if obstacles(server, there.values()):
                logger.warning("%s, which was added live, gives way to the files", name)
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

    def keep(self, core: Core) -> None:
        """Leave what is in force to a successor, if it has changed."""
        if self._written == core.registry.revision:
            return
        self._written = core.registry.revision
        entries = core.entries.values()
        placed = {
            worker.id: worker.config
            for entry in entries
            for worker in entry.workers.values()
            if worker.config is not entry.config
        }
        self._memory.keep(self._kept([entry.config for entry in entries], placed))

    def _kept(self, servers: list[ServerConfig], placed: Mapping[str, ServerConfig] | None = None) -> Kept:
        return Kept(
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


def obstacles(added: ServerConfig, there: Iterable[ServerConfig]) -> tuple[int, list[Finding]] | None:
    """Why it cannot be added to those `there`, with the exit code; None when it can."""
    together = [*there, added]
    names = [(each.name, each.address) for each in together]
    found = [finding for later, _, finding in conflicts(names) if later == len(together) - 1]
    if found:
        return CONFLICT, found
    found = [finding for server, finding in dependency_findings(together) if server is added]
    return (INVALID_CONFIGURATION, found) if found else None
