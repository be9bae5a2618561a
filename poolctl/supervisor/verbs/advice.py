"""What `poolctl validate` warns of, for commands that start servers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable

from poolctl.config import PoolConfig, ServerConfig, Tables

_NAMED = 3


async def advice(servers: Iterable[ServerConfig], names: set[str], tables: Tables) -> list[str]:
    """The warnings about those of the pool's servers that have these names, and about its tables."""
    there = list(servers)
    beside = tables.notify or (tables.dashboard is not None and tables.dashboard.tls)
    if not beside and not any(_may_be_warned_of(server) for server in there if server.name in names):
        return []  # which is what most pools have, and a look at the disk takes its time
    return await asyncio.to_thread(_look, there, names, tables)


def _may_be_warned_of(server: ServerConfig) -> bool:
    return bool(server.tls or server.depends_on or server.binds_itself or (server.user and os.geteuid()))


def _look(servers: list[ServerConfig], names: set[str], tables: Tables) -> list[str]:
    config = PoolConfig(servers)
    config.tables = tables
    config.outside(names=())
    found: dict[str, list[str]] = {}
    for warning in config.warnings:
        if not warning.name or warning.name in names:
            text = str(warning).removeprefix(f"{warning.name}: ")
            found.setdefault(text, []).append(warning.name)
    return [f"{who}: {text}" if (who := _listed(whose)) else text for text, whose in found.items()]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
