"""Everything that looks after workers which are alive, set up in one place."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from poolctl.core.core import Engine

from ..later import Later

if TYPE_CHECKING:
    from .heartbeat import Beats

_MODULES = ("poolctl.monitor.recovery", "health.recovery", "health.footprint", "health.heartbeat")


def look_after(engine: Engine, beats: Beats, later: Later) -> None:
    """Look after the engine's workers, soon, and at once if the supervisor before had begun to recover one."""
    if any(entry.recovering for entry in engine.entries.values()):
        _begin(engine, beats)
    else:
        # Nobody ails so soon.
        later.have(_MODULES, partial(_begin, engine, beats))


def _begin(engine: Engine, beats: Beats) -> None:
    from .footprint import Footprint
    from .heartbeat import Heartbeat
    from .recovery import Recovery

    recovery = Recovery(engine)
    recovery.resume(engine.entries.values())
    heartbeat = Heartbeat(beats, engine, recovery.notice)
    footprint = Footprint(engine.clock, recovery.notice)
    engine.listeners |= {heartbeat.look, footprint.look}
    for entry in engine.entries.values():
        heartbeat.look(entry)
        footprint.look(entry)
