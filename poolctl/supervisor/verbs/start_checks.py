"""Checks before servers are started or replaced: the limit of open files, expired certificates, and warnings."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Iterable, Mapping, Set

from poolctl.config import (
    BINDS_ITSELF,
    RAISE_OPEN_FILES,
    Configuration,
    ServerConfig,
    Tables,
    changed_by,
    open_files_needed,
)
from poolctl.control.answers import Result, failure
from poolctl.core.core import Core
from poolctl.core.decision_input import ASLEEP
from poolctl.core.server_entry import Entry
from poolctl.core.server_files import certificate_ends, day
from poolctl.core.sleep_windows import window_text
from poolctl.errors import PoolStartError, ServerError
from poolctl.exit_codes import FAILED

from .server_documents import server_problem

_NAMES_SHOWN = 3

_Servers = Mapping[str, tuple[ServerConfig, int]]


class TooManyOpenFiles(Exception):
    """The servers need more open files than the limit allows; carries the response."""

    def __init__(self, result: Result) -> None:
        super().__init__("too many open files")
        self.result = result


def ensure_open_files(core: Core, coming: Iterable[tuple[ServerConfig, int]]) -> None:
    """Raise TooManyOpenFiles if the descriptors do not suffice for these further workers."""
    wanted = {entry.name: (entry.config, size(entry)) for entry in core.entries.values() if _runs(entry)}
    _ensure(wanted, wanted | {server.name: (server, count) for server, count in coming})


def ensure_open_files_for_all(core: Core, servers: Iterable[ServerConfig]) -> None:
    """Raise TooManyOpenFiles unless exactly these servers fit."""
    entries = core.entries
    before = {entry.name: (entry.config, size(entry)) for entry in entries.values() if _runs(entry)}
    after = {
        server.name: (server, server.scale.min)
        for server in servers
        if not server.disabled and (server.name not in entries or _runs(entries[server.name]))
    }
    _ensure(before, after)


def size(entry: Entry) -> int:
    """The least number of workers of the server, 0 if it may sleep; its triggers' minimum counts."""
    if entry.desired.overrides.workers is None and entry.desired.automatic is None:
        return entry.config.scale.min
    return entry.size


def _ensure(before: _Servers, after: _Servers) -> None:
    need = open_files_needed(after.values())
    if need <= open_files_needed(before.values()):
        return
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or need <= limit:
        return
    servers = "1 server needs" if len(after) == 1 else f"{len(after)} servers need"
    message = f"{servers} {need} open files, but this pool may have only {limit}: nothing was changed"
    hint = f"{RAISE_OPEN_FILES}; then poolctl stop, and poolctl start" if before else RAISE_OPEN_FILES
    problem = failure(PoolStartError, message, hint)
    raise TooManyOpenFiles(Result(errors=(problem,), exit_code=FAILED))


def _runs(entry: Entry) -> bool:
    return not (entry.rests or entry.is_disabled)


def expired(entry: Entry, config: ServerConfig, now: float) -> ServerError | None:
    """Why the server must not get the certificate of `config`: it has expired, and the certificate in use has not.

    Blocks on the disk.
    """
    if (
        not entry.observed.workers
        or entry.observed.certificate_ends is None
        or entry.observed.certificate_ends <= now
    ):
        return None
    ends = certificate_ends(config)
    if ends is None or ends > now or not config.tls or config.tls is True:
        return None
    message = (
        f"{os.path.basename(config.tls.cert)}: the certificate expired on {day(ends)}, "
        f"and the one in use is valid until {day(entry.observed.certificate_ends)}"
    )
    hint = "renew it; use --allow-expired to accept it"
    return server_problem(entry, message, hint)


async def startup_warnings(
    servers: Iterable[ServerConfig],
    names: set[str],
    tables: Tables,
    warned: Set[str] = frozenset(),
    *,
    of_tables: bool = True,
) -> list[str]:
    """The warnings of `poolctl validate` about the servers with these names, and about the pool's tables.

    That a program binds its address itself is omitted for servers in `warned`. Without `of_tables` the tables have not
    changed since `start` printed their warnings.
    """
    there = list(servers)
    chosen = [server for server in there if server.name in names]
    journal = tables.events is not None and tables.events.path
    tables_checked = of_tables and bool(journal or any(each.has_startup_warnings for _, each in tables))
    checked = tables_checked or any(map(_may_be_warned_of, chosen))
    # Most pools have neither, and a check of everything takes time.
    pythons = {server.python or sys.executable for server in chosen if _runs_python_as_root(server)}
    if not (checked or pythons):
        return []

    def look() -> list[str]:
        if not (checked or any(changed_by(each, os.environ) for each in pythons)):
            return []
        config = Configuration(there, tables)
        config.outside(names=())
        found: dict[str, list[str]] = {}
        for warning in config.warnings:
            if warning.message == BINDS_ITSELF and warning.name in warned:
                continue
            if warning.name in names or (of_tables and not warning.name):
                text = str(warning).removeprefix(f"{warning.name}: ")
                found.setdefault(text, []).append(warning.name)
        return [f"{who}: {text}" if (who := _listed(whose)) else text for text, whose in found.items()]

    return await asyncio.to_thread(look)


def _may_be_warned_of(server: ServerConfig) -> bool:
    named = server.tls or server.depends_on or server.log.path
    words = (*server.command, *server.env.values()) if server.command else ()
    braces = any("{" in word for word in words)
    return bool(named or braces or (server.user and os.geteuid()))


def _runs_python_as_root(server: ServerConfig) -> bool:
    return not (os.geteuid() or server.user or server.command)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more


def kept_asleep(entries: Iterable[Entry], now: float) -> list[str]:
    """Warnings about servers that a window keeps asleep."""
    return [
        f"{entry.name} is {window_text(entry, now)}; `poolctl scale {entry.name} 1` runs it in spite of that"
        for entry in entries
        if entry.kept == ASLEEP and not entry.rests
    ]
