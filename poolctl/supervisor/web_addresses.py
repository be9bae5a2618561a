"""The pool's own addresses, such as those of [dashboard] and [metrics], and the one process that serves them.

The supervisor opens each address, and the keeper holds its listeners and the link to the process for the next
supervisor. A client that connects while the process is replaced waits in the backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from poolctl import __version__
from poolctl.address import parse
from poolctl.bootstrap import command
from poolctl.config import TLSConfig
from poolctl.daemon_threads import in_daemon_thread
from poolctl.errors import ServerError
from poolctl.json_form import Table
from poolctl.keeper import fd_store, wire
from poolctl.listeners.open_listener import PRIVATE, Identity, SocketAccess, socket_file_identity
from poolctl.monitor.event_queue import EventBus
from poolctl.runners.helper_process import HelperKind, HelperOwner, HelperProcess
from poolctl.runners.process_link import LinkLost

from .active_configuration import SupervisorContext

_RETRY_SECONDS = 5.0
# A process that does not answer within this time may be frozen.
_PROMPT_SECONDS = 1.0
# How long the process may need to close a listener; one that hangs is replaced later.
_CLOSED_SECONDS = 2.0

logger = logging.getLogger("poolctl.supervisor")


class WebTable(Protocol):
    """A table of the configuration with an address. It may have the `mode` of a Unix socket."""

    @property
    def bind(self) -> str | None: ...


OfTable = TypeVar("OfTable", bound=WebTable)


class SiteSettings(NamedTuple):
    """The settings of a table's site, and of its TLS (see worker.serving.uvicorn_parts.ssl_context) with its files."""

    values: Table
    tls: Table | None = None


def tls_settings(tls: TLSConfig, env: Mapping[str, str], *, is_optional: bool | None = None) -> Table:
    """The settings for this certificate and, by its `client_auth`, for the certificates of clients.

    With `is_optional`, clients may present a certificate in any case if there is a `ca`; with False they have to.
    """
    client_auth = tls.client_auth
    if is_optional is not None and tls.ca:
        client_auth = "optional" if is_optional and client_auth != "required" else "required"
    # Without a password OpenSSL would ask for one on the terminal.
    password = env.get(tls.password_env, "") if tls.password_env else ""
    files = {"cert": tls.cert, "key": tls.key, "ca": tls.ca, "password": password}
    return {**files, "min_version": tls.min_version, "ciphers": tls.ciphers, "client_auth": client_auth}


class AddressOwner(Protocol):
    """Receives the process's reports about an address."""

    def on_attempted(self, order: Order, *, changed: bool) -> None:
        """Handle that the process serves the address, or cannot (see order.problem). `changed`: it did not before."""


@dataclass(eq=False)
class Order:
    """The site that the process should serve for a table.

    `attempted` is set once the process has tried to, or no process can be started.
    """

    number: int
    owner: AddressOwner
    settings: SiteSettings
    listeners: list[socket.socket]
    attempted: asyncio.Event = field(default_factory=asyncio.Event)
    problem: str = ""  # why the process cannot serve it


WEB = HelperKind(
    name="web",
    label="the web server",
    argv=(*command(sys.executable, "web"),),
    entry=fd_store.WEB_LINK,
    # Longer than it needs to finish its requests, and to wait until its connections are quiet.
    end_seconds=15.0,
)


class WebProcess(HelperProcess):
    """The process that serves the addresses. `sent` has the numbers of the orders that were sent to it, by table."""

    def __init__(self, *arguments: Any) -> None:
        self.sent: dict[str, int] = {}
        super().__init__(*arguments)


class WebServer(HelperOwner[WebProcess]):
    """Keeps the process running while there is an address to serve, and sends it orders and listeners."""

    def __init__(self, environment: SupervisorContext, events: EventBus) -> None:
        self.keeper, self.events = environment.keeper, events
        self._directory, self.opener = environment.directory, environment.opener
        self._helper = environment.helpers.add(WEB, self, WebProcess)
        self._orders: dict[str, Order] = {}  # by table
        self._closed: set[str] = set()  # closed tables, which an adopted process may still serve
        self._numbers = itertools.count(1)

    @property
    def problem(self) -> str:
        """Why the process does not run, or ""."""
        return self._helper.problem

    @property
    def process(self) -> WebProcess | None:
        """The process in use; None while only one of another version runs, which is about to be replaced."""
        process = self._helper.process
        return process if process is not None and process.mark == __version__ else None

    def serve(
        self, table: str, owner: AddressOwner, settings: SiteSettings, listeners: list[socket.socket]
    ) -> Order:
        """Have the table's site served on these listeners from now on, in the background."""
        before = self._orders.get(table)
        order = self._orders[table] = Order(next(self._numbers), owner, settings, listeners)
        if before is not None:
            before.attempted.set()
        if (process := self.process) is not None:
            self._send_orders(process)
        else:
            self.reconcile()
        return order

    async def close(self, table: str) -> None:
        """Have the process close the table's listeners. Waits for that, but not for a process that hangs."""
        order = self._orders.pop(table, None)
        if order is not None:
            order.attempted.set()
        self._closed.add(table)
        if (process := self.process) is not None:
            process.sent.setdefault(table, 0)
            self._send_orders(process)
            with contextlib.suppress(LinkLost, TimeoutError):
                async with asyncio.timeout(_CLOSED_SECONDS):
                    await process.wait_until_performed()

    def reconcile(self) -> None:
        """Start the process, replace one of another version, or end one that has nothing to serve; does not wait."""
        self._helper.reconcile()

    async def aclose(self) -> None:
        """End the process."""
        await self._helper.aclose()

    async def is_answering(self) -> bool:
        """Ask the process whether it runs, and wait for the answer. Returns False if there is no process, or it ends.

        Also returns False if the answer does not come at once: the process may have been frozen.
        """
        if (process := self.process) is None:
            return False
        began = asyncio.get_running_loop().time()
        try:
            await process.wait_until_performed()
        except LinkLost:
            return False
        return asyncio.get_running_loop().time() - began < _PROMPT_SECONDS

    # The helper's owner.

    async def settings(self) -> str | None:
        return "" if self._orders else None

    def begin(self, process: WebProcess) -> None:
        process.link.send({"t": "begin", "directory": self._directory})
        self._send_orders(process)

    def use(self, process: WebProcess, *, is_new: bool) -> None:
        if not is_new:
            process.sent |= dict.fromkeys(self._closed, 0)
        if process is self.process:
            self._send_orders(process)

    def received(self, message: wire.Message, fds: list[int]) -> None:
        table = str(message.get("table"))
        order = self._orders.get(table)
        if message.get("t") == "refused":
            self.events.record(
                "audit", f"{table} client refused", message=str(message["message"]), severity="warning"
            )
        elif message.get("t") == "served" and order is not None and message["number"] == order.number:
            order.problem = str(message["problem"])
            order.attempted.set()
            order.owner.on_attempted(order, changed=message["changed"] is True)

    def on_lost(self, process: WebProcess) -> None:
        for order in self._orders.values():
            order.attempted.clear()

    def on_event(self, event: str, message: str, **detail: Any) -> None:
        self.events.record("pool", event, message=message, **detail)
        if self.problem:
            for order in self._orders.values():
                order.attempted.set()

    def _send_orders(self, process: WebProcess) -> None:
        """Send the orders that the process does not have yet."""
        for table in process.sent.keys() - self._orders.keys():
            del process.sent[table]
            process.link.send({"t": "close", "table": table})
        for table, order in self._orders.items():
            if process.sent.get(table) != order.number:
                process.sent[table] = order.number
                settings = order.settings
                message = {
                    "t": "serve", "table": table, "number": order.number,
                    "settings": settings.values, "tls": settings.tls,
                }  # fmt: skip
                process.link.send(message, order.listeners)


class WebAddress(Generic[OfTable]):
    """The address in a table of the configuration: open as the table says, and served by the process of `web`.

    `table` is the table's name. `settings_of` makes the settings of its site; it may block, and raise ServerError or
    OSError. After such an error, and after a failure to open the address, WebAddress tries again.
    """

    def __init__(self, web: WebServer, table: str, settings_of: Callable[[OfTable], SiteSettings]) -> None:
        self.table: OfTable | None = None
        self.events = web.events
        self.web = web
        self._name = table
        self._settings_of = settings_of
        self._entry = f"{fd_store.WEB_LISTENER}{table}"
        self._failure = ""  # why it cannot be opened, or its settings cannot be made
        self._recorded_problem = ""
        self._open: str | None = None
        self._identity: Identity | None = None
        self._listeners: list[socket.socket] = []
        self._order: Order | None = None
        self._work: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()

    @property
    def problem(self) -> str:
        """Why the address is not served as configured, or "". With a bad certificate, the previous one is used."""
        order = self._order
        problem = self._failure or ((order.problem or self.web.problem) if order is not None else "")
        return self.sentence(problem) if problem else ""

    @property
    def warnings(self) -> list[str]:
        """The problem as a warning of `status`, if there is one."""
        return [f"[{self._name}]: {self.problem}"] if self.problem else []

    def sentence(self, problem: str) -> str:
        """The problem in words for the log, events and warnings."""
        return f"{self._name} cannot be served: {problem}"

    def record_problem(self, sentence: str) -> None:
        """Record the event that the address is not served."""
        self.events.record("config", f"{self._name} not served", message=sentence)

    async def wait_for_opening_attempt(self) -> None:
        """Wait until clients can connect, or the first attempt since `serve_table` has failed.

        With TLS, wait until it is known whether the certificate can be used, too.
        """
        if self._work is not None:
            await self._tried.wait()

    async def wait_until_served(self) -> str:
        """Wait until the address is served, and return ""; or until a problem prevents that, and return the problem."""
        await self.wait_for_opening_attempt()
        while not self.problem and (order := self._order) is not None and not order.attempted.is_set():
            await order.attempted.wait()
        return self.problem

    def serve_table(self, table: OfTable | None) -> None:
        """Serve the address of `table` with its settings from now on; without an address or a table, stop serving."""
        self.table = table
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

    def on_attempted(self, order: Order, *, changed: bool) -> None:
        self._record_if_new(order.problem)

    async def _serve(self) -> None:
        """Serve as the table set by `serve_table` says, until cancelled; try again after a failure."""
        await self._adopt()
        while True:
            self._changed.clear()
            pause = None
            try:
                await self._apply_table(self.table)
            except Exception as error:
                if not isinstance(error, (ServerError, OSError)):
                    logger.exception("%s: not expected", self._name)
                pause = _RETRY_SECONDS
                self._failure = str(getattr(error, "message", error))
                self._record_if_new(self._failure)
            if not self._changed.is_set():
                self._tried.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._changed.wait()

    def _record_if_new(self, problem: str) -> None:
        if problem and problem != self._recorded_problem:
            sentence = self.sentence(problem)
            logger.error(sentence)
            self.record_problem(sentence)
        self._recorded_problem = problem

    async def _adopt(self) -> None:
        reply, fds = await self.web.keeper.call({"op": "get", "name": self._entry})
        if fds:
            self._open = str(reply["meta"])
            self._listeners = [socket.socket(fileno=fd) for fd in fds]
            self._identity = socket_file_identity(_bind_of(self._open))

    async def _apply_table(self, table: OfTable | None) -> None:
        if table is None or table.bind is None:
            if self._open is not None:
                await self._shut()
                self.web.reconcile()
            self._failure = ""
            return
        bind, written = parse(table.bind).key, getattr(table, "mode", "")
        mode = int(written, 8) if bind.startswith("unix:") and written else None
        description = bind if mode is None else f"{mode:04o} {bind}"
        if description != self._open:
            await self._shut()
        if self._open is None:
            access = PRIVATE if mode is None else SocketAccess(mode)
            self._listeners = await self.web.opener.listen(parse(bind), access=access)
            self._open, self._identity = description, socket_file_identity(bind)
            fds = [sock.fileno() for sock in self._listeners]
            self.web.keeper.send({"op": "put", "name": self._entry, "meta": description}, fds)
        settings = await in_daemon_thread(lambda: self._settings_of(table))
        # With TLS also sent unchanged, so that a reload uses renewed files at once.
        if (order := self._order) is None or settings != order.settings or settings.tls is not None:
            order = self._order = self.web.serve(self._name, self, settings, self._listeners)
        self._failure = ""
        if settings.tls is not None:
            await self._wait_for_attempt_or_change(order)

    async def _wait_for_attempt_or_change(self, order: Order) -> None:
        if self.web.problem:
            return
        waits = {asyncio.ensure_future(event.wait()) for event in (order.attempted, self._changed)}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _shut(self) -> None:
        if self._open is not None:
            self._order = None
            await self.web.close(self._name)
            self.web.opener.close(_bind_of(self._open), self._listeners, self._identity)
            self._open, self._listeners = None, []
            with contextlib.suppress(LinkLost):
                await self.web.keeper.call({"op": "drop", "name": self._entry})


def _bind_of(held: str) -> str:
    """The address in a value of the keeper's store, which has the form `[mode ]address`."""
    mode, _, bind = held.partition(" ")
    return bind if mode.isdigit() else held
