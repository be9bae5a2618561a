"""The end of a pool whose mandatory server has failed."""

from __future__ import annotations

import logging

from poolctl.control.pool_processes import PoolExit, write_exit
from poolctl.core.server_entry import Entry
from poolctl.exit_codes import FAILED
from poolctl.runners.runner_protocol import Exit

_SIGNALLED = 128

logger = logging.getLogger("poolctl.supervisor")


def ends_pool(entry: Entry) -> bool:
    """Whether the failure of this server ends the whole pool."""
    return entry.failed and entry.config.mandatory and not entry.removed


def write_failure(entry: Entry, directory: str, keeper_pid: int) -> str:
    """Leave the failed server's status for `poolctl run`; returns why the pool ends."""
    why = f": {entry.observed.failure.message}" if entry.observed.failure else ""
    reason = f"{entry.name} has failed, and it is mandatory{why}"
    logger.error("the pool ends: %s", reason)
    write_exit(
        directory, PoolExit(status=_status(entry.observed.last_exit), reason=reason, keeper_pid=keeper_pid)
    )
    return reason


def _status(exit_: Exit | None) -> int:
    """The exit status that a shell reports for such an end; never 0, because it is a failure."""
    if exit_ is None:
        return FAILED
    if exit_.signal is not None:
        return _SIGNALLED + exit_.signal
    return exit_.status or FAILED
