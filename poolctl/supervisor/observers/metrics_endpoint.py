"""The metrics, by the verb `metrics` and on the configured address.

A pool's start does not pay for the modules that this takes. They are imported soon after it, because an upgrade
may replace their files underneath a process that runs.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from poolctl.config import Tables
from poolctl.control.messages import Document
from poolctl.control.server import Progress
from poolctl.core.core import Core
from poolctl.monitor.event_queue import Events
from poolctl.pool.select import Selector
from poolctl.runners.link import Link

from ..active_configuration import ActiveConfiguration
from ..deferred_imports import DeferredImports
from .statistics import Statistics

if TYPE_CHECKING:
    from .metrics import Metrics
    from .metrics_server import MetricsAddress

_MODULES = (
    "poolctl.monitor.exposition",
    "observers.metrics",
    "observers.metrics_server",
)


class MetricsEndpoint:
    """`about` is what is said of the pool as a whole."""

    def __init__(
        self, core: Core, statistics: Statistics, about: Document, keeper: Link, events: Events
    ) -> None:
        self._core = core
        self._statistics = statistics
        self._about = about
        self._keeper = keeper
        self._events = events
        self._made: tuple[Metrics, MetricsAddress] | None = None

    async def begin(self, configuration: ActiveConfiguration, deferred: DeferredImports) -> None:
        """Follow the configuration, beginning with what is in force."""
        configuration.followers.append(self._follow)
        if configuration.tables.metrics is not None:
            await self._load()[1].begin(configuration.tables)
        else:
            deferred.add(_MODULES, self._load)

    @property
    def problem(self) -> str:
        """Why they are not served on the configured address; "" when they are."""
        return "" if self._made is None else self._made[1].problem

    async def verb(self, selector: Selector, options: Document, progress: Progress) -> Document:
        """The verb: the metrics as text, as OpenMetrics if that is asked for."""
        return await self._load()[0].verb(selector, options, progress)

    async def close(self) -> None:
        """Tell nobody any more."""
        if self._made is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._made[1].close()

    def _follow(self, tables: Tables) -> None:
        self._load()[1].follow(tables)

    def _load(self) -> tuple[Metrics, MetricsAddress]:
        if self._made is None:
            from .metrics import Metrics
            from .metrics_server import MetricsAddress

            metrics = Metrics(self._core, self._statistics, self._about)
            self._made = metrics, MetricsAddress(self._keeper, self._events, metrics.text)
        return self._made
