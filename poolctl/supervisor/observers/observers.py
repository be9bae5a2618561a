"""All that looks at a pool and decides nothing: events, statistics, metrics, notifications, the dashboard."""

from __future__ import annotations

import os
from collections.abc import Callable

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.control.messages import Document
from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import NAME as JOURNAL
from poolctl.monitor.journal import Journal
from poolctl.runners.local.runner import LocalRunner

from ..deferred_imports import DeferredImports
from ..takeover.state_store import StateStore
from ..verbs.verbs import Verbs
from .dashboard import DashboardManager, PoolEnvironment
from .event_recorder import EventRecorder
from .metrics_endpoint import MetricsEndpoint
from .notifications import Notifications
from .statistics import Statistics
from .totals import Monitoring

_NOTIFIED = "notify.json"


class Observers:
    """Begun in the order of the methods; `about` says of which pool this is.

    None of them can keep the pool from anything: what they fail at is theirs.
    """

    def __init__(self, environment: PoolEnvironment, clock: Clock, about: Callable[[], Document]) -> None:
        self.events = Events(clock)
        self._configuration = environment.configuration
        self._keeper = environment.keeper
        self._state_directory = environment.state_directory
        self._about = about
        self._dashboard = DashboardManager(environment, self.events)
        self._metrics: MetricsEndpoint | None = None

    def record(self) -> None:
        """Keep events where the configuration in force says."""
        self._configuration.followers.append(self._keep_events)
        self._keep_events(self._configuration.tables)

    async def count(self, core: Core, runner: LocalRunner, memory: StateStore) -> None:
        """Go on counting where the supervisor before has stopped."""
        self._core = core
        self._statistics = await Statistics.begin(core, self.events, runner, memory)

    def tell(self, adopted: int) -> None:
        """Record what becomes of the servers, and tell people; `adopted` workers of the supervisor before are there."""
        # First, so that it hears of the beginning, too.
        self._notifications = Notifications(
            self._core, self.events, self._configuration, f"{self._state_directory}/{_NOTIFIED}"
        )
        if self._configuration.problems:
            return
        EventRecorder(self._core, self.events, self._statistics.totals.moved).begin(adopted, self._about())

    async def answer(self, verbs: Verbs, deferred: DeferredImports) -> None:
        """Answer what is asked of them, and expose."""
        verbs.add("stats", self._statistics.stats)
        verbs.add("monitor", Monitoring(self._core, self._statistics.totals).monitor)
        verbs.add("dashboard", self._dashboard.dashboard)
        self._metrics = MetricsEndpoint(
            self._core, self._statistics, self._about(), self._keeper, self.events
        )
        verbs.add("metrics", self._metrics.verb)
        await self._metrics.begin(self._configuration, deferred)
        verbs.add("notify", self._notifications.notify)

    def show(self) -> None:
        """Run what is configured beside the servers."""
        self._dashboard.begin(self._statistics)

    @property
    def problems(self) -> list[str]:
        """What is configured beside the servers and is not served now, and why."""
        found = {"[metrics]": self._metrics.problem if self._metrics is not None else ""}
        found["[dashboard]"] = self._dashboard.problem
        return [f"{table}: {problem}" for table, problem in found.items() if problem]

    async def attempted(self) -> None:
        """Return once it is known whether the addresses beside the servers' can be opened."""
        await self._dashboard.attempted()

    def leave_behind(self) -> None:
        """Leave to a successor what was counted."""
        self._statistics.totals.leave_behind()

    def remember(self) -> None:
        """Write what has happened, and what has been told."""
        self.events.flush()
        self._notifications.remember()

    async def hide(self) -> None:
        """End what runs beside the servers."""
        await self._dashboard.aclose()
        if self._metrics is not None:
            await self._metrics.close()

    async def close(self) -> None:
        """Record the end, and tell of it."""
        self.events.record("pool", "supervisor ended", pid=os.getpid())
        self.events.flush()
        await self._notifications.close()
        self.events.close()

    def _keep_events(self, tables: Tables) -> None:
        self.events.keep_in(Journal.configured(tables.events, os.path.join(self._state_directory, JOURNAL)))
