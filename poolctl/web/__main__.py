"""The process of a dashboard: descriptor 3 leads to the supervisor, which sends settings and listeners."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket

from poolctl.frozen_value import Table
from poolctl.keeper import wire
from poolctl.logs.internal_log import InternalLog
from poolctl.runners.process_link import Link, Receiver
from poolctl.runners.process_watchdog import PING

from .app import PageSettings, make_app
from .web_server import WebServer, keep_current

LINK_FD = 3


class DashboardServer(Receiver):
    """Serves from `begin` (with the listeners) to `end` or SIGTERM, or until neither keeper nor supervisor is left."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._serving: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Return when it is over."""
        self._over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._over.set)
        self._link = Link(self._sock, self)
        await self._over.wait()
        if self._serving is not None:
            await self._serving
        self._link.close()

    def lost(self) -> None:
        """See Receiver."""
        self._over.set()

    def received(self, message: wire.Message, fds: list[int]) -> None:
        """See Receiver."""
        if message.get("t") == "begin" and self._serving is None:
            self._serving = asyncio.ensure_future(self._serve(message, fds))
        elif message == PING:
            self._link.send({"t": "pong", "pid": os.getpid()})
        elif message.get("t") == "end":
            self._over.set()

    async def _serve(self, message: Table, fds: list[int]) -> None:
        renewal: asyncio.Future[None] | None = None
        try:
            settings = PageSettings(**message["settings"])
            log = InternalLog(os.path.join(message["directory"], "dashboard.log"))
            logging.basicConfig(handlers=[log], level=logging.WARNING)
            server = WebServer(make_app(settings, self._over), self._over, settings.tls)
            if settings.tls:
                renewal = asyncio.ensure_future(keep_current(server.config.ssl, settings.tls))
            self._link.send({"t": "up"})
            await server.serve([socket.socket(fileno=fd) for fd in fds])
        finally:
            self._over.set()
            if renewal is not None:
                renewal.cancel()


def main() -> None:
    """Serve until the order to end."""
    # Ctrl-C in a terminal is handled by the pool.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asyncio.run(DashboardServer(wire.over(LINK_FD)).run())


if __name__ == "__main__":
    main()
