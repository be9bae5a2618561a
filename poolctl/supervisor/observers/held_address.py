"""An HTTP address that the supervisor itself serves. The keeper holds its listener for a successor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Mapping
from typing import Generic, Literal, Protocol, TypeVar

from poolctl.address import parse
from poolctl.config import TLSConfig, stamp_of
from poolctl.errors import ServerError
from poolctl.http.http_server import HttpHandler, HttpServer, ServerLimits
from poolctl.listeners.open_listener import (
    BACKLOG,
    PRIVATE,
    Identity,
    SocketAccess,
    remove_socket_file,
    socket_file_identity,
)
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.listener_opener import Opener, in_daemon_thread
from poolctl.runners.process_link import LinkLost

from ..active_configuration import SupervisorContext

_RETRY_SECONDS = 5.0
# The interval of checks for certificate files that other programs have renewed.
_RENEWAL_SECONDS = 30.0
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

logger = logging.getLogger("poolctl.supervisor")


class HttpEndpoint(HttpHandler):
    """Answers the requests of its HTTP server, `http`. `what` is the name of the requests in the log."""

    def __init__(self, limits: ServerLimits, what: str) -> None:
        self.http = HttpServer(self, limits, what=what)

    def check_client(self, sock: socket.socket) -> None:
        """Admit every client: each request is authorized separately."""


class TableWithBind(Protocol):
    """A table of the configuration with the address to serve at. It may have the `mode` of a Unix socket."""

    @property
    def bind(self) -> str | None: ...


Endpoint = TypeVar("Endpoint", bound=HttpEndpoint)
OfTable = TypeVar("OfTable", bound=TableWithBind)


class HttpAddressServer(Generic[Endpoint, OfTable]):
    """Serves HTTP at the address in a table of the configuration, and tries again after a failure.

    `problem` is why the address is not served, or "". `entry` is the listener's name in the keeper's store. `what` is
    the table's name, such as "metrics"; it is used in messages.
    """

    def __init__(self, environment: SupervisorContext, events: EventBus, entry: str, what: str) -> None:
        self.problem = ""
        self._environment = environment
        self._keeper = environment.keeper
        self._events = events
        self._entry = entry
        self._what = what
        self._opener = Opener()
        self._table: OfTable | None = None
        self._open: str | None = None
        self._identity: Identity | None = None
        self._listeners: list[socket.socket] = []
        self._server: Endpoint | None = None
        self._certificate: object = None  # the certificate in use, with marks of its files
        self._work: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()

    def make_server(self) -> Endpoint:
        """Create the HTTP server for the address."""
        raise NotImplementedError

    async def set_up_server(self, server: Endpoint, table: OfTable, env: Mapping[str, str]) -> None:
        """Set up `server` as in `table`; `env` has the variables that `table` names. Raises ServerError or OSError.

        If the token or certificate is unusable, the previous one stays in use.
        """
        raise NotImplementedError

    async def use_certificate(
        self,
        server: Endpoint,
        tls: TLSConfig | Literal[False],
        env: Mapping[str, str],
        *,
        mtls_required: bool,
    ) -> None:
        """Use the certificate of `tls` for new connections of the server; with `tls` False, use plaintext.

        For use in `apply`, which is called again from time to time to load renewed files. If `tls` has a `ca`,
        clients may present certificates; with `mtls_required` they must. Raises ServerError.
        """
        if not tls:
            server.http.tls, self._certificate = None, None
            return
        files = [path for path in (tls.cert, tls.key, tls.ca) if path]
        mark = tls, mtls_required, await in_daemon_thread(lambda: [stamp_of(path) for path in files])
        if mark != self._certificate:
            server.http.tls = await in_daemon_thread(lambda: _context_of(tls, env, mtls_required, self._what))
            self._certificate = mark

    async def wait_for_opening_attempt(self) -> None:
        """Wait until the address is served, or the first attempt since `serve_table` has failed."""
        await self._tried.wait()

    def serve_table(self, table: OfTable | None) -> None:
        """Serve at the address of `table`, with its settings, from now on; with None, stop serving."""
        self._table = table
        self._tried.clear()
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
        """Serve HTTP as the table set by `serve_table` says, until cancelled; try again after a failure."""
        await self._adopt()
        while True:
            self._changed.clear()
            pause = None
            try:
                await self._apply_table(self._table)
                pause = _RENEWAL_SECONDS if self._certificate is not None else None
                self.problem = ""
            except Exception as error:
                if not isinstance(error, (ServerError, OSError)):
                    logger.exception("%s: not expected", self._what)
                pause = _RETRY_SECONDS
                message = f"{self._what} cannot be served: {getattr(error, 'message', error)}"
                if message != self.problem:
                    logger.error(message)
                    self._events.record("config", f"{self._what} not served", message=message)
                self.problem = message
            if not self._changed.is_set():
                self._tried.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    async def _adopt(self) -> None:
        reply, fds = await self._keeper.call({"op": "get", "name": self._entry})
        if fds:
            self._open = str(reply["meta"])
            self._listeners = [socket.socket(fileno=fd) for fd in fds]
            self._identity = socket_file_identity(_bind_of(self._open))

    async def _apply_table(self, table: OfTable | None) -> None:
        if table is None or table.bind is None:
            await self._shut()
            return
        bind, written = parse(table.bind).key, getattr(table, "mode", "")
        mode = int(written, 8) if bind.startswith("unix:") and written else None
        wanted = bind if mode is None else f"{mode:04o} {bind}"
        if wanted != self._open:
            await self._shut()
        if self._open is None:
            access = PRIVATE if mode is None else SocketAccess(mode)
            self._listeners = await self._opener.listen(parse(bind), access=access)
            self._open, self._identity = wanted, socket_file_identity(bind)
            fds = [sock.fileno() for sock in self._listeners]
            self._keeper.send({"op": "put", "name": self._entry, "meta": wanted}, fds)
        if (server := self._server) is None:
            server, self._certificate = self.make_server(), None
        await self.set_up_server(server, table, self._environment.configuration.environment)
        if self._server is None:
            try:
                for sock in self._listeners:
                    server.http.listen(sock, BACKLOG)
            except BaseException:
                server.http.abort()
                raise
            self._server = server

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.http.abort()
            self._server = self._certificate = None
        if self._open is not None:
            if self._identity is not None:
                remove_socket_file(_bind_of(self._open).removeprefix("unix:"), self._identity)
            for sock in self._listeners:
                sock.close()
            self._open, self._listeners = None, []
            with contextlib.suppress(LinkLost):
                await self._keeper.call({"op": "drop", "name": self._entry})


def _bind_of(held: str) -> str:
    """The address in a value of the keeper's store, which has the form `[mode ]address`."""
    mode, _, bind = held.partition(" ")
    return bind if mode.isdigit() else held


def _context_of(tls: TLSConfig, env: Mapping[str, str], required: bool, table: str) -> ssl.SSLContext:
    """The TLS context for `tls`. With a `ca`, `required` demands client certificates. Blocks. Raises ServerError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[tls.min_version]
    # Without a password OpenSSL would ask for one on the terminal.
    password = env.get(tls.password_env, "") if tls.password_env else ""
    try:
        if tls.ciphers:
            context.set_ciphers(tls.ciphers)
        context.load_cert_chain(tls.cert, tls.key, password)
        if tls.ca:
            context.load_verify_locations(tls.ca)
            needed = required or tls.client_auth == "required"
            context.verify_mode = ssl.CERT_REQUIRED if needed else ssl.CERT_OPTIONAL
    except (OSError, ValueError) as error:
        raise ServerError(
            f"its certificate cannot be used: {error}", hint=f"check tls of [{table}]"
        ) from None
    return context
