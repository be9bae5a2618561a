"""Where the metrics are served: opened as the configuration says, kept by the keeper, taken over by a successor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

from poolctl.address import parse
from poolctl.config import Tables
from poolctl.errors import ServerError
from poolctl.keeper import store_keys
from poolctl.listeners.open import BACKLOG
from poolctl.listeners.unix import Identity, identity_of, remove
from poolctl.monitor.events import Events
from poolctl.runners.link import Link, LinkLost
from poolctl.runners.local.resources.opener import Opener

from .metrics_server import MetricsServer, Text

_AGAIN_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


class MetricsAddress:
    """`follow` is told what is configured; an address that another process has is tried again.

    `problem` is why the metrics are not served.
    """

    def __init__(self, keeper: Link, events: Events, text: Text) -> None:
        self.problem = ""
        self._keeper = keeper
        self._events = events
        self._text = text
        self._opener = Opener()
        self._wanted: tuple[str, str] | None = None
        self._open: str | None = None
        self._identity: Identity | None = None
        self._listeners: list[socket.socket] = []
        self._server: MetricsServer | None = None
        self._work: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()

    async def begin(self, tables: Tables) -> None:
        """Take over what the supervisor before had opened; return when it has been tried to serve there."""
        reply, fds = await self._keeper.call({"op": "get", "name": store_keys.METRICS})
        if fds:
            self._open = str(reply["meta"])
            self._listeners = [socket.socket(fileno=fd) for fd in fds]
            self._identity = identity_of(self._open)
        self.follow(tables)
        await self._tried.wait()

    def follow(self, tables: Tables) -> None:
        """Serve them there from now on, or nowhere."""
        table = tables.metrics
        self._wanted = None if table is None else (parse(table.bind).key, table.path)
        before, self._work = self._work, asyncio.ensure_future(self._settle(self._work))
        if before is not None:
            before.cancel()

    async def close(self) -> None:
        """Serve them nowhere any more."""
        self.follow(Tables())
        assert self._work is not None
        await self._work

    async def _settle(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait({before})
        self.problem = ""
        while not self._is_settled():
            try:
                await self._try()
            except (ServerError, OSError) as error:
                message = f"metrics cannot be served: {getattr(error, 'message', error)}"
                if message != self.problem:
                    logger.error(message)
                    self._events.record("config", "metrics not served", message=message)
                self.problem = message
                self._tried.set()
                await asyncio.sleep(_AGAIN_SECONDS)
        self.problem = ""
        self._tried.set()

    async def _try(self) -> None:
        wanted = self._wanted
        if wanted is None or wanted[0] != self._open:
            await self._shut()
        if wanted is None:
            return
        if self._open is None:
            await self._listen(wanted[0])
        self._serve(wanted[1])

    def _is_settled(self) -> bool:
        if self._wanted is None:
            return self._open is None
        served = self._server is not None and self._server.path == self._wanted[1]
        return self._open == self._wanted[0] and served

    async def _listen(self, bind: str) -> None:
        self._listeners = await self._opener.listen(parse(bind))
        self._open, self._identity = bind, identity_of(bind)
        self._keeper.send(
            {"op": "put", "name": store_keys.METRICS, "meta": bind},
            [sock.fileno() for sock in self._listeners],
        )

    def _serve(self, path: str) -> None:
        if self._server is not None:
            self._server.path = path
            return
        server = MetricsServer(self._text, path)
        try:
            server.serve(self._listeners, BACKLOG)
        except BaseException:
            server.close()
            raise
        self._server = server

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._open is not None:
            if self._identity is not None:
                remove(self._open.removeprefix("unix:"), self._identity)
            for sock in self._listeners:
                sock.close()
            self._open, self._listeners = None, []
            with contextlib.suppress(LinkLost):
                await self._keeper.call({"op": "drop", "name": store_keys.METRICS})
