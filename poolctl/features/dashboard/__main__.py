"""The process of a dashboard: the supervisor sends its settings and listeners."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from poolctl.json_form import Table
from poolctl.keeper import wire
from poolctl.logs.internal_log import InternalLog
from poolctl.platform import name_process
from poolctl.runners.supervised_process import SupervisedProcess

from ._app import PageSettings, make_app
from ._web_server import WebServer, keep_current


class DashboardServer(SupervisedProcess):
    """Serves from the order `begin` on, which comes with the listeners."""

    _serving: asyncio.Future[None] | None = None

    async def finish(self) -> None:
        """See SupervisedProcess."""
        if self._serving is not None:
            await self._serving

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """See SupervisedProcess."""
        if message.get("t") == "begin" and self._serving is None:
            self._serving = asyncio.ensure_future(self._serve(message, fds))

    async def _serve(self, message: Table, fds: list[int]) -> None:
        renewal: asyncio.Future[None] | None = None
        try:
            settings = PageSettings(**message["settings"])
            log = InternalLog(os.path.join(message["directory"], "dashboard.log"))
            logging.basicConfig(handlers=[log], level=logging.WARNING)
            server = WebServer(make_app(settings, self.over), self.over, settings.tls)
            if settings.tls:
                renewal = asyncio.ensure_future(keep_current(server.config.ssl, settings.tls))
            self.link.send({"t": "up"})
            await server.serve([socket.socket(fileno=fd) for fd in fds])
        finally:
            self.over.set()
            if renewal is not None:
                renewal.cancel()


def main() -> None:
    """Serve until the order to end."""
    name_process("poolctl-dashb.")
    asyncio.run(DashboardServer().run())


if __name__ == "__main__":
    main()
