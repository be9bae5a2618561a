"""What `poolctl validate` warns of, for commands that start servers."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterable

from poolctl.config import Configuration, ServerConfig, Tables, changed_by

_NAMED = 3


async def advice(servers: Iterable[ServerConfig], names: set[str], tables: Tables) -> list[str]:
    """The warnings about those of the pool's servers that have these names, and about its tables."""
    there = list(servers)
    chosen = [server for server in there if server.name in names]
    journal = tables.events is not None and tables.events.path
    beside = journal or tables.notify or (tables.dashboard is not None and tables.dashboard.tls)
    pythons = {server.python or sys.executable for server in chosen if _runs_python_as_root(server)}
    if beside or any(map(_may_be_warned_of, chosen)):
        return await asyncio.to_thread(_look, there, names, tables)
    # Most pools have neither, and to look at everything takes its time.
    return await asyncio.to_thread(_look_if_changed, pythons, there, names, tables) if pythons else []


def _may_be_warned_of(server: ServerConfig) -> bool:
    named = server.tls or server.depends_on or server.log.path
    return bool(named or server.binds_itself or (server.user and os.geteuid()))


def _runs_python_as_root(server: ServerConfig) -> bool:
    return not (os.geteuid() or server.user or server.command)


def _look_if_changed(
    pythons: set[str], servers: list[ServerConfig], names: set[str], tables: Tables
) -> list[str]:
    return _look(servers, names, tables) if any(changed_by(each, os.environ) for each in pythons) else []


def _look(servers: list[ServerConfig], names: set[str], tables: Tables) -> list[str]:
    config = Configuration(servers, tables=tables)
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
