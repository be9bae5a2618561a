"""Which servers have to be there before others: `depends_on` among the servers of one operation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .server import Server


def prerequisites(servers: Sequence[Server]) -> dict[Server, list[Server]]:
    """For each server that has any, those that come first. Never a cycle: what would close one is left out."""
    if not any(server.config.depends_on for server in servers):
        return {}
    by_name = {server.name: server for server in servers}
    found: dict[Server, list[Server]] = {}
    for server in servers:
        for dependency in server.config.depends_on:
            other = by_name.get(dependency.name)
            if other is not None and not _reaches(other, server, found):
                found.setdefault(server, []).append(other)
    return found


def _reaches(start: Server, goal: Server, edges: dict[Server, list[Server]]) -> bool:
    seen: set[Server] = set()
    pending = [start]
    while pending:
        server = pending.pop()
        if server is goal:
            return True
        if server not in seen:
            seen.add(server)
            pending += edges.get(server, ())
    return False
