"""The dashboard's process, which gets its settings and listening sockets from the supervisor.

Its HTTP server is uvicorn, extended with limits on connections and handshakes, and with certificate reloading.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import ssl
from collections.abc import Iterator

import h11
import uvicorn
from starlette.types import ASGIApp

from poolctl.config.files.read_file import Stamp, stamp_of
from poolctl.json_form import Table
from poolctl.keeper import wire
from poolctl.logs.internal_log import InternalLog
from poolctl.platform import name_process
from poolctl.runners.supervised_process import SupervisedProcess
from poolctl.worker.serving.uvicorn_parts import H11Protocol, ssl_context

from ._app import DashboardSettings, make_app

# The limit from the connection, or a request's first byte, to the end of the request's body.
REQUEST_SECONDS = 10.0
MOST_CONNECTIONS = 256
RENEWAL_SECONDS = 30.0
HANDSHAKE_SECONDS = 10.0
# Each handshake needs a quarter of a megabyte until it ends.
MOST_HANDSHAKES = 256
_PAUSE_SECONDS = 1.0
# Streams never end by themselves.
_LAST_SECONDS = 1
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class WebServer(uvicorn.Server):
    """Serves an ASGI application until `over` is set, without polling. Raises OSError for an unusable certificate."""

    def __init__(self, app: ASGIApp, over: asyncio.Event, tls: Table | None = None) -> None:
        config = uvicorn.Config(
            app,
            http=DashboardConnection,
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            date_header=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=_LAST_SECONDS,
            h11_max_incomplete_event_size=32 * 1024,
        )
        config.load()
        config.ssl = tls_context(tls) if tls else None
        super().__init__(config)
        self.over = over
        self._beginning: set[asyncio.Task[None]] = set()  # connections without a protocol yet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen with time limits for handshakes and a limit of connections, which uvicorn's own startup lacks."""
        self._listeners = list(sockets or ())
        for listener in self._listeners:
            listener.setblocking(False)
            self._accept_from(listener)
        self.servers = []
        self.started = True

    async def main_loop(self) -> None:
        await self.over.wait()
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
        if self._beginning:
            await asyncio.wait(self._beginning, timeout=_LAST_SECONDS)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Does nothing, because the owner of this server handles signals."""
        yield

    def _accept_from(self, listener: socket.socket) -> None:
        if not self.over.is_set():
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            loop.remove_reader(listener)
            if error.errno in _EXHAUSTED:
                loop.call_later(_PAUSE_SECONDS, self._accept_from, listener)
            else:
                # Another process has shut the listener down: the order to stop follows.
                self.over.set()
            return
        if len(self._beginning) >= MOST_HANDSHAKES:
            connection.close()
            return
        task = loop.create_task(self._begin(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        context = self.config.ssl
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: DashboardConnection(self.config, self.server_state, {}),
                connection,
                ssl=context,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if context else None,
            )
        except OSError:
            connection.close()


class DashboardConnection(H11Protocol):
    """A connection to the dashboard, closed if a request takes too long to arrive or a new connection needs its place.

    Parsed by h11, which limits the size of a request's head; uvicorn's other parser does not.
    """

    _deadline: asyncio.TimerHandle | None = None
    _since: float  # when waiting for the current or last request began

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= MOST_CONNECTIONS and not self._evict_oldest_idle():
            transport.abort()
        super().connection_made(transport)
        self._start_request_deadline()

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and self.conn.our_state is not h11.SEND_BODY:
            self._start_request_deadline()
        super().data_received(data)
        if self._has_request():
            self._cancel_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def _evict_oldest_idle(self) -> bool:
        """Close the connection that has waited longest without a request; returns whether there was one."""
        waiting = [
            each
            for each in self.connections
            if isinstance(each, DashboardConnection) and not each._has_request()
        ]
        oldest = min(waiting, key=lambda each: each._since, default=None)
        if oldest is not None:
            self.connections.discard(oldest)
            oldest.transport.abort()
        return oldest is not None

    def _has_request(self) -> bool:
        """Whether a complete request has arrived, even if it is answered already."""
        return self.conn.their_state not in (h11.IDLE, h11.SEND_BODY)

    def _start_request_deadline(self) -> None:
        self._cancel_deadline()
        self._since = self.loop.time()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._give_up)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        self.transport.abort()


def tls_context(tls: Table) -> ssl.SSLContext:
    """The TLS context for these certificate files. Raises OSError for unusable files."""
    with _opened(tls) as fds:
        return ssl_context(tls, fds)


async def reload_certificates_when_changed(
    config: uvicorn.Config, tls: Table, *, every_seconds: float = RENEWAL_SECONDS
) -> None:
    """Give the server a new TLS context, for new handshakes, whenever certificate files have changed. Never returns.

    Files that do not match, for instance while they are being replaced, are tried again at the next check.
    """
    known = _stamps(tls)
    while True:
        await asyncio.sleep(every_seconds)
        now = _stamps(tls)
        if now != known:
            with contextlib.suppress(OSError):
                config.ssl, known = tls_context(tls), now


def _paths(tls: Table) -> list[str]:
    return [path for path in (tls["cert"], tls["key"] or tls["cert"], tls["ca"]) if path]


def _stamps(tls: Table) -> list[Stamp]:
    return [stamp_of(path) for path in _paths(tls)]


@contextlib.contextmanager
def _opened(tls: Table) -> Iterator[list[int]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(open(path, "rb")).fileno() for path in _paths(tls)]


class DashboardServerProcess(SupervisedProcess):
    """Serves the dashboard, once the message `begin` has brought its settings and listening sockets."""

    _serving: asyncio.Future[None] | None = None

    async def end_service(self) -> None:
        if self._serving is not None:
            await self._serving

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        if message.get("t") == "begin" and self._serving is None:
            self._serving = asyncio.ensure_future(self._serve_dashboard(message, fds))

    async def _serve_dashboard(self, message: Table, fds: list[int]) -> None:
        renewal: asyncio.Future[None] | None = None
        try:
            settings = DashboardSettings(**message["settings"])
            log = InternalLog(os.path.join(message["directory"], "dashboard.log"))
            logging.basicConfig(handlers=[log], level=logging.WARNING)
            server = WebServer(make_app(settings, self.over), self.over, settings.tls)
            if settings.tls:
                renewal = asyncio.ensure_future(reload_certificates_when_changed(server.config, settings.tls))
            self.link.send({"t": "up"})
            await server.serve([socket.socket(fileno=fd) for fd in fds])
        finally:
            self.over.set()
            if renewal is not None:
                renewal.cancel()


def main() -> None:
    name_process("poolctl-dashb.")
    asyncio.run(DashboardServerProcess().serve_supervisor())
