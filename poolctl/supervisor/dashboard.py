"""The dashboard's process: started, started again, moved and ended; its listener is held by the pool meanwhile.

The keeper has the listener and the way to the process as well, so that both outlive this supervisor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolctl import __version__
from poolctl.address import parse
from poolctl.bootstrap import command
from poolctl.errors import ServerError
from poolctl.keeper import wire
from poolctl.listeners.open import close_listener
from poolctl.listeners.unix import identity
from poolctl.monitor.events import Events
from poolctl.runners.link import Link, LinkLost
from poolctl.runners.listen import listen

from .dashboard_heirs import inherit
from .dashboard_settings import Told

if TYPE_CHECKING:
    from poolctl.config.table_models import Dashboard as Table

# Names of the keeper's store. Without a colon: a dashboard alone is no reason for a pool to go on.
LISTENER, LINK = "dashboard", "dashboard link"
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 30.0
_CALM_SECONDS = 60.0
_UP_SECONDS = 30.0

logger = logging.getLogger("poolctl.supervisor")


class Dashboard:
    """Keeps the dashboard as `want` says. `told` gives what its process is to be told; `problem` is why it is not up.

    Nothing here raises: the pool does not depend on its page.
    """

    def __init__(self, keeper: Link, directory: str, events: Events, told: Callable[[Table], Told]) -> None:
        self.problem = ""
        self.table: Table | None = None
        self._keeper = keeper
        self._directory = directory
        self._events = events
        self._told = told
        self._sockets: list[socket.socket] = []
        self._bind = ""
        self._link: Link | None = None
        self._mark = ""
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._turn = asyncio.Lock()
        self._work: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._adopted = self._over = False

    def want(self, table: Table | None) -> None:
        """Have it as this table says, as soon as may be; None: not at all."""
        self.table = table
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._soon(0.0)

    async def where(self) -> Told | None:
        """What its process was told, once it serves; None when it cannot: `problem` says why."""
        while self._link is None and not self.problem and self.table is not None:
            self._changed = asyncio.Event()
            await self._changed.wait()
        if self.problem or self.table is None:
            return None
        return await asyncio.to_thread(self._told, self.table)

    async def aclose(self) -> None:
        """End the process, and refuse connections from now on."""
        self._over = True
        for task in list(self._work):
            task.cancel()
        async with self._turn:
            await self._off()

    def _soon(self, seconds: float) -> None:
        task = asyncio.ensure_future(self._settle_after(seconds))
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _settle_after(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        async with self._turn:
            try:
                await self._settle()
            except (ServerError, LinkLost, OSError, TimeoutError) as error:
                self._failed(getattr(error, "message", "") or str(error) or "its process does not come up")
            except Exception as error:
                logger.exception("the dashboard could not be started")
                self._failed(repr(error))
        self._changed.set()

    def _failed(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            logger.error("the dashboard: %s", problem)
            self._events.record("pool", "dashboard failed", message=f"the dashboard: {problem}")
        self._again()

    def _again(self) -> None:
        if not self._over:
            self._soon(self._pause_seconds)
            self._pause_seconds = min(self._pause_seconds * 2, _LONGEST_PAUSE_SECONDS)

    async def _settle(self) -> None:
        if not self._adopted:
            await self._adopt()
        table = self.table
        if table is None:
            await self._off()
            self.problem = ""
            return
        told = await asyncio.to_thread(self._told, table)
        mark = f"{__version__} {told.mark}"
        if self._link is not None and (self._bind, self._mark) == (told.bind, mark):
            return
        if self._bind != told.bind:
            await self._off()
            await self._open(told.bind)
        before = self._link
        await self._start(told, mark)
        if before is not None:
            _end(before)
        self.problem = ""
        self._events.record(
            "pool", "dashboard started", message=f"the dashboard serves {told.url}", url=told.url
        )

    async def _adopt(self) -> None:
        """Take over what a supervisor before has left to the keeper, or a process that has lost both."""
        self._adopted = True
        reply, fds = await self._keeper.call({"op": "get", "name": LISTENER})
        if not fds:
            left = await asyncio.to_thread(inherit, self._directory)
            if left is not None:
                self._hold(*left)
            return
        self._bind = str(reply["meta"]["bind"])
        self._sockets = [socket.socket(fileno=fd) for fd in fds]
        reply, fds = await self._keeper.call({"op": "get", "name": LINK})
        if fds:
            self._mark = str(reply["meta"]["mark"])
            self._link = self._linked(wire.over(fds[0]), asyncio.Event())

    async def _open(self, bind: str) -> None:
        self._hold(bind, await listen(parse(bind)))

    def _hold(self, bind: str, sockets: list[socket.socket]) -> None:
        self._bind, self._sockets = bind, sockets
        fds = [sock.fileno() for sock in sockets]
        self._keeper.send({"op": "put", "name": LISTENER, "meta": {"bind": bind}}, fds)

    async def _start(self, told: Told, mark: str) -> None:
        ours, theirs = wire.pair()
        argv = command(sys.executable, "web")
        output = os.path.join(self._directory, "dashboard.log")
        with theirs:
            await self._keeper.call(
                {"op": "spawn", "argv": argv, "output": output, "session": True}, [theirs.fileno()]
            )
        up = asyncio.Event()
        link = self._linked(ours, up)
        begin = {"t": "begin", "bind": self._bind, "directory": self._directory, "settings": told.settings}
        link.send(begin, [sock.fileno() for sock in self._sockets])
        try:
            async with asyncio.timeout(_UP_SECONDS):
                await up.wait()
            if link.sock.fileno() < 0:
                raise LinkLost(f"its process ended at its start; see {output}")
        except BaseException:
            _end(link)
            raise
        self._keeper.send({"op": "put", "name": LINK, "meta": {"mark": mark}}, [link.sock.fileno()])
        self._link, self._mark = link, mark

    def _linked(self, sock: socket.socket, up: asyncio.Event) -> Link:
        loop = asyncio.get_running_loop()
        began = loop.time()

        def on_message(message: wire.Message, fds: list[int]) -> None:
            if message.get("t") == "up":
                up.set()

        def on_end() -> None:
            up.set()
            if self._link is link:
                self._link = None
                self._keeper.send({"op": "drop", "name": LINK})
                logger.error("the dashboard's process has ended; another one is started")
                if loop.time() - began > _CALM_SECONDS:
                    self._pause_seconds = _FIRST_PAUSE_SECONDS
                self._again()

        link = Link(sock, on_message, on_end)
        return link

    async def _off(self) -> None:
        if self._link is not None:
            link, self._link = self._link, None
            self._keeper.send({"op": "drop", "name": LINK})
            _end(link)
        if self._sockets:
            path = self._bind.removeprefix("unix:") if self._bind.startswith("unix:") else ""
            for sock in self._sockets:
                # The process that is about to end has it too.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RD)
            close_listener(self._sockets, identity(path) if path else None)
            self._sockets, self._bind = [], ""
            with contextlib.suppress(LinkLost):
                await self._keeper.call({"op": "drop", "name": LISTENER})


def _end(link: Link) -> None:
    link.send({"t": "end"})
    link.close()
