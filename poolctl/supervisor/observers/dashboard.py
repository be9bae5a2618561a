"""Serves the dashboard if the configuration has one, and answers the verb. It is loaded when it is needed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from poolctl.config import Tables
from poolctl.control.answers import DashboardLink, DashboardResult, failure
from poolctl.control.server import Progress
from poolctl.errors import PoolMonitorError
from poolctl.exit_codes import NOT_AS_DESIRED
from poolctl.monitor.event_queue import Events
from poolctl.selection.selector import Selector
from poolctl.values import Table

from ..active_configuration import PoolEnvironment
from .statistics import Statistics

if TYPE_CHECKING:
    from .dashboard_page import DashboardPage

_HINT = "add [dashboard] to the pool's file, then poolctl reload"


class DashboardManager:
    """Starts, changes and ends the dashboard as the configuration in force says."""

    def __init__(self, environment: PoolEnvironment, events: Events) -> None:
        self._environment = environment
        self._configuration = environment.configuration
        self._events = events
        self._dashboard: DashboardPage | None = None

    def begin(self, statistics: Statistics) -> None:
        """Apply the configuration, now and after each reload."""
        self._statistics = statistics
        self._configuration.followers.append(self._follow)
        if not self._configuration.problems:
            self._follow(self._configuration.tables)

    @property
    def problem(self) -> str:
        """Why the page is not served; "" when it is, or is not configured."""
        return "" if self._dashboard is None else self._dashboard.problem

    async def attempted(self) -> None:
        """Return once it is known whether the page's address can be opened."""
        if self._dashboard is not None:
            await self._dashboard.attempted()

    async def aclose(self) -> None:
        """End the dashboard."""
        if self._dashboard is not None:
            await self._dashboard.aclose()

    def _follow(self, tables: Tables) -> None:
        # A page that is opened shows the last two minutes at once.
        self._statistics.always = tables.dashboard is not None
        if self._statistics.always:
            self._statistics.watch()
        if self._dashboard is None:
            if tables.dashboard is None:
                return
            from .dashboard_page import DashboardPage

            self._dashboard = DashboardPage(self._environment, self._events)
        self._dashboard.want(tables.dashboard)

    async def dashboard(self, selector: Selector, options: Table, progress: Progress) -> DashboardResult:
        """The verb `dashboard`: the page's URL and its token, for clients that may use the control socket anyway."""
        page, table = self._dashboard, self._configuration.tables.dashboard
        if table is None:
            problem = failure(PoolMonitorError, "this pool has no dashboard", _HINT)
            return DashboardResult(errors=(problem,), exit_code=NOT_AS_DESIRED)
        from .dashboard_process import settings_of

        # A supervisor that serves commands only leaves the page's process alone.
        work = (
            page.settings() if page is not None else asyncio.to_thread(settings_of, table, self._environment)
        )
        found = await work
        if found is None:
            why = page.problem if page is not None else ""
            problem = failure(PoolMonitorError, f"the dashboard: {why}", "poolctl events")
            return DashboardResult(errors=(problem,), exit_code=NOT_AS_DESIRED)
        return DashboardResult(dashboard=DashboardLink(url=found.url, token=found.values["token"]))
