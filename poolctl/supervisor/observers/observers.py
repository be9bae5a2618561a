"""Everything that watches a pool and decides nothing: events, statistics, metrics, notifications, the dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.control.answers import About, MetricsResult
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import NAME as JOURNAL
from poolctl.monitor.journal import Journal
from poolctl.selection.selector import Selector
from poolctl.values import Table

from ..active_configuration import PoolEnvironment
from ..deferred_imports import DeferredImports
from ..takeover.state_store import StateStore
from ..verbs.verb import Daemon
from ..verbs.verbs import Verbs
from .dashboard import DashboardManager
from .event_recorder import EventRecorder
from .notifications import Notifications
from .statistics import Statistics
from .totals import Monitoring

if TYPE_CHECKING:
    from .metrics import PoolMetrics
    from .metrics_server import MetricsAddress

# Imported soon after a start, which does not pay for them: an upgrade may replace their files under this process.
METRICS_MODULES = ("poolctl.monitor.exposition", "observers.metrics", "observers.metrics_server")
_NOTIFIED = "notify.json"


class Observers:
    """Begun in the order of the methods. A failure of one of them affects nothing else."""

    def __init__(self, environment: PoolEnvironment, clock: Clock, daemon: Daemon) -> None:
        self.events = Events(clock)
        self._environment = environment
        self._configuration = environment.configuration
        self._state_directory = environment.state_directory
        self._daemon = daemon
        self._dashboard = DashboardManager(environment, self.events)
        self._metrics: MetricsEndpoint | None = None

    def keep_journal(self) -> None:
        """Keep events where the configuration in force says."""
        self._configuration.followers.append(self._set_journal)
        self._set_journal(self._configuration.tables)

    async def resume_counting(self, core: Core, store: StateStore) -> None:
        """Continue the counts of the previous supervisor; before any worker is adopted."""
        self._core = core
        self._statistics = await Statistics.begin(core, self.events, store)

    def record_events(self, adopted: int) -> None:
        """Record and notify changes of the servers; `adopted` workers of the previous supervisor are there."""
        # First, so that it receives the first events, too.
        self._notifications = Notifications(
            self._core, self.events, self._configuration, f"{self._state_directory}/{_NOTIFIED}"
        )
        if self._configuration.problems:
            return
        recorder = EventRecorder(self._core, self.events, self._statistics.totals)
        recorder.begin(adopted, self._daemon.identity())

    async def add_verbs(self, verbs: Verbs, deferred: DeferredImports) -> None:
        """Answer the observers' verbs, and serve metrics."""
        verbs.add("stats", self._statistics.stats)
        verbs.add("monitor", Monitoring(self._core, self._statistics.totals).monitor)
        verbs.add("dashboard", self._dashboard.dashboard)
        self._metrics = MetricsEndpoint(
            self._core, self._statistics, self._daemon.identity(), self._environment, self.events
        )
        verbs.add("metrics", self._metrics.verb)
        await self._metrics.begin(deferred)
        verbs.add("notify", self._notifications.notify)

    def start_dashboard(self) -> None:
        """Serve the dashboard as configured, now and after each reload."""
        self._dashboard.begin(self._statistics)

    @property
    def problems(self) -> list[str]:
        """The tables whose addresses cannot be served now, each with the reason."""
        found = {"[metrics]": self._metrics.problem if self._metrics is not None else ""}
        found["[dashboard]"] = self._dashboard.problem
        return [f"{table}: {problem}" for table, problem in found.items() if problem]

    async def addresses_tried(self) -> None:
        """Return once it is known whether the addresses of these tables can be opened."""
        await self._dashboard.attempted()

    def save_totals(self) -> None:
        """Save the counts for a successor."""
        self._statistics.totals.save()

    def flush(self) -> None:
        """Write pending events, and save pending notifications."""
        self.events.flush()
        self._notifications.save()

    async def stop_serving(self) -> None:
        """End the dashboard and the metrics endpoint."""
        await self._dashboard.aclose()
        if self._metrics is not None:
            await self._metrics.close()

    async def close(self) -> None:
        """Record the end, and notify it."""
        self.events.record("pool", "supervisor ended", pid=os.getpid())
        self.events.flush()
        await self._notifications.close()
        self.events.close()

    def _set_journal(self, tables: Tables) -> None:
        self.events.keep_in(Journal.configured(tables.events, os.path.join(self._state_directory, JOURNAL)))


class MetricsEndpoint:
    """The metrics, by the verb `metrics` and on the configured address; loaded when either is used, or soon."""

    def __init__(
        self,
        core: Core,
        statistics: Statistics,
        identity: About,
        environment: PoolEnvironment,
        events: Events,
    ) -> None:
        self._core = core
        self._statistics = statistics
        self._identity = identity
        self._environment = environment
        self._events = events
        self._made: tuple[PoolMetrics, MetricsAddress] | None = None

    async def begin(self, deferred: DeferredImports) -> None:
        """Follow the configuration, beginning with what is in force."""
        configuration = self._environment.configuration
        configuration.followers.append(self._follow)
        if configuration.tables.metrics is not None:
            await self._load()[1].begin(configuration.tables)
        else:
            deferred.add(METRICS_MODULES, self._load)

    @property
    def problem(self) -> str:
        """Why they are not served on the configured address; "" when they are."""
        return "" if self._made is None else self._made[1].problem

    async def verb(self, selector: Selector, options: Table, progress: Progress) -> MetricsResult:
        """The verb: the metrics as text, in the OpenMetrics format on request."""
        return await self._load()[0].verb(selector, options, progress)

    async def close(self) -> None:
        """Stop serving."""
        if self._made is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._made[1].close()

    def _follow(self, tables: Tables) -> None:
        self._load()[1].follow(tables)

    def _load(self) -> tuple[PoolMetrics, MetricsAddress]:
        if self._made is None:
            from .metrics import PoolMetrics
            from .metrics_server import MetricsAddress

            metrics = PoolMetrics(self._core, self._statistics, self._identity)
            self._made = metrics, MetricsAddress(self._environment.keeper, self._events, metrics)
        return self._made
