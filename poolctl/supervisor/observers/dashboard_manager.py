"""The dashboard's listener, and the process that serves it: started, restarted, moved and ended. The verb `dashboard`.

The keeper holds the listener and the link to the process as well, so that both outlive this supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

from poolctl import __version__
from poolctl.address import parse
from poolctl.control.answers import failure
from poolctl.control.observer_answers import DashboardLink, DashboardResult
from poolctl.errors import PoolMonitorError
from poolctl.exit_codes import NOT_AS_DESIRED
from poolctl.keeper import fd_store
from poolctl.listeners.open_listener import close_listener, refuse
from poolctl.listeners.unix_listener import identity_of
from poolctl.monitor.event_queue import Events
from poolctl.runners.listener_opener import Opener
from poolctl.runners.process_link import LinkLost

from ..active_configuration import PoolEnvironment
from ..sidecar import SidecarManager
from .dashboard_process import DashboardProcess, Settings, settings_of

if TYPE_CHECKING:
    from poolctl.config import Dashboard as Table

_HINT = "add [dashboard] to the pool's file, then poolctl reload"


class DashboardPage(SidecarManager):
    """Keeps the dashboard as `want` says; `problem` is why it is not served."""

    label, entry = "the dashboard", fd_store.DASHBOARD_LINK

    def __init__(self, environment: PoolEnvironment, events: Events) -> None:
        super().__init__(environment.keeper, events)
        self.table: Table | None = None
        self._environment = environment
        self._directory = environment.directory
        self._opener = Opener()
        self._sockets: list[socket.socket] = []
        self._bind = ""
        self._adopted = False

    def want(self, table: Table | None) -> None:
        """Serve it as this table says, soon; None: not at all."""
        self.table = table
        self._configured()

    async def settings(self) -> Settings | None:
        """The settings of its process, once it serves; None when it cannot, and `problem` says why."""
        while self._process is None and not self.problem and self.table is not None:
            await self._changed.wait()
        if self.problem or self.table is None:
            return None
        return await asyncio.to_thread(settings_of, self.table, self._environment)

    async def _settle(self) -> None:
        if not self._adopted:
            await self._adopt()
        table = self.table
        if table is None:
            await self._off()
            self._succeeded()
            return
        settings = await asyncio.to_thread(settings_of, table, self._environment)
        mark = f"{__version__} {settings.mark}"
        before = self._process
        if before is not None and (self._bind, before.mark) == (settings.bind, mark):
            self._succeeded()
            return
        if self._bind != settings.bind:
            await self._off()
            await self._open(settings.bind)
            before = None
        self._tried.set()
        process = await DashboardProcess.start(self._keeper, self._directory, settings, mark, self._sockets)
        self._use(process)
        if before is not None:
            before.end()
        self._succeeded()
        self._events.record(
            "pool", "dashboard started", message=f"the dashboard serves {settings.url}", url=settings.url
        )

    async def _adopt(self) -> None:
        """Adopt the listener and the process that the keeper holds."""
        self._adopted = True
        reply, fds = await self._keeper.call({"op": "get", "name": fd_store.DASHBOARD})
        if not fds:
            return
        self._bind = str(reply["meta"]["bind"])
        self._sockets = [socket.socket(fileno=fd) for fd in fds]
        process = await DashboardProcess.adopted(self._keeper, self.entry)
        if process is not None:
            self._watch(process)

    async def _open(self, bind: str) -> None:
        self._sockets = await self._opener.listen(parse(bind))
        self._bind = bind
        fds = [sock.fileno() for sock in self._sockets]
        self._keeper.send({"op": "put", "name": fd_store.DASHBOARD, "meta": {"bind": bind}}, fds)

    async def _off(self) -> None:
        self._end_process()
        if self._sockets:
            refuse(self._sockets)  # the process that is about to end has them too
            close_listener(self._sockets, identity_of(self._bind))
            self._sockets, self._bind = [], ""
            with contextlib.suppress(LinkLost):
                await self._keeper.call({"op": "drop", "name": fd_store.DASHBOARD})


async def link(page: DashboardPage | None, environment: PoolEnvironment) -> DashboardResult:
    """The page's URL and its token; the error when it is not served."""
    table = environment.configuration.tables.dashboard
    if table is None:
        problem = failure(PoolMonitorError, "this pool has no dashboard", _HINT)
        return DashboardResult(errors=(problem,), exit_code=NOT_AS_DESIRED)
    # A supervisor that serves commands only has no page, and leaves the page's process alone.
    found = await (
        page.settings() if page is not None else asyncio.to_thread(settings_of, table, environment)
    )
    if found is None:
        why = page.problem if page is not None else ""
        problem = failure(PoolMonitorError, f"the dashboard: {why}", "poolctl events")
        return DashboardResult(errors=(problem,), exit_code=NOT_AS_DESIRED)
    return DashboardResult(dashboard=DashboardLink(url=found.url, token=found.values["token"]))
