"""The process of a dashboard: descriptor 3 leads to the supervisor, which sends settings and listeners."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from poolctl.keeper import rendezvous, wire
from poolctl.logs.internal import InternalLog
from poolctl.runners.link import Link, Receiver
from poolctl.runners.process_watchdog import PING
from poolctl.values import Table

from .app import PageSettings, make_app
from .web_server import WebServer, keep_current

LINK_FD = 3
_LOOK_SECONDS = 5.0
# A pool that is started again finds its workers within that time, and then this.
_LOOKS = 6


class DashboardServer(Receiver):
    """Serves from `begin` (with the listeners) to `end` or SIGTERM, or until no process is left to send these."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def run(self) -> None:
        """Return when it is over."""
        self._over = asyncio.Event()
        self._messages: asyncio.Future[tuple[Table, list[int]]] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._over.set)
        self._alone = asyncio.Event()
        link = self._link = Link(self._sock, self)
        if await self._begins():
            message, fds = self._messages.result()
            sockets = [socket.socket(fileno=fd) for fd in fds]
            settings = PageSettings(**message["settings"])
            log = InternalLog(os.path.join(message["directory"], "dashboard.log"))
            logging.basicConfig(handlers=[log], level=logging.WARNING)
            server = WebServer(make_app(settings, self._over), self._over, settings.tls)
            serving = asyncio.ensure_future(server.serve(sockets))
            serving.add_done_callback(lambda _: self._over.set())
            link.send({"t": "up"})
            background = [asyncio.ensure_future(self._outlive(message, sockets))]
            if settings.tls:
                background.append(asyncio.ensure_future(keep_current(server.config.ssl, settings.tls)))
            await serving
            for task in background:
                task.cancel()
        link.close()

    async def _begins(self) -> bool:
        """Whether `begin` arrives before the end."""
        others = [asyncio.ensure_future(event.wait()) for event in (self._over, self._alone)]
        waiting: set[asyncio.Future[Any]] = {self._messages, *others}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for other in others:
            other.cancel()
        return self._messages.done()

    async def _outlive(self, message: Table, sockets: list[socket.socket]) -> None:
        """Keep serving without keeper and supervisor, until a new pool has taken the listener over."""
        await self._alone.wait()
        if not self._over.is_set():
            await OrphanedDashboard(message["directory"], message["bind"], sockets).taken()
            self._over.set()

    def lost(self) -> None:
        """See Receiver."""
        self._alone.set()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """See Receiver."""
        if message.get("t") == "begin" and not self._messages.done():
            self._messages.set_result((message, fds))
        elif message == PING:
            self._link.send({"t": "pong", "pid": os.getpid()})
        elif message.get("t") == "end":
            self._over.set()


class OrphanedDashboard:
    """Can be found under the pool's directory. `taken` is awaited."""

    def __init__(self, directory: str, bind: str, sockets: Sequence[socket.socket]) -> None:
        self._directory = directory
        self._bind = bind
        self._sockets = sockets
        self._listener, self._path = rendezvous.bind(directory, rendezvous.DASHBOARD)
        self._listener.listen()
        self._over = asyncio.Event()

    async def taken(self) -> None:
        """Return when a new pool has the listener, or when nothing of the pool has been left for half a minute."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._listener.fileno(), self._asked)
        alone = 0
        try:
            while not self._over.is_set() and alone < _LOOKS:
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._over.wait()
                except TimeoutError:
                    served = rendezvous.find(self._directory, rendezvous.WORKER)
                    alone = 0 if served else alone + 1
        finally:
            loop.remove_reader(self._listener.fileno())
            self._listener.close()
            rendezvous.forget(self._path)

    def _asked(self) -> None:
        connection = rendezvous.accept(self._listener, {0, os.geteuid()})
        if connection is None:
            return
        with connection:
            connection.settimeout(1.0)
            try:
                wire.send(
                    connection,
                    {"t": "dashboard", "bind": self._bind},
                    [sock.fileno() for sock in self._sockets],
                )
            except (OSError, wire.WireError):
                return
            answer = rendezvous.receive(connection)
        if answer is not None and answer[0].get("t") == "taken":
            self._over.set()


def main() -> None:
    """Serve until the order to end."""
    # Ctrl-C in a terminal is handled by the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(DashboardServer(wire.over(LINK_FD)).run())


if __name__ == "__main__":
    main()
