"""Everything that watches a pool and decides nothing: events, statistics, metrics, and features.

What the configuration does not name is imported soon after the start, or when a command asks for it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from poolctl.clock import Clock
from poolctl.config import Tables
from poolctl.control.answers import Result
from poolctl.control.observer_answers import HealthResult, MetricsResult
from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events
from poolctl.monitor.journal import NAME as JOURNAL
from poolctl.monitor.journal import Journal

from ..active_configuration import PoolEnvironment
from ..feature_parts import FeatureParts
from ..statistics import Statistics, Totals
from ..takeover.state_store import StateStore
from ..verbs.verb import Call, Daemon
from ..verbs.verbs import Verbs
from .event_recorder import EventRecorder

if TYPE_CHECKING:
    from .metrics_server import MetricsAddress
    from .pool_health import PoolHealth
    from .pool_metrics import PoolMetrics

# The modules that a start imports only for a configuration that names their features.
MODULES = (
    "poolctl.supervisor.observers.metrics_server",
    "poolctl.supervisor.observers.pool_health",
)


class Observers:
    """Begun in the order of the methods. A failure of one of them affects nothing else."""

    def __init__(self, environment: PoolEnvironment, clock: Clock, daemon: Daemon) -> None:
        self.events = Events(clock)
        self._environment = environment
        self.parts = FeatureParts(environment, self.events)
        self._configuration = environment.configuration
        self._daemon = daemon
        self._metrics: MetricsAddress | None = None
        self._is_recording = False

    def keep_journal(self) -> None:
        """Keep events where the configuration in force says."""
        self._configuration.follow(self._set_journal)

    async def resume_counting(self, core: Core, store: StateStore) -> None:
        """Continue the counts of the previous supervisor; before any worker is adopted."""
        self._core = core
        self.totals = Totals(core, self.events, store)
        await self.totals.resume()
        self._statistics = Statistics(core, self.totals)
        self.parts.begin(core, self._statistics.give_samples, self.totals, store)

    def record_events(self, adopted: int) -> None:
        """Record changes of the servers; `adopted` workers of the previous supervisor are there."""
        if self._configuration.problems:
            return
        # First, so that features receive the first events, too.
        self._configuration.follow(self.parts.follow, every_reload=True)
        self._is_recording = True
        recorder = EventRecorder(self._core, self.events, self.totals)
        recorder.begin(adopted, self._daemon.identity())

    async def begin_serving(self, verbs: Verbs) -> None:
        """Answer the verbs of observers and features, and serve metrics."""
        verbs.add("stats", self._statistics.stats)
        verbs.add("monitor", self._statistics.monitor)
        verbs.add("metrics", self._metrics_verb)
        verbs.add("health", self._health_verb)
        self.parts.add_to(verbs)
        self._configuration.follow(self._serve_metrics)
        if self._metrics is not None:
            await self._metrics.attempted()

    @property
    def problems(self) -> list[str]:
        """The tables that cannot be served now, each with the reason."""
        return [*self.parts.problems, *self._own_problems]

    @property
    def _own_problems(self) -> list[str]:
        metrics = self._metrics
        return [f"[metrics]: {metrics.problem}"] if metrics is not None and metrics.problem else []

    async def conclude(self, verb: str, call: Call, result: Result) -> Result:
        """The result of a command that changes servers, once the features follow; names tables that are not served."""
        result = await self.parts.conclude(verb, call, result)
        if verb == "start":
            result = replace(result, warnings=(*result.warnings, *self._own_problems))
        return result

    def flush(self) -> None:
        """Write pending events, and let features save everything for a successor."""
        self.events.flush()
        self.parts.flush()

    async def stop_serving(self) -> None:
        """Stop serving the addresses of features and the metrics endpoint."""
        await self.parts.stop_serving()
        if self._metrics is not None:
            await self._metrics.close()

    async def close(self) -> None:
        """Record the pool's end if its beginning was recorded, and end the features."""
        if self._is_recording:
            self.events.record("pool", "supervisor ended", pid=os.getpid())
        self.events.flush()
        await self.parts.aclose()
        self.events.close()

    def _set_journal(self, tables: Tables) -> None:
        path = os.path.join(self._environment.state_directory, JOURNAL)
        self.events.keep_in(Journal.configured(tables.events, path))

    def _serve_metrics(self, tables: Tables) -> None:
        if self._metrics is None and tables.metrics is not None:
            from .metrics_server import MetricsAddress

            keeper = self._environment.keeper
            self._metrics = MetricsAddress(keeper, self.events, self._pool_metrics(), self._pool_health())
        if self._metrics is not None:
            self._metrics.follow(tables)

    async def _metrics_verb(self, call: Call) -> MetricsResult:
        """The metrics as text, in the OpenMetrics format on request."""
        text = await self._pool_metrics().text(bool(call.options.get("openmetrics")), call.selector)
        return MetricsResult(text=text)

    async def _health_verb(self, call: Call) -> HealthResult:
        """The health of the routes and the servers."""
        return await self._pool_health().verb(call)

    def _pool_metrics(self) -> PoolMetrics:
        from .pool_metrics import PoolMetrics

        return PoolMetrics(self._core, self._statistics, self._daemon.identity(), self.parts)

    def _pool_health(self) -> PoolHealth:
        from .pool_health import PoolHealth

        return PoolHealth(self._core, self.parts.route_healths)
