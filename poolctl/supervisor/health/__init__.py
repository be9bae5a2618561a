"""Watches running workers: heartbeats and memory limits find hung or grown ones, and recovery replaces them."""

from __future__ import annotations

from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events

# Imported after a start: no health check is due at once.
MODULES = ("poolctl.supervisor.health.recovery", "poolctl.supervisor.health.heartbeat")


def watch_health(core: Core, events: Events) -> None:
    """Watch the core's workers, and continue the recoveries that the previous supervisor had begun."""
    from .heartbeat import Heartbeat
    from .recovery import MemoryLimit, WorkerRecovery

    recovery = WorkerRecovery(core, events)
    recovery.resume(core.entries.values())
    checks = [MemoryLimit(core.clock, recovery).look]
    if (heartbeats := core.runner.capabilities.heartbeats) is not None:
        checks.append(Heartbeat(heartbeats, core, events, recovery).look)
    core.listeners |= set(checks)
    for entry in core.entries.values():
        for look in checks:
            look(entry)
