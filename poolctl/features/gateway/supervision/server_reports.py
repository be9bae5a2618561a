"""Reports about routed servers to the gateway's process: facts, the server's pair, and its canary's pair.

Gateway and runner identify the pair of a canary by a name, as they do a server's pair.
"""

from __future__ import annotations

import socket
from dataclasses import replace

from poolctl.config import ServerConfig
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry

from .computed_routes import ComputedRoutes
from .gateway_process import GatewayProcess
from .server_facts import canary_name, facts_of, pair_facts, server_of


class ServerReports:
    """Reports the servers that have a route. `pairs` are the give ends of their pairs, owned by the runner, by name."""

    def __init__(self, core: Core, routes: ComputedRoutes) -> None:
        self.pairs: dict[str, socket.socket] = {}
        self._core = core
        self._routes = routes
        self._canaries: dict[str, ServerConfig] = {}  # the canaries found by the last check, by server

    def look(self, entry: Entry) -> bool:
        """Whether the server's canary has changed or ended since the last check."""
        config = entry.config_apart
        if config is self._canaries.get(entry.name):
            return False
        self._canaries.pop(entry.name, None)
        if config is not None:
            self._canaries[entry.name] = config
        return True

    @property
    def configs(self) -> list[ServerConfig]:
        """The configurations of all servers and canaries, these with the names of their pairs."""
        names, found = self._routes.routes.servers, []
        for name, entry in self._core.entries.items():
            if name in names:
                found.append(entry.config)
                if (canary := entry.config_apart) is not None:
                    found.append(canary.but(name=canary_name(name)))
        return found

    def send(self, process: GatewayProcess, name: str) -> None:
        """Send changes of the server, or of the server whose canary has this name, if it has a route."""
        server = server_of(name)
        entry = self._core.entries.get(server)
        if entry is None or server not in self._routes.routes.servers:
            process.forget(server)
            process.forget(canary_name(server))
            return
        canary = pair_facts(entry)
        if canary is not None:
            process.serve(canary, self.pairs.get(canary.name))
        facts = facts_of(self._core, entry)
        if self._core.runner.capabilities.routing is not None and not entry.config.command:
            facts = replace(facts, context_key=self._routes.context_keys.get(server, ""))
        process.serve(facts, self.pairs.get(server))
        if canary is None:
            process.forget(canary_name(server))

    def send_all(self, process: GatewayProcess) -> None:
        """Send the changes of every server."""
        for server in self._routes.routes.servers:
            if server in self._core.entries:
                self.send(process, server)

    def forget_others(self, process: GatewayProcess) -> None:
        """Let the process forget the servers that no longer have a route."""
        for name in process.servers:
            if server_of(name) not in self._routes.routes.servers:
                process.forget(name)
