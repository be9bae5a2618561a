"""The metrics of the servers of a pool in this process, under the same names as a supervisor's metrics."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence

from poolctl.core.availability import Availability
from poolctl.core.decision_input import Desired
from poolctl.core.server_entry import DesiredState, Entry, ObservedState
from poolctl.monitor.exposition import Family, render
from poolctl.monitor.server_figures import ServerSnapshot, snapshot
from poolctl.monitor.server_metrics import PARTS, ObservedServer, of_pool

from . import loop_thread
from .live_servers import Handle, living
from .server import Server


def text_of(servers: Sequence[Server]) -> str:
    """The metrics of the servers in Prometheus' text format."""
    observed = loop_thread.call(lambda: list(_observed(servers)))
    families: list[Family] = [*of_pool("", platform.python_version(), observed)]
    for part in PARTS:
        families += part(observed)
    return render(families)


def _observed(servers: Iterable[Server]) -> Iterable[ObservedServer]:
    names: dict[str, int] = {}
    for server in servers:
        # A pool may have two servers of one name, and a sample must not appear twice.
        number = names[server.name] = names.get(server.name, 0) + 1
        handle = living(server)
        yield ObservedServer(
            name=server.name if number == 1 else f"{server.name}~{number}",
            state=server.state.value,
            snapshot=_at_rest(server, handle) if handle is None or handle.entry is None else _live(handle),
            availability=Availability() if handle is None else handle.availability_now(),
            latency_seconds=None if handle is None else handle.latency_seconds,
            wakes=0 if handle is None else handle.wakes,
        )


def _live(handle: Handle) -> ServerSnapshot:
    assert handle.host is not None
    assert handle.entry is not None
    counters, now = handle.host.core.runner.capabilities.counters, handle.host.core.clock.monotonic()
    found = snapshot(handle.entry, [*handle.ended], counters, handle.usages, now, own_pid=os.getpid())
    pids = {worker.placement.pid for worker, _, _ in found.workers if worker.placement is not None}
    handle.usages = {pid: usage for pid, usage in handle.usages.items() if pid in pids}
    return found


def _at_rest(server: Server, handle: Handle | None) -> ServerSnapshot:
    """The figures of a server that the core does not know, because it is at rest."""
    if handle is None:
        return ServerSnapshot(Entry(server.config), [], [], counts=False)
    desired = DesiredState(Desired.COMPLETED if handle.observed.ready else Desired.IDLE)
    observed = ObservedState(restarts=handle.restarts, failures=handle.failures)
    entry = Entry(server.config, desired, observed)
    return ServerSnapshot(entry, handle.ended, [], counts=any(handle.ended))
