"""Watches running workers: heartbeats and memory limits find hung or grown ones, and recovery replaces them."""

from __future__ import annotations

from functools import partial

from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events

from ..deferred_imports import DeferredImports

MODULES = ("poolctl.monitor.recovery_policy", "health.recovery", "health.memory_limit", "health.heartbeat")


def watch_health(core: Core, events: Events, deferred: DeferredImports) -> None:
    """Watch the core's workers: soon, or at once if the previous supervisor had begun to recover one."""
    if any(entry.recovering for entry in core.entries.values()):
        _begin(core, events)
    else:
        # No health check is due yet.
        deferred.add(MODULES, partial(_begin, core, events))


def _begin(core: Core, events: Events) -> None:
    from .heartbeat import Heartbeat
    from .memory_limit import MemoryLimit
    from .recovery import WorkerRecovery

    recovery = WorkerRecovery(core, events)
    recovery.resume(core.entries.values())
    checks = [MemoryLimit(core.clock, recovery).look]
    if (heartbeats := core.runner.capabilities.heartbeats) is not None:
        checks.append(Heartbeat(heartbeats, core, events, recovery).look)
    core.listeners |= set(checks)
    for entry in core.entries.values():
        for look in checks:
            look(entry)
