"""The runner's side of one worker: the process, its control socket, its readiness, the orders to it, and its exit."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from weakref import WeakKeyDictionary

from poolctl.config import ServerConfig, masked_text
from poolctl.keeper import pool_files
from poolctl.platform import process_cpu_ns, process_start, waits_for_events
from poolctl.worker.control_socket import BEAT

from .. import untrusted_messages
from ..process_link import HasDescriptor, Link, Message, Receiver
from ..routing_protocol import PublishedRoutes
from ..runner_protocol import AdoptedWorker, Exit, Placement, RunnerEvents, WorkerFailed
from ..worker_spec import sealed_files, tls_settings
from .fork_verification import Children, Process
from .program_readiness import NotifySocket, connect, first_connection
from .tallies import Tally

# For a worker that had exited with 0 before it was adopted, perhaps on the last supervisor's order.
_UNSEEN = Exit(message="ended between two supervisors")
# Between the end of its control socket and the report of its exit.
_END_SECONDS = 5.0
_KILL_SECONDS = 5.0
# Time that a program without a port has to run before it counts as started.
_STARTED_AFTER_SECONDS = 1.0

logger = logging.getLogger("poolctl.supervisor")


class WorkerRoutes:
    """The message that gives workers a route table; without a table they serve every request themselves.

    With a table they give each connection back before its next request, unless they keep connections.
    """

    def __init__(self, routes: PublishedRoutes | None, server: str = "", *, keeps: bool = True) -> None:
        self.generation = 0 if routes is None else routes.generation
        self._message: Message = {"order": "routes", "generation": self.generation}
        if not keeps:
            self._message["keeps"] = False
        self._fds: list[HasDescriptor] = []
        if routes is not None:
            if key := routes.context_keys.get(server):
                self._message["key"] = key
            self._fds = [routes.tables.get(server) or routes.tables[""], routes.give_back]

    def send(self, control: Link) -> None:
        """Send the table to a worker, unless the table is outdated and already closed."""
        if all(fd.fileno() >= 0 for fd in self._fds):
            control.send(self._message, self._fds)


class LocalWorker(Receiver):
    """A worker process of this machine. `exited` and `answered` are futures that several tasks may await.

    `output` is the key of its output pipe, `protocol` the protocol of its adoption pair, None without a pair. A program
    has no control socket, so orders other than to stop have no effect on it.
    """

    def __init__(
        self,
        children: Children,
        events: RunnerEvents,
        placement: Placement,
        server: ServerConfig,
        output: str,
        protocol: str | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._children = children
        self._events = events
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
        self.left: asyncio.Future[None] = loop.create_future()  # it no longer accepts
        self.wrote_stacks = asyncio.Event()
        # Possibly no caller awaits it when a worker fails.
        self.answered.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.reason = ""
        self.start: int | None = None  # of the process; with the pid its identity (see process_start)
        self.place: str | None = None  # the socket that was bound for it, on which it waits for adoption
        self.on_disowned: Callable[[], None] = lambda: None
        self.on_follows_routes: Callable[[], None] = lambda: None
        self._expired = False  # it has served its `max_requests`
        self._renewing = False  # it has been sent another certificate, and has not answered
        self.breach = ""  # how it, or its zygote, broke the protocol
        self.ready_at: float | None = None  # by the system's monotonic clock, which all processes share
        self.leaving = False
        self.resting = ""  # the reason why it does not accept: "new" (not allowed to yet) or an order not to
        self.idle = False  # without traffic for its server's scale.idle
        self.routes: WorkerRoutes | None = None  # its routes, or the routes it gets when it begins
        self.follows_routes = False  # it gives back the requests of other servers
        self._page: HasDescriptor | None = None  # see PeerPages
        self._confirmed: asyncio.Future[None] | None = None  # that it decides by `routes`
        self.hook = ""  # it is no worker, but this command of its server's hooks
        self.preloaded = False  # forked from a process that had its application already
        self._taken_over = False  # from another supervisor

    @property
    def process(self) -> Process:
        """The worker's process."""
        return Process(self.placement.pid or 0, self.start)

    def adopt(self, *, reports: bool) -> None:
        """Note that another supervisor placed this worker.

        A program, which reports no state, is running or has exited.
        """
        self._taken_over = True
        pid, start = self.process
        if not reports and start is not None and process_start(pid) == start:
            _settle(self.reported)

    def control_by(self, sock: socket.socket) -> None:
        """Use this socket to control the worker and to receive its messages."""
        self.control = Link(sock, self, trusted=False)

    def received(self, message: Message, fds: Sequence[int] = ()) -> None:
        """See Receiver."""
        event = untrusted_messages.text(message, "event")
        if event == "ready":
            self.leaving = untrusted_messages.flag(message, "leaving")
            self.resting = untrusted_messages.text(message, "resting")
            if self.leaving:
                _settle(self.left)
            _settle(self.reported)
            self.answer()
        elif event == "expired":
            if self.server.http.max_requests is not None and not self._expired:
                self._expired = True
                self._events.expired(self.placement)
        elif event in ("idle", "busy"):
            self.idle = event == "idle"
            self._events.idle(self.placement, self.idle)
        elif event == "routes":
            sent = None if self.routes is None else self.routes.generation
            if self._confirmed is not None and message.get("generation") == sent:
                _settle(self._confirmed)
            if self.routes is not None and not self.follows_routes:
                self.follows_routes = True
                self.on_follows_routes()
        elif event == "left":
            _settle(self.left)
        elif event == "imported":
            _settle(self.imported)
        elif event == "stacks":
            self.wrote_stacks.set()
        elif event == "tls":
            error = untrusted_messages.text(message, "error") if self._renewing else ""
            self._renewing = False
            if error:
                logger.error("%s: its certificate cannot be used: %s", self.placement.id, error)
        elif event == "failed":
            self.reason = masked_text(untrusted_messages.text(message, "message"))

    def lost(self) -> None:
        """Handle a closed control socket: the worker has exited, or can no longer be controlled."""
        if not self.exited.done():
            loop = asyncio.get_running_loop()
            limit = loop.call_later(_END_SECONDS, self.breached, "closed its control socket")
            self.exited.add_done_callback(lambda _: limit.cancel())

    def breached(self, deed: str) -> None:
        """See Receiver. The worker is killed, which counts as an unexpected exit."""
        if not self.breach and not self.exited.done():
            self.breach = f"it {deed}"
            logger.warning(
                "killing worker %s (pid %s): %s", self.placement.id, self.placement.pid, self.breach
            )
            self._children.kill_after(self.process, self.exited, 0.0)

    def disown(self, deed: str) -> None:
        """Treat the worker as exited: its zygote named a foreign process, whose exit will never be reported."""
        if not self.exited.done():
            self.breach = f"its zygote {deed}"
            self.on_disowned()

    def begin(self) -> None:
        """Order the worker to begin. Until then its process only waits."""
        if self.control is not None:
            self.control.send({"order": "go"})
            if self.routes is not None:
                # It reads this before it serves: its first connection may be another server's.
                self.routes.send(self.control)
            self._send_page()
        _settle(self.begun)

    def route(self, routes: WorkerRoutes) -> None:
        """Send the worker these routes, once it has begun."""
        self.routes = routes
        if self.begun.done() and self.control is not None:
            routes.send(self.control)
            if self._confirmed is not None:
                _settle(self._confirmed)
            if self.follows_routes and routes.generation:
                self._confirmed = asyncio.get_running_loop().create_future()

    def share_page(self, page: HasDescriptor) -> None:
        """See Peer."""
        if page is not self._page:
            self._page = page
            if self.begun.done():
                self._send_page()

    def _send_page(self) -> None:
        if self._page is not None and self.control is not None and self._page.fileno() >= 0:
            self.control.send({"order": "peers"}, [self._page])

    @property
    def unconfirmed(self) -> asyncio.Future[None] | None:
        """A future that is done when the worker confirms the last routes sent to it; None if it has."""
        return None if self._confirmed is None or self._confirmed.done() else self._confirmed

    def beat(self, asked_ns: int) -> bool:
        """Request a heartbeat from the worker; False if it cannot be asked now."""
        if self.control is None or self.tally is None:
            return False
        self.tally.ask(asked_ns)
        return self.control.offer(BEAT)

    def rotate(self, in_rotation: bool) -> None:
        """Take the worker out of rotation, so that its clients reconnect elsewhere, or put it back."""
        if self.control is not None:
            self.control.send({"order": "in" if in_rotation else "out"})

    def attend(self, accepting: bool) -> None:
        """Let the worker accept connections, or stop it from doing so."""
        self.resting = ""
        if self.control is not None:
            self.control.send({"order": "work" if accepting else "rest"})

    def idle_after(self, seconds: float) -> None:
        """Set the time without traffic after which the worker reports that it is idle; 0 turns this off."""
        self.idle = False
        if self.control is not None:
            self.control.send({"order": "idle", "seconds": seconds})

    def renew_tls(self, server: ServerConfig, contents: list[bytes]) -> None:
        """Send the worker the certificate, key and client CAs that were read for its server."""
        if self.control is None:
            return
        with sealed_files(contents) as fds:
            self._renewing = True
            self.control.send({"order": "tls", "tls": tls_settings(server)}, fds)

    async def connect(self, kind: str, plain: bool, listeners: Sequence[socket.socket]) -> socket.socket:
        """Connect to the worker, and return the caller's end of the connection. Raises OSError.

        A program is reached through its listener or its address.
        """
        if self.exited.done():
            raise ConnectionRefusedError("it has exited")
        if self.control is None:
            return await connect(self.server, next(iter(listeners), None))
        if self.control.waits:
            raise BlockingIOError(errno.EAGAIN, "it has not read earlier commands")
        ours, theirs = socket.socketpair()
        with theirs:
            self.control.send({"order": "conn", "kind": kind, "plain": plain}, [theirs.fileno()])
        return ours

    async def leave(self, receivers: str | None) -> None:
        """See Runner. A command may continue to accept connections. `receivers` as in `_order_end`."""
        if self.left.done():
            return
        if self.control is None:
            if self.server.listens:
                await self._children.signal(self.process, self.exited, self.server.stop_signal_number)
            _settle(self.left)
        else:
            self._order_end("drain", receivers)
        await asyncio.wait({self.left}, timeout=self.server.drain_timeout)

    async def drain(self, receivers: str | None) -> None:
        """See Runner. `receivers` as in `_order_end`.

        A program without a port has no connections, so it is only stopped.
        """
        until = asyncio.get_running_loop().time() + self.server.drain_timeout
        await self.leave(receivers)
        if self.server.listens:
            await asyncio.wait({self.exited}, timeout=until - asyncio.get_running_loop().time())

    async def stop(self, timeout_seconds: float, receivers: str | None) -> Exit:
        """See Runner. `receivers` as in `_order_end`."""
        self._order_end("stop", receivers)
        if self.control is None or not self.answered.done():
            # One that is still importing its application does not read commands.
            await self._children.signal(self.process, self.exited, self.server.stop_signal_number)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.shield(self.exited)
        except TimeoutError:
            await self._children.signal(self.process, self.exited, signal.SIGKILL, group=True)
            async with asyncio.timeout(_KILL_SECONDS):
                return await asyncio.shield(self.exited)

    def _order_end(self, order: str, receivers: str | None) -> None:
        """Order the worker to drain or to stop.

        `receivers` is the protocol of the other workers that take connections from its pair, or None. They get its
        connections if their protocol is the same.
        """
        if self.control is not None:
            same = receivers is not None and receivers == self.protocol
            self.control.send({"order": order, "to": "pair" if same else "none"})

    async def ready(self, listeners: Sequence[socket.socket]) -> None:
        """Return when the worker has reported ready or, for a job, exited with 0. Raises WorkerFailed."""
        server = self.server
        if server.job:
            exit_ = await asyncio.shield(self.exited)
            if not exit_.ok:
                raise WorkerFailed(exit_.message, hint=f"poolctl logs {server.name}", exit=exit_)
        elif not (server.listens or server.notify):
            if not server.health.gated:
                seconds = min(_STARTED_AFTER_SECONDS, server.start_timeout / 2)
                await asyncio.wait({self.exited}, timeout=seconds)
            self.answer()
        elif server.command and not server.notify:
            look = asyncio.ensure_future(first_connection(server, listeners))
            try:
                await asyncio.wait({look, self.answered}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                look.cancel()
            self.answer()
        await asyncio.shield(self.answered)

    def answer(self) -> None:
        """Mark the worker as ready; has no effect once it has exited."""
        _settle(self.imported)
        if not self.answered.done():
            self.ready_at = self.ready_at or time.monotonic()
            self.answered.set_result(None)

    def adopted(self) -> AdoptedWorker:
        """The worker in the state that it reports."""
        return AdoptedWorker(
            self.placement, self.server, self.ready_at, self.leaving, self.idle, self.resting
        )

    def meta(self) -> Message:
        """The facts that another supervisor needs to adopt it."""
        placement = self.placement
        if self.start is None and placement.pid is not None:
            self.start = process_start(placement.pid)
        return {
            "server": placement.server,
            "key": self.server.key,
            "generation": placement.generation,
            "index": placement.index,
            "pid": placement.pid,
            "start": self.start,
            "ready_at": self.ready_at,
            "output": self.output,
            "protocol": self.protocol,
            "notify": self.notify.path if self.notify is not None else None,
            "place": self.place,
            "stop_signal": self.server.stop_signal_number,
            "follows_routes": self.follows_routes,
            **({"hook": self.hook} if self.hook else {}),
        }

    def listen(self, notify: NotifySocket) -> None:
        """Receive the program's own readiness message, until it exits."""
        self.notify = notify
        notify.start(self.answer)
        self.exited.add_done_callback(lambda _: notify.close())

    def ended(self, exit_: Exit) -> None:
        """Record how the process exited."""
        if self.exited.done():
            return
        if self.place is not None:
            pool_files.forget(self.place)
        if self.control is not None:
            # Its last messages may arrive after the report of its exit.
            self.control.read_rest()
        runs_to_its_end = self.server.job or self.hook
        if self._taken_over and exit_.ok and not (self.reported.done() or runs_to_its_end):
            exit_ = _UNSEEN
        _settle(self.reported)
        _settle(self.begun)
        _settle(self.imported)
        _settle(self.left)
        if self._confirmed is not None:
            _settle(self._confirmed)
        self.exited.set_result(exit_)
        if not self.answered.done():
            hint = f"poolctl logs {self.server.name}"
            if exit_.ok and not (self.server.listens or self.server.job):
                hint = f"keep it in the foreground, or write job = true if it runs to its end; {hint}"
            self.answered.set_exception(WorkerFailed(exit_.before_ready(self.reason), hint=hint, exit=exit_))
        if self.control is not None:
            self.control.close()
        # It leads back here: without it this object is freed at once, and not by the collector.
        self.on_disowned = self.on_follows_routes = lambda: None


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class RunnerWorkers(dict[str, LocalWorker]):
    """All workers by id, and by the address of their server.

    Changed only by `add` and `remove`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_key: dict[str, set[LocalWorker]] = {}

    def add(self, worker: LocalWorker) -> None:
        """Add a worker that was made or adopted."""
        self[worker.placement.id] = worker
        self._by_key.setdefault(worker.server.key, set()).add(worker)

    def remove(self, worker: LocalWorker) -> None:
        """Remove a worker that has exited. A second call has no effect."""
        if self.get(worker.placement.id) is worker:
            del self[worker.placement.id]
        key = worker.server.key
        of_server = self._by_key.get(key, set())
        of_server.discard(worker)
        if not of_server:
            self._by_key.pop(key, None)

    def of(self, key: str) -> Collection[LocalWorker]:
        """The workers of the server with this address."""
        return self._by_key.get(key, ())


# Processor time for going to sleep after the answer; more than that may have been other work.
_AFTER_ANSWER_NS = 1_000_000


class WorkerHeartbeats:
    """Requests heartbeats of the `workers`, which are given by id. See Heartbeats."""

    def __init__(self, workers: Mapping[str, LocalWorker]) -> None:
        self._workers = workers
        self._checks: WeakKeyDictionary[LocalWorker, IdleCheck] = WeakKeyDictionary()

    def beat(self, placement: Placement, asked_ns: int) -> bool:
        """See Heartbeats."""
        worker = self._workers.get(placement.id)
        return worker is not None and worker.beat(asked_ns)

    def beaten_ns(self, placement: Placement) -> int:
        """See Heartbeats."""
        worker = self._workers.get(placement.id)
        return worker.tally.beaten_ns() if worker is not None and worker.tally is not None else 0

    def idle_since_answer(self, placement: Placement) -> bool:
        """See Heartbeats."""
        worker = self._workers.get(placement.id)
        if worker is None or worker.tally is None or placement.pid is None:
            return False
        if (check := self._checks.get(worker)) is None:
            check = self._checks[worker] = IdleCheck()
        return check.passes(placement.pid, worker.tally)


class IdleCheck:
    """Tells whether a worker's event loop is idle, without asking the worker.

    A worker is idle if its main thread waits for events in its loop, and all of its threads together have used no more
    processor time since its last answer than that thread needs to go to sleep. From then on it is enough that the
    processor time does not change, because a process that has not run is still waiting. Everything else (a request, a
    timer, a thread that takes Python's lock, SIGSTOP and the freezer of a control group, which wake it up for a moment)
    changes that time, and the worker is asked again.
    """

    __slots__ = ("_answered_at_ns", "_idle_at_ns")

    def __init__(self) -> None:
        self._answered_at_ns = 0
        self._idle_at_ns: int | None = None

    def passes(self, pid: int, tally: Tally) -> bool:
        """Whether a worker that has answered is idle; False if the kernel does not show it. Does not block."""
        used_ns = process_cpu_ns(pid)
        if used_ns is None or used_ns == self._idle_at_ns:
            return used_ns is not None
        self._idle_at_ns = None
        before_ns, self._answered_at_ns = self._answered_at_ns, tally.beat_cpu_ns()
        if (
            self._answered_at_ns != before_ns
            and used_ns - self._answered_at_ns <= _AFTER_ANSWER_NS
            and waits_for_events(pid)
            # It has not run meanwhile, so the earlier observation still holds.
            and process_cpu_ns(pid) == used_ns
        ):
            self._idle_at_ns = used_ns
        return self._idle_at_ns is not None
