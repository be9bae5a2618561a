"""All that looks at a pool and decides nothing: events, statistics, metrics, notifications, the dashboard."""

from __future__ import annotations

import os
from collections.abc import Callable

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.control.messages import Document
from poolctl.core.core import Engine
from poolctl.monitor.events import Events
from poolctl.monitor.journal import NAME as JOURNAL
from poolctl.monitor.journal import Journal
from poolctl.runners.local import LocalRunner

from ..later import Later
from ..succession.memory import Memory
from ..verbs.verbs import Verbs
from .beside import Beside, Premises
from .chronicle import Chronicle
from .exposure import Exposure
from .monitoring import Monitoring
from .notifying import Notifying
from .statistics import Statistics

_NOTIFIED = "notify.json"


class Observers:
    """Begun in the order of the methods; `about` says of which pool this is.

    None of them can keep the pool from anything: what they fail at is theirs.
    """

    def __init__(self, premises: Premises, clock: Clock, about: Callable[[], Document]) -> None:
        self.events = Events(clock)
        self._configuration = premises.configuration
        self._keeper = premises.keeper
        self._state_directory = premises.state_directory
        self._about = about
        self._beside = Beside(premises, self.events)

    def record(self) -> None:
        """Keep events where the configuration in force says."""
        self._configuration.followers.append(self._keep_events)
        self._keep_events(self._configuration.tables)

    async def count(self, engine: Engine, runner: LocalRunner, memory: Memory) -> None:
        """Go on counting where the supervisor before has stopped."""
        self._engine = engine
        engine.events = self.events
        self._statistics = await Statistics.begin(engine, runner, memory)

    def tell(self, adopted: int) -> None:
        """Record what becomes of the servers, and tell people; `adopted` workers of the supervisor before are there."""
        # First, so that it hears of the beginning, too.
        self._notifying = Notifying(self._engine, self._configuration, f"{self._state_directory}/{_NOTIFIED}")
        if self._configuration.problems:
            return
        Chronicle(self._engine, self._statistics.totals.moved).begin(adopted, self._about())

    async def answer(self, verbs: Verbs, later: Later) -> None:
        """Answer what is asked of them, and expose."""
        verbs.add("stats", self._statistics.stats)
        verbs.add("monitor", Monitoring(self._engine, self._statistics.totals).monitor)
        verbs.add("dashboard", self._beside.dashboard)
        self._exposure = Exposure(self._engine, self._statistics, self._about(), self._keeper, self.events)
        verbs.add("metrics", self._exposure.verb)
        await self._exposure.begin(self._configuration, later)
        verbs.add("notify", self._notifying.notify)

    def show(self) -> None:
        """Run what is configured beside the servers."""
        self._beside.begin(self._statistics)

    def leave_behind(self) -> None:
        """Leave to a successor what was counted."""
        self._statistics.totals.leave_behind()

    def remember(self) -> None:
        """Write what has happened, and what has been told."""
        self.events.flush()
        self._notifying.remember()

    async def hide(self) -> None:
        """End what runs beside the servers."""
        await self._beside.aclose()
        await self._exposure.close()

    async def close(self) -> None:
        """Record the end, and tell of it."""
        self.events.record("pool", "supervisor ended", pid=os.getpid())
        self.events.flush()
        await self._notifying.close()
        self.events.close()

    def _keep_events(self, tables: Tables) -> None:
        self.events.keep_in(Journal.configured(tables.events, os.path.join(self._state_directory, JOURNAL)))
