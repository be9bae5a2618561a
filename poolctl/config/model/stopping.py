"""How long a stop of many servers may take."""

from __future__ import annotations

from collections.abc import Iterable

from poolctl.config.model.server import ServerConfig


def longest_stop_seconds(servers: Iterable[ServerConfig]) -> float:
    """That of a stop in the order of the dependencies: the longest chain, each to its very limit."""
    by_name = {server.name: server for server in servers}
    known: dict[str, float] = {}

    def chain(server: ServerConfig) -> float:
        if server.name not in known:
            below = [chain(by_name[each.name]) for each in server.depends_on if each.name in by_name]
            known[server.name] = server.drain_timeout + server.stop_timeout + max(below, default=0.0)
        return known[server.name]

    return max(map(chain, by_name.values()), default=0.0)
