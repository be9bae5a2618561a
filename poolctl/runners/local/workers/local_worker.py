"""The runner's side of one worker: the process, its control socket, its readiness and its exit."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from poolctl.config import ServerConfig, masked_text
from poolctl.keeper import rendezvous, wire
from poolctl.platform import process_start
from poolctl.worker.control_socket import BEAT

from ... import untrusted
from ...link import Link
from ...protocol import AdoptedWorker, Exit, Placement, WorkerFailed
from .notify_socket import NotifySocket
from .programs import first_connection
from .tallies import Tally

# Between the end of its control socket and the report of its exit.
_END_SECONDS = 5.0

logger = logging.getLogger("poolctl.supervisor")


class LocalWorker:
    """A process of this machine. `exited` and `answered` are futures; both may be awaited by several.

    `output` is the key of the pipe for its output, `protocol` that of its adoption pair, if it has one.
    """

    def __init__(
        self, placement: Placement, server: ServerConfig, output: str, protocol: str | None = None
    ) -> None:
        loop = asyncio.get_running_loop()
        self.placement = placement
        self.server = server
        self.output = output
        self.protocol = protocol
        self.control: Link | None = None
        self.notify: NotifySocket | None = None
        self.tally: Tally | None = None
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self.answered: asyncio.Future[None] = loop.create_future()
        self.reported: asyncio.Future[None] = loop.create_future()  # it has reported its state, or has exited
        self.begun: asyncio.Future[None] = loop.create_future()
        self.imported: asyncio.Future[None] = loop.create_future()
        self.left: asyncio.Future[None] = loop.create_future()  # it does not accept any more
        # Possibly no caller awaits it when a worker fails.
        self.answered.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.reason = ""
        self.start: int | None = None  # of the process; with the pid its identity (see process_start)
        self.place: str | None = None  # the socket that was bound for it, on which it listens as an orphan
        self.on_expired: Callable[[], None] = lambda: None
        self.on_idle: Callable[[bool], None] = lambda idle: None
        self.on_breach: Callable[[], None] = lambda: None
        self.expired = False  # it has served its `max_requests`
        self.renewing = False  # it has been sent another certificate, and has not answered
        self.on_disowned: Callable[[], None] = lambda: None
        self.breach = ""  # how it, or its zygote, broke the protocol
        self.ready_at: float | None = None  # by the system's monotonic clock, which all processes share
        self.leaving = False
        self.resting = ""  # the reason why it does not accept: "new" (not allowed to yet) or an order not to
        self.idle = False  # without traffic for its server's scale.idle
        self.preloaded = False  # forked from a process that had its application already

    def control_by(self, sock: socket.socket) -> None:
        """Control the worker by this socket, and receive its messages."""
        self.control = Link(sock, self.received, self._silent, on_breach=self.breached)

    def received(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        """A message from the worker itself. Raises Malformed."""
        event = untrusted.text(message, "event")
        if event == "ready":
            self.leaving = untrusted.flag(message, "leaving")
            self.resting = untrusted.text(message, "resting")
            if self.leaving:
                self.leave()
            _settle(self.reported)
            self.answer()
        elif event == "expired":
            if self.server.http.max_requests is not None and not self.expired:
                self.expired = True
                self.on_expired()
        elif event in ("idle", "busy"):
            self.idle = event == "idle"
            self.on_idle(self.idle)
        elif event == "left":
            self.leave()
        elif event == "imported":
            _settle(self.imported)
        elif event == "tls":
            error = untrusted.text(message, "error") if self.renewing else ""
            self.renewing = False
            if error:
                logger.error("%s: its certificate cannot be used: %s", self.placement.id, error)
        elif event == "failed":
            self.reason = masked_text(untrusted.text(message, "message"))

    def _silent(self) -> None:
        """Its end of the control socket is closed: it has exited, or can no longer be controlled."""
        if not self.exited.done():
            loop = asyncio.get_running_loop()
            limit = loop.call_later(_END_SECONDS, self.breached, "closed its control socket")
            self.exited.add_done_callback(lambda _: limit.cancel())

    def breached(self, deed: str) -> None:
        """It broke the protocol: stop reading from it, and have it killed."""
        if not self.breach and not self.exited.done():
            self.breach = f"it {deed}"
            self.on_breach()

    def disown(self, deed: str) -> None:
        """Its zygote named a process that is not of the pool: its exit will never be reported."""
        if not self.exited.done():
            self.breach = f"its zygote {deed}"
            self.on_disowned()

    def begin(self) -> None:
        """Tell it to begin: until then its process only waits."""
        if self.control is not None:
            self.control.send({"order": "go"})
        _settle(self.begun)

    def beat(self, asked_ns: int) -> bool:
        """Ask it for a heartbeat; False if it cannot be asked now."""
        if self.control is None or self.tally is None:
            return False
        self.tally.ask(asked_ns)
        return self.control.offer(BEAT)

    def leave(self) -> None:
        """It does not accept any more."""
        _settle(self.left)

    async def ready(self, listeners: Sequence[socket.socket]) -> None:
        """Return when it has answered; a job, when it has exited with 0. Raises WorkerFailed."""
        server = self.server
        if server.job:
            exit_ = await asyncio.shield(self.exited)
            if not exit_.ok:
                raise WorkerFailed(exit_.message, hint=f"poolctl logs {server.name}", exit=exit_)
        elif server.command and not server.notify:
            look = asyncio.ensure_future(first_connection(server, listeners))
            try:
                await asyncio.wait({look, self.answered}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                look.cancel()
            self.answer()
        await asyncio.shield(self.answered)

    def answer(self) -> None:
        """It has answered; without effect once it has exited."""
        _settle(self.imported)
        if not self.answered.done():
            self.ready_at = self.ready_at or time.monotonic()
            self.answered.set_result(None)

    def adopted(self) -> AdoptedWorker:
        """The worker in the state that it reports."""
        return AdoptedWorker(
            self.placement, self.server, self.ready_at, self.leaving, self.idle, self.resting
        )

    def meta(self) -> dict[str, Any]:
        """The facts that another supervisor needs to adopt it."""
        placement = self.placement
        if self.start is None and placement.pid is not None:
            self.start = process_start(placement.pid)
        return {
            "server": placement.server,
            "generation": placement.generation,
            "index": placement.index,
            "pid": placement.pid,
            "start": self.start,
            "ready_at": self.ready_at,
            "output": self.output,
            "protocol": self.protocol,
            "notify": self.notify.path if self.notify is not None else None,
            "place": self.place,
        }

    def listen(self, notify: NotifySocket) -> None:
        """Receive the program's own readiness message, until it exits."""
        self.notify = notify
        notify.start(self.answer)
        self.exited.add_done_callback(lambda _: notify.close())

    def ended(self, exit_: Exit) -> None:
        """The process has exited."""
        if self.exited.done():
            return
        if self.place is not None:
            rendezvous.forget(self.place)
        if self.control is not None:
            # Its last messages may arrive after the report of its exit.
            self.control.read_rest()
        _settle(self.reported)
        _settle(self.begun)
        _settle(self.imported)
        _settle(self.left)
        self.exited.set_result(exit_)
        if not self.answered.done():
            self.answered.set_exception(self.failure(exit_))
        if self.control is not None:
            self.control.close()
        # They lead back here: without them this object is freed at once, and not by the collector.
        self.on_expired = self.on_idle = self.on_breach = self.on_disowned = _nothing

    def failure(self, exit_: Exit) -> WorkerFailed:
        """The error of a worker that has exited before it was ready."""
        message = f"{exit_.message} before it was ready"
        if self.reason:
            message = f"{message}: {self.reason}"
        return WorkerFailed(message, hint=f"poolctl logs {self.server.name}", exit=exit_)


def _nothing(*ignored: object) -> None:
    """The callback of a worker that has exited."""


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
