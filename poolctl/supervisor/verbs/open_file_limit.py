"""Checks before a start that the limit of open files is high enough for the pool's servers."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Mapping

from poolctl.config import RAISE_OPEN_FILES, ServerConfig, open_files_needed
from poolctl.control.answers import Result
from poolctl.control.messages import failure
from poolctl.core.core import Core
from poolctl.core.state import Entry
from poolctl.errors import PoolStartError
from poolctl.exit_codes import FAILED

_Servers = Mapping[str, tuple[ServerConfig, int]]


class TooManyOpenFiles(Exception):
    """The servers need more open files than the limit allows; carries the response."""

    def __init__(self, result: Result) -> None:
        super().__init__("too many open files")
        self.result = result


def ensure_open_files(core: Core, coming: Iterable[tuple[ServerConfig, int]]) -> None:
    """Raise TooManyOpenFiles unless these servers, each with so many workers, fit beside those that are to run."""
    wanted = {entry.name: (entry.config, size(entry)) for entry in core.entries.values() if _runs(entry)}
    _ensure(wanted, wanted | {server.name: (server, count) for server, count in coming})


def ensure_open_files_for_all(core: Core, servers: Iterable[ServerConfig]) -> None:
    """Likewise, when the pool is to have these servers and no others."""
    entries = core.entries
    before = {entry.name: (entry.config, size(entry)) for entry in entries.values() if _runs(entry)}
    after = {
        server.name: (server, server.scale.min)
        for server in servers
        if not server.disabled and (server.name not in entries or _runs(entries[server.name]))
    }
    _ensure(before, after)


def size(entry: Entry) -> int:
    """The least number of workers of the server."""
    return entry.config.scale.min if entry.overrides.workers is None else entry.overrides.workers


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
