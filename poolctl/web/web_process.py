"""The process itself: gets addresses and settings from the supervisor, and serves a site at each address."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Sequence
from importlib import import_module

from poolctl.config.files.read_file import Stamp, stamp_of
from poolctl.control.pool_paths import SOCKET_NAME
from poolctl.feature import features
from poolctl.json_form import Table
from poolctl.keeper import wire
from poolctl.logs.internal_log import InternalLog
from poolctl.platform import name_process
from poolctl.runners.supervised_process import LINK_FD, SupervisedProcess
from poolctl.worker.serving.uvicorn_parts import ssl_context

from .site import Site, SupervisorClient
from .site_server import SiteServer

# How often certificate files are checked: usable ones for a renewal, unusable ones for a repair.
RENEWAL_SECONDS = 30.0
RETRY_SECONDS = 5.0
# The site of the only table that is not a feature's.
_METRICS = "metrics:MetricsSite"

logger = logging.getLogger("poolctl.web")

Report = Callable[[str, bool], None]


def site_class(table: str) -> type[Site]:
    """The class of the site at the address of this table."""
    for feature in features():
        if table in feature.tables and feature.web:
            site: type[Site] = feature.load(feature.web)
            return site
    module, _, name = _METRICS.partition(":")
    return getattr(import_module(f"{__package__}.{module}"), name)  # type: ignore[no-any-return]


class WebServerProcess(SupervisedProcess):
    """Serves each address from its message `serve` until its message `close` or the end of the process.

    The first message is `begin`, with the pool's `directory`. `serve` has the `table` to serve, the `settings` of its
    site, its `tls` settings or None, and the listeners. The answer is `served`, with the `number` of the message, the
    `problem` or "", and whether anything has `changed`. At the end, addresses that are still open are drained, because
    another process takes over. `sites` returns the class of a table's site.
    """

    _supervisor: SupervisorClient

    def __init__(self, fd: int = LINK_FD, sites: Callable[[str], type[Site]] = site_class) -> None:
        super().__init__(fd)
        self._sites = sites
        self._addresses: dict[str, ServedAddress] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: set[asyncio.Task[None]] = set()

    async def end_service(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for address in self._addresses.values():
            await address.close(drains=True)
        if self._servers:
            await asyncio.wait(self._servers)

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        match message.get("t"):
            case "begin":
                directory = str(message["directory"])
                logging.basicConfig(handlers=[InternalLog()], level=logging.WARNING)
                self._supervisor = SupervisorClient(os.path.join(directory, SOCKET_NAME), self.link.send)
                self.link.send({"t": "up"})
            case "serve":
                self._start(self._serve(message, [socket.socket(fileno=fd) for fd in fds]))
            case "close":
                self._start(self._close(str(message["table"])))

    def confirm_performed(self, message: wire.Message) -> None:
        waiting = asyncio.gather(*self._tasks, return_exceptions=True)
        waiting.add_done_callback(lambda _: SupervisedProcess.confirm_performed(self, message))

    def _start(self, order: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(order)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, message: Table, listeners: list[socket.socket]) -> None:
        table, number = str(message["table"]), message["number"]

        def report(problem: str, changed: bool) -> None:
            served = {"t": "served", "table": table, "number": number}
            self.link.send({**served, "problem": problem, "changed": changed})

        try:
            address = self._addresses.get(table)
            if address is None:
                site = self._sites(table)(self._supervisor)
                address = self._addresses[table] = ServedAddress(site, self._servers)
            await address.serve(message["settings"], message["tls"], listeners, report)
        except Exception as error:
            logger.exception("[%s] cannot be served", table)
            report(str(error) or repr(error), True)

    async def _close(self, table: str) -> None:
        if address := self._addresses.pop(table, None):
            await address.close(drains=False)


class ServedAddress:
    """A site with its listeners, server and certificate, all replaceable while it serves.

    `servers` is the set of running server tasks of the whole process.
    """

    def __init__(self, site: Site, servers: set[asyncio.Task[None]]) -> None:
        self._site = site
        self._servers = servers
        self._server: SiteServer | None = None
        self._left = asyncio.Event()  # set when the server has closed its listeners
        self._listeners: list[socket.socket] = []
        self._settings: Table | None = None
        self._certificate = Certificate(None)
        self._renewing: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def serve(
        self, settings: Table, tls: Table | None, listeners: list[socket.socket], report: Report
    ) -> None:
        """Serve with these settings; call `report(problem, changed)` now, and again whenever the problem changes.

        `problem` is "" if there is none. While the certificate is unusable, the previous settings stay in effect. Takes
        ownership of `listeners`.
        """
        async with self._lock:
            self._cancel_renewal()
            before = self._server, self._settings, self._certificate
            if _same_sockets(listeners, self._listeners):
                _close(listeners)
            else:
                self._stop(drains=False)
                _close(self._listeners)
                self._listeners = listeners
            certificate = self._certificate if self._certificate.tls == tls else Certificate(tls)
            problem = await self._apply(settings, certificate)
            report(problem, before != (self._server, self._settings, self._certificate))
            if tls is not None:
                self._renewing = asyncio.ensure_future(self._renew(settings, certificate, report))

    async def close(self, *, drains: bool) -> None:
        """Stop accepting, and finish requests in progress; with `drains` keep connections open until they are idle."""
        async with self._lock:
            self._cancel_renewal()
            self._site.close()
            if self._server is not None:
                self._stop(drains=drains)
                await self._left.wait()
            _close(self._listeners)

    async def _renew(self, settings: Table, certificate: Certificate, report: Report) -> None:
        """Check the certificate files periodically, and use renewed ones for new connections. Never returns."""
        while True:
            reported = certificate.problem
            await asyncio.sleep(RETRY_SECONDS if reported else RENEWAL_SECONDS)
            async with self._lock:
                problem = await self._apply(settings, certificate)
            if problem != reported:
                report(problem, True)

    async def _apply(self, settings: Table, certificate: Certificate) -> str:
        """Apply the settings and the certificate if it is usable; return the certificate's problem, or ""."""
        await certificate.load_if_changed()
        if certificate.tls is not None and certificate.context is None:
            return certificate.problem
        self._certificate = certificate
        if settings != self._settings:
            self._site.configure(settings)
            self._settings = settings
        if self._server is None:
            self._server = await self._begin()
        self._server.config.ssl = certificate.context
        return certificate.problem

    async def _begin(self) -> SiteServer:
        server = SiteServer(self._site)
        server.config.load()
        server.config.ssl = self._certificate.context
        left = self._left = asyncio.Event()
        server.on_left = left.set
        ready = asyncio.Event()
        serving = asyncio.ensure_future(server.serve_site(self._listeners, ready.set))
        self._servers.add(serving)
        serving.add_done_callback(self._servers.discard)
        serving.add_done_callback(lambda _: ready.set())
        await ready.wait()
        if serving.done():
            serving.result()
        return server

    def _stop(self, *, drains: bool) -> None:
        if self._server is not None:
            self._server.drain() if drains else self._server.stop()
            self._server = None

    def _cancel_renewal(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None


class Certificate:
    """The TLS context of an address, loaded from the files in `tls`; None without `tls`.

    `problem` says why the files cannot be used now, or "". The previous context then stays in use.
    """

    def __init__(self, tls: Table | None) -> None:
        self.tls = tls
        self.context: ssl.SSLContext | None = None
        self.problem = ""
        self._loaded: list[Stamp] | None = None

    async def load_if_changed(self) -> None:
        """Make a new context if the files have changed, or could not be used before."""
        if self.tls is None:
            return
        stamps = await asyncio.to_thread(lambda: [stamp_of(path) for path in self._paths])
        if stamps == self._loaded:
            return
        try:
            self.context = await asyncio.to_thread(self._load)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            self.problem, self._loaded = f"its certificate cannot be used: {error}", None
        else:
            self.problem, self._loaded = "", stamps

    def _load(self) -> ssl.SSLContext:
        assert self.tls is not None
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(path, "rb")) for path in self._paths]
            return ssl_context(self.tls, [file.fileno() for file in files])

    @property
    def _paths(self) -> Sequence[str]:
        tls = self.tls or {}
        return [path for path in (tls["cert"], tls["key"] or tls["cert"], tls["ca"]) if path]


def _same_sockets(listeners: Sequence[socket.socket], others: Sequence[socket.socket]) -> bool:
    """Whether these are duplicates of the same sockets, in the same order."""
    return [os.fstat(listener.fileno()).st_ino for listener in listeners] == [
        os.fstat(other.fileno()).st_ino for other in others
    ]


def _close(listeners: Sequence[socket.socket]) -> None:
    for listener in listeners:
        listener.close()


def main() -> None:
    name_process("poolctl-web")
    asyncio.run(WebServerProcess().serve_supervisor())
