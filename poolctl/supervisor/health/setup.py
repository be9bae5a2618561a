"""Sets up what watches running workers: heartbeats, memory limits, recovery."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from poolctl.core.core import Engine

from ..deferred_imports import DeferredImports

if TYPE_CHECKING:
    from .heartbeat import Beats

_MODULES = ("poolctl.monitor.recovery", "health.recovery", "health.memory_limit", "health.heartbeat")


def set_up_health(engine: Engine, beats: Beats, deferred: DeferredImports) -> None:
    """Watch the engine's workers: soon, or at once if the previous supervisor had begun to recover one."""
    if any(entry.recovering for entry in engine.entries.values()):
        _begin(engine, beats)
    else:
        # No health check is due yet.
        deferred.add(_MODULES, partial(_begin, engine, beats))


def _begin(engine: Engine, beats: Beats) -> None:
    from .heartbeat import Heartbeat
    from .memory_limit import MemoryLimit
    from .recovery import Recovery

    recovery = Recovery(engine)
    recovery.resume(engine.entries.values())
    heartbeat = Heartbeat(beats, engine, recovery.notice)
    memory_limit = MemoryLimit(engine.clock, recovery.notice)
    engine.listeners |= {heartbeat.look, memory_limit.look}
    for entry in engine.entries.values():
        heartbeat.look(entry)
        memory_limit.look(entry)
