"""Serves the metrics over HTTP on the configured address; the keeper holds its listener for a successor.

No slow or hostile client can hold up the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket

from poolctl.address import parse
from poolctl.config import Tables
from poolctl.errors import ServerError
from poolctl.http.http_server import HttpServer, Received, Responder, ServerLimits
from poolctl.http.message_head import BadMessage
from poolctl.keeper import fd_store
from poolctl.listeners.open_listener import BACKLOG
from poolctl.listeners.unix_listener import Identity, identity_of, remove
from poolctl.monitor.event_queue import Events
from poolctl.monitor.exposition import OPENMETRICS, TEXT, wants_openmetrics
from poolctl.runners.listener_opener import Opener
from poolctl.runners.process_link import Link, LinkLost

from .pool_metrics import PoolMetrics

_AGAIN_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


class MetricsAddress:
    """The address of `[metrics]`. One that another process has is tried again.

    `problem` is why the metrics are not served.
    """

    def __init__(self, keeper: Link, events: Events, metrics: PoolMetrics) -> None:
        self.problem = ""
        self._keeper = keeper
        self._events = events
        self._metrics = metrics
        self._opener = Opener()
        self._wanted: tuple[str, str] | None = None
        self._open: str | None = None
        self._identity: Identity | None = None
        self._listeners: list[socket.socket] = []
        self._server: MetricsServer | None = None
        self._work: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()

    async def attempted(self) -> None:
        """Return when serving has been tried."""
        await self._tried.wait()

    def follow(self, tables: Tables) -> None:
        """Serve as `[metrics]` says from now on, or nowhere."""
        table = tables.metrics
        self._wanted = None if table is None else (parse(table.bind).key, table.path)
        self._changed.set()
        if self._work is None:
            self._work = asyncio.ensure_future(self._serve())

    async def close(self) -> None:
        """Stop serving."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait({self._work})
        await self._shut()

    async def _serve(self) -> None:
        """Serve as wanted until cancelled; tried again after a failure."""
        await self._adopt()
        while True:
            self._changed.clear()
            pause = None
            try:
                await self._apply(self._wanted)
                self.problem = ""
            except (ServerError, OSError) as error:
                pause, message = (
                    _AGAIN_SECONDS,
                    f"metrics cannot be served: {getattr(error, 'message', error)}",
                )
                if message != self.problem:
                    logger.error(message)
                    self._events.record("config", "metrics not served", message=message)
                self.problem = message
            self._tried.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def _adopt(self) -> None:
        """Take over the listener of the previous supervisor."""
        reply, fds = await self._keeper.call({"op": "get", "name": fd_store.METRICS})
        if fds:
            self._open = str(reply["meta"])
            self._listeners = [socket.socket(fileno=fd) for fd in fds]
            self._identity = identity_of(self._open)

    async def _apply(self, wanted: tuple[str, str] | None) -> None:
        if wanted is None or wanted[0] != self._open:
            await self._shut()
        if wanted is None:
            return
        bind, path = wanted
        if self._open is None:
            self._listeners = await self._opener.listen(parse(bind))
            self._open, self._identity = bind, identity_of(bind)
            fds = [sock.fileno() for sock in self._listeners]
            self._keeper.send({"op": "put", "name": fd_store.METRICS, "meta": bind}, fds)
        if self._server is None:
            server = MetricsServer(self._metrics, path)
            try:
                server.serve(self._listeners, BACKLOG)
            except BaseException:
                server.close()
                raise
            self._server = server
        self._server.path = path

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
                await self._keeper.call({"op": "drop", "name": fd_store.METRICS})


LIMITS = ServerLimits(
    head_bytes=16 * 1024,
    body_bytes=16 * 1024,
    request_seconds=10.0,
    keep_alive_seconds=120.0,  # Prometheus scrapes every minute, by default, and keeps its connection
    connections=32,
)
_FRESH_SECONDS = 0.5  # for this long every client gets the same text


class MetricsServer:
    """Answers `GET path` with the metrics."""

    def __init__(self, metrics: PoolMetrics, path: str) -> None:
        self.path = path
        self._metrics = metrics
        self._server = HttpServer(self, LIMITS, what="scrapes of the metrics")
        self._latest: dict[bool, tuple[float, str]] = {}
        self._rendering = asyncio.Lock()

    def serve(self, listeners: list[socket.socket], backlog: int) -> None:
        """Accept from them, from now on; they are closed with the server."""
        for sock in listeners:
            self._server.listen(sock, backlog)

    def close(self) -> None:
        """Accept nothing more, and end what is under way."""
        self._server.abort()

    def admit(self, sock: socket.socket) -> None:
        """See HttpHandler: every client that reaches the address may read the metrics."""

    def refuse(self, error: BadMessage) -> tuple[int, str, bytes]:
        """See HttpHandler."""
        return error.status, "text/plain", f"not a request: {error}\n".encode()

    async def handle(self, request: Received, response: Responder) -> None:
        """See HttpHandler."""
        head = request.head
        plain = ("content-type", "text/plain")
        if head.method not in (b"GET", b"HEAD"):
            await response.send(405, [("allow", "GET, HEAD"), plain], b"only GET\n")
        elif head.path != self.path:
            await response.send(404, [plain], f"the metrics are at {self.path}\n".encode())
        else:
            openmetrics = wants_openmetrics(head.get(b"accept").decode("latin-1"))
            kind = ("content-type", OPENMETRICS if openmetrics else TEXT)
            await response.send(200, [kind, ("vary", "accept")], (await self._fresh(openmetrics)).encode())

    async def _fresh(self, openmetrics: bool) -> str:
        # Clients that scrape at the same time get the same text.
        async with self._rendering:
            loop = asyncio.get_running_loop()
            at, text = self._latest.get(openmetrics, (float("-inf"), ""))
            if loop.time() - at >= _FRESH_SECONDS:
                text = await self._metrics.text(openmetrics)
                self._latest[openmetrics] = loop.time(), text
            return text
