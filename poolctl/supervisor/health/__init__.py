"""Watches running workers: heartbeats and memory limits find hung or grown ones, and recovery replaces them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events

from ..deferred_imports import DeferredImports

if TYPE_CHECKING:
    from .heartbeat import Beats

MODULES = ("poolctl.monitor.recovery_policy", "health.recovery", "health.memory_limit", "health.heartbeat")


def watch_health(core: Core, events: Events, beats: Beats, deferred: DeferredImports) -> None:
    """Watch the core's workers: soon, or at once if the previous supervisor had begun to recover one."""
    if any(entry.recovering for entry in core.entries.values()):
        _begin(core, events, beats)
    else:
        # No health check is due yet.
        deferred.add(MODULES, partial(_begin, core, events, beats))


def _begin(core: Core, events: Events, beats: Beats) -> None:
    from .heartbeat import Heartbeat
    from .memory_limit import MemoryLimit
    from .recovery import WorkerRecovery

    recovery = WorkerRecovery(core, events)
    recovery.resume(core.entries.values())
    heartbeat = Heartbeat(beats, core, events, recovery)
    memory_limit = MemoryLimit(core.clock, recovery)
    core.listeners |= {heartbeat.look, memory_limit.look}
    for entry in core.entries.values():
        heartbeat.look(entry)
        memory_limit.look(entry)
