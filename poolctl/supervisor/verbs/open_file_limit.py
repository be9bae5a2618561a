"""The limit of open files: a command that needs more is refused before it changes anything."""

from __future__ import annotations

import resource
from collections.abc import Iterable

from poolctl.config import RAISE_OPEN_FILES, ServerConfig, open_files_per_pool_process
from poolctl.control.answers import Result, failure
from poolctl.core.core import Core
from poolctl.core.server_entry import Entry
from poolctl.errors import PoolStartError
from poolctl.exit_codes import FAILED

_Servers = dict[str, tuple[ServerConfig, int]]


class TooManyOpenFiles(Exception):
    """The servers need more open files than the limit allows; `result` is the refused command's result."""

    def __init__(self, result: Result) -> None:
        super().__init__("too many open files")
        self.result = result


def check_open_file_limit(core: Core, coming: Iterable[tuple[ServerConfig, int]]) -> None:
    """Raise TooManyOpenFiles if the limit of open files is too low for these servers in addition to the running ones.

    `coming` has each server with its number of workers.
    """
    before = _servers_to_run(core)
    _check_file_limit(before, before | {server.name: (server, count) for server, count in coming})


def check_pool_file_limit(core: Core, servers: Iterable[ServerConfig]) -> None:
    """Raise TooManyOpenFiles if the limit of open files is too low for a pool with exactly these servers."""
    before = _servers_to_run(core)
    after = {
        server.name: (server, server.scale.min)
        for server in servers
        if not server.disabled
        and (server.name in before or not (server.on_demand or server.name in core.entries))
    }
    _check_file_limit(before, after)


def _servers_to_run(core: Core) -> _Servers:
    return {
        entry.name: (entry.config, requested_worker_count(entry))
        for entry in core.entries.values()
        if not (entry.wants_no_worker or entry.is_disabled)
    }


def requested_worker_count(entry: Entry) -> int:
    """The number of workers set by a command or by autoscaling; if none is set, `scale.min` (0 if it may sleep)."""
    if entry.desired.overrides.workers is None and entry.desired.automatic is None:
        return entry.config.scale.min
    return entry.size


def _check_file_limit(before: _Servers, after: _Servers) -> None:
    need = open_files_per_pool_process(after.values())
    if need <= open_files_per_pool_process(before.values()):
        return
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY or need <= limit:
        return
    servers = "1 server needs" if len(after) == 1 else f"{len(after)} servers need"
    message = f"{servers} {need} open files, but this pool may have only {limit}: nothing was changed"
    hint = f"{RAISE_OPEN_FILES}; then poolctl stop, and poolctl start" if before else RAISE_OPEN_FILES
    problem = failure(PoolStartError, message, hint)
    raise TooManyOpenFiles(Result(errors=(problem,), exit_code=FAILED))
