"""What the gateway's process knows of routed servers: the facts on each, its pair, and the pair of its canary.

Gateway and runner know the pair of a canary under a name, as they do that of a server.
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
    """Of the servers that have a route. `pairs` are the give ends of their pairs, which the runner owns, by name."""

    def __init__(self, core: Core, routes: ComputedRoutes) -> None:
        self.pairs: dict[str, socket.socket] = {}
        self._core = core
        self._routes = routes
        self._canaries: dict[str, ServerConfig] = {}  # those that the last look found, by server

    def look(self, entry: Entry) -> bool:
        """Whether the server has another canary than at the last look, or none any more."""
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
        """Send what is new of the server, or of the one whose canary has this name; nothing of one without a route."""
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
        """Send what is new of every server."""
        for server in self._routes.routes.servers:
            if server in self._core.entries:
                self.send(process, server)

    def forget_others(self, process: GatewayProcess) -> None:
        """Let the process forget the servers that have no route any more."""
        for name in process.servers:
            if server_of(name) not in self._routes.routes.servers:
                process.forget(name)
