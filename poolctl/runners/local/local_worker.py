"""The supervisor's view of a worker process: control socket, readiness, orders, counts, heartbeats, stacks, exit.

A program that is not an ASGI application reports readiness through NOTIFY_SOCKET (sd_notify(3)), or is ready when it
accepts a connection. The workers of a program share a listener: which of them has accepted a connection is seen by the
process that has the connection's socket (proc(5), fd).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass

from poolctl import platform
from poolctl.address import Address
from poolctl.config import ServerConfig, masked_text
from poolctl.daemon_threads import THREADS
from poolctl.errors import ServerError
from poolctl.json_form import from_json
from poolctl.keeper import fd_store
from poolctl.listeners.sock_diag import (
    CONNECTED,
    LISTEN,
    accepted_inodes,
    has_others_waiting,
    is_listed,
    peer_inode,
    tcp_sockets,
    wait_until_accepted,
)
from poolctl.platform import peer_has_closed, process_cpu_ns, waits_for_events
from poolctl.worker import tally
from poolctl.worker.process_setup import BEAT
from poolctl.worker.serving.connection_balancer import create_peer_counts_page
from poolctl.worker.tally import ASK, ASK_AGAIN, COUNTED, Counts, final_counts

from .. import process_link
from ..listener_opener import in_daemon_thread
from ..process_link import Descriptor, HasDescriptor, Link, LinkHandler, Message, sanitized_text_or_empty
from ..runner_protocol import Exit, Placement, RunnerEventHandler, WorkerFailed
from ..stack_report import (
    FAULTHANDLER,
    PYTHON,
    KernelThread,
    WorkerStacks,
    find_main_thread_hang,
    parse,
)
from ..worker_spec import memory_files, missing_module_hint, tls_settings
from .server_sockets import WorkerRoutes
from .zygotes import Children, ProcessIdentity

logger = logging.getLogger("poolctl.supervisor")

_SLOT_BYTES = 8
# There is no notification when another program calls bind(), so it is polled.
_FIRST_CONNECT_PAUSE_SECONDS = 0.01
_LAST_CONNECT_PAUSE_SECONDS = 0.2
# There is none when another program calls accept() either.
_FIRST_ACCEPT_PAUSE_SECONDS = 0.001
# The kernel may give each connection to the same process (EPOLLEXCLUSIVE), but not many that arrive at once.
_PROBES_AT_ONCE, _MAX_PROBES_AT_ONCE = 4, 32
# Listing the connections of a listener takes longer, because the kernel walks through all of the machine.
_FIRST_LISTING_PAUSE_SECONDS = 0.5
_LAST_LISTING_PAUSE_SECONDS = 2.0
_LISTING_SECONDS = 1.0
# The pause after too many notifications from one program, so that it does not delay others.
_NOTIFICATION_PAUSE_SECONDS = 0.5
_MAX_NOTIFICATION_BYTES = 4096
# The exit of a worker that ended with status 0 before it was adopted, perhaps ordered by the last supervisor.
_UNSEEN = Exit(message="ended between two supervisors")
# Maximum time between the end of a worker's control socket and the report of its exit.
_END_SECONDS = 5.0
KILL_SECONDS = 5.0
# Processor time that a worker needs to go to sleep after an answer; if it used more, it did other work.
_AFTER_ANSWER_NS = 1_000_000
# Shares of a request's time: for an answer by Python, then for faulthandler's. The rest is for reading /proc.
_PYTHON_SHARE, _FAULTHANDLER_SHARE = 0.6, 0.25
_MAX_THREADS = 50
_MAX_READING = THREADS // 2  # the number of threads that read /proc, where a read may block


class Tally(Descriptor):
    """The page of memory on which one worker counts its requests, and writes its stacks.

    The application can write to the page too. Once the page shows impossible counts, it is no longer trusted: `counts`
    then returns the last plausible counts as final. `since` is when counting began, in monotonic seconds; 0 if another
    supervisor created the page.
    """

    def __init__(self, fd: int, since: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(fd)
        self.refused = ""  # why its counts are not trusted, "" if they are
        self._now = now
        self._believed: Counts = [0] * COUNTED
        self._at = since

    @classmethod
    def new(cls) -> Tally:
        """Create a tally with a new memory page, on which all counts are zero. Counting begins now."""
        return cls(tally.create_tally_page(), time.monotonic())

    def counts(self) -> Counts | None:
        """Return the worker's counts so far; None for a page in another poolctl version's layout."""
        counts = tally.read_tally_page(self._fd)
        if counts is None:
            return None
        if not self.refused:
            counted = counts[:COUNTED]
            if counted != self._believed:
                now = self._now()
                self.refused = tally.why_impossible(counted, self._believed, now - self._at)
                if not self.refused:
                    self._believed, self._at = counted, now
        return [*final_counts(self._believed), *counts[COUNTED:]] if self.refused else counts

    def ask(self, asked_ns: int) -> None:
        """Record the time at which the worker is asked for a heartbeat."""
        os.pwrite(self._fd, asked_ns.to_bytes(_SLOT_BYTES, sys.byteorder), tally.BEAT_ASKED_NS * _SLOT_BYTES)

    def last_beat_ns(self) -> int:
        """The time of the last `ask` that the worker has answered; 0 if it answers none, or `counts` returns None."""
        return self._slot(tally.BEAT_ANSWERED_NS)

    def beat_cpu_ns(self) -> int:
        """The processor time that the worker had used at its last heartbeat; 0 if unknown."""
        return self._slot(tally.BEAT_CPU_NS)

    def _slot(self, slot: int) -> int:
        page = tally.read_tally_page(self._fd)
        return 0 if page is None else page[slot]

    @property
    def has_stacks(self) -> bool:
        """Whether the worker can write its stacks into its memory page when it gets a signal."""
        return tally.writes_stacks(self._fd)

    def clear_stacks(self) -> None:
        """Remove the stacks that the worker has written, so that it can write new ones."""
        tally.clear_and_rewind_stacks(self._fd)

    def stacks(self) -> bytes:
        """The stacks that the worker has written; empty if it has written none."""
        return tally.read_stacks(self._fd)


async def wait_until_listening(server: ServerConfig) -> None:
    """Wait until a program that binds its address itself listens there."""
    pause = _FIRST_CONNECT_PAUSE_SECONDS
    while True:
        try:
            (await connect(server, None)).close()
        except OSError:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_CONNECT_PAUSE_SECONDS)
        else:
            return


def listening_inodes(server: ServerConfig) -> set[int]:
    """The inodes of the sockets that listen at the server's port, whichever process has them. Blocks."""
    until = time.monotonic() + _LISTING_SECONDS
    return {each.inode for each in tcp_sockets(LISTEN, until, port=server.address.port or 0)}


async def connect(server: ServerConfig, target: socket.socket | None) -> socket.socket:
    """A new connection to a program: through its listener or, if `target` is None, at its address. Raises OSError."""
    loop = asyncio.get_running_loop()
    address = server.address.connect_address
    if target is not None:
        family, where = target.family, target.getsockname()
    elif address.kind == "unix":
        family, where = socket.AF_UNIX, address.path
    else:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
    probe = socket.socket(family, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        await loop.sock_connect(probe, where)
    except BaseException:
        probe.close()
        raise
    return probe


class NotifySocket:
    """The notification socket of one program. Accepts only messages from the program's user `uid` and from root.

    The keeper holds it too, so that a later supervisor receives messages that arrive while none runs.
    """

    def __init__(self, sock: socket.socket, path: str, uid: int) -> None:
        sock.setblocking(False)
        platform.enable_sender_credentials(sock)
        self.path = path
        self._sock = sock
        self._uids = {0, uid}
        self._on_ready: Callable[[], None] = lambda: None
        self._allowance = process_link.message_allowance()
        self._pause: asyncio.TimerHandle | None = None

    @classmethod
    def open(cls, uid: int) -> NotifySocket:
        """Create a socket in a directory that every user may enter, so that the program's user can reach it."""
        import tempfile  # imported late: slow, and needed only for programs that notify

        directory = tempfile.mkdtemp(prefix="poolctl-notify-")
        os.chmod(directory, 0o711)
        path = os.path.join(directory, "socket")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(path)
        os.chmod(path, 0o777)
        return cls(sock, path, uid)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def start(self, on_ready: Callable[[], None]) -> None:
        """Start to listen; `on_ready` is called for each READY=1 that is received."""
        self._on_ready = on_ready
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        space = socket.CMSG_SPACE(platform.CREDENTIALS_BYTES)
        with contextlib.suppress(BlockingIOError):
            while self._allowance.take(1, loop.time()):
                # No buffer for descriptors is given, so the kernel drops them.
                data, ancillary, _, _ = self._sock.recvmsg(
                    _MAX_NOTIFICATION_BYTES, space, socket.MSG_DONTWAIT
                )
                sender = platform.sender_credentials(ancillary)
                if sender is not None and sender[1] in self._uids and b"READY=1" in data.splitlines():
                    self._on_ready()
            loop.remove_reader(self._sock.fileno())
            self._pause = loop.call_later(_NOTIFICATION_PAUSE_SECONDS, self._listen)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._sock.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
            os.rmdir(os.path.dirname(self.path))


class RoutesMessage:
    """The message that gives a worker its routes. If `routes` is None, its server has none."""

    def __init__(self, routes: WorkerRoutes | None, server: str = "") -> None:
        self._message: Message = {"order": "routes"}
        self._fds: list[HasDescriptor] = []
        if routes is not None and server in routes.tables:
            self._message |= {"key": routes.keys[server], "trusted": routes.trusted}
            self._fds = [routes.tables[server]]

    def send_if_newest(self, control: Link) -> None:
        """Send the message to a worker, unless newer routes have replaced it and its descriptors are closed."""
        if all(fd.fileno() >= 0 for fd in self._fds):
            control.send(self._message, self._fds)


@dataclass(frozen=True, slots=True)
class AdoptedWorker:
    """A worker that a previous supervisor started, with the state that the worker has reported."""

    placement: Placement
    server: ServerConfig
    ready_at: float | None = None  # on the system's monotonic clock
    leaving: bool = False  # it was asked to drain or to stop
    idle: bool = False
    resting: str = ""  # why it does not accept: "new" (never ordered to) or "told" (ordered not to)
    expired: bool = False  # it has served its `max_requests`


class LocalWorker(LinkHandler):
    """A worker process of this machine. Several tasks may await the futures `answered` (it is ready) and `exited`.

    `output` is the key of its output pipe. `handover_group` identifies its socket pair for handing over connections, if
    any (see server_sockets.handover_group). A worker that runs a command has no control socket; it can only be stopped.
    The process of a proxied server opens the address `private`; `server` has that address, and `config` the server's.
    """

    def __init__(
        self,
        children: Children,
        events: Callable[[], RunnerEventHandler],
        placement: Placement,
        server: ServerConfig,
        output: str,
        handover_group: str | None = None,
        private: Address | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._children = children
        self._events = events
        self.placement = placement
        self.config = server
        self.server = server if private is None else server.at_private_address(private)
        self.output = output
        self.handover_group = handover_group
        self.control: Link | None = None
        self.notify: NotifySocket | None = None
        self.tally: Tally | None = None  # None for a command, and after the exit
        self.exited: asyncio.Future[Exit] = loop.create_future()
        self.answered: asyncio.Future[None] = loop.create_future()
        self.reported: asyncio.Future[None] = loop.create_future()  # done when it has reported or exited
        self.begun: asyncio.Future[None] = loop.create_future()
        self.imported: asyncio.Future[None] = loop.create_future()
        self.left: asyncio.Future[None] = loop.create_future()  # done when it has stopped accepting
        # Done when no process of its group is waited for.
        self.group_ended: asyncio.Future[None] = loop.create_future()
        self.asked_to_end = False
        self.wrote_stacks = asyncio.Event()
        # Mark the exception as retrieved, because there may be no caller that awaits this future.
        self.answered.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.reason = ""
        self.missing_module = ""
        self.start: int | None = None  # the start time of its process (see process_start)
        # The inodes of the sockets that listened at its port before it was started.
        self.earlier_listeners: Set[int] = frozenset()
        self.on_never_started: Callable[[], None] = lambda: None
        self.peers: Callable[[], Collection[LocalWorker]] = tuple  # the other workers of its server that run
        self._expired = False  # it has served `max_requests` requests
        self._renewing = False  # it has not answered the order to renew its certificate
        self.breach = ""  # how it, or its zygote, broke the protocol
        self.ready_at: float | None = None  # on the system's monotonic clock, which all processes share
        self.leaving = False
        self.resting = ""  # why it does not accept: "new" (not allowed to yet), or the order that forbids it
        self.idle = False  # without traffic for its server's scale.idle
        self.routes: RoutesMessage | None = None  # its routes, sent to it when it begins
        self._page: HasDescriptor | None = None  # see RunnerWorkers
        self.hook = ""  # the hook of its server that it runs; "" for a worker
        self.preloaded = False  # forked from a process that had already imported the application
        self._taken_over = False  # started by another supervisor
        self.idle_check = EventLoopIdleDetector()

    @property
    def process(self) -> ProcessIdentity:
        """The worker's process."""
        return ProcessIdentity(self.placement.pid or 0, self.start)

    def mark_adopted(self, *, reports: bool) -> None:
        """Mark this worker as started by another supervisor.

        Set `reports` if the worker will send its state in a message, which completes the future `reported`. A worker
        that runs a command sends none. If `reports` is False and the process still runs, `reported` is completed now.
        """
        self._taken_over = True
        pid, start = self.process
        if not reports and start is not None and platform.process_start(pid) == start:
            _settle(self.reported)

    def control_by(self, sock: socket.socket) -> None:
        """From now on, use this socket to control the worker and to receive its messages."""
        self.control = Link(sock, self, trusted=False)

    def received(self, message: Message, fds: Sequence[int] = ()) -> None:
        event = sanitized_text_or_empty(message, "event")
        if event == "ready":
            self.leaving = process_link.flag_of(message, "leaving")
            self.resting = sanitized_text_or_empty(message, "resting")
            if self.leaving:
                _settle(self.left)
            _settle(self.reported)
            self.mark_ready()
        elif event == "expired":
            if self.server.http.max_requests is not None and not self._expired:
                self._expired = True
                self._events().expired(self.placement)
        elif event in ("idle", "busy"):
            self.idle = event == "idle"
            self._events().idle_changed(self.placement, self.idle)
        elif event == "left":
            _settle(self.left)
        elif event == "imported":
            _settle(self.imported)
        elif event == "stacks":
            self.wrote_stacks.set()
        elif event == "tls":
            error = sanitized_text_or_empty(message, "error") if self._renewing else ""
            self._renewing = False
            if error:
                logger.error("%s: its certificate cannot be used: %s", self.placement.id, error)
        elif event == "failed":
            self.reason = masked_text(sanitized_text_or_empty(message, "message"))
            self.missing_module = sanitized_text_or_empty(message, "missing")

    def on_link_lost(self) -> None:
        """Called when the control socket is closed: the worker has exited, or can no longer be controlled."""
        if not self.exited.done():
            loop = asyncio.get_running_loop()
            limit = loop.call_later(_END_SECONDS, self.on_violation, "closed its control socket")
            self.exited.add_done_callback(lambda _: limit.cancel())

    def on_violation(self, deed: str) -> None:
        """Kill the worker because it violated the protocol (`deed` says how); this counts as an unexpected exit."""
        if not self.breach and not self.exited.done():
            self.breach = f"it {deed}"
            logger.warning(
                "killing worker %s (pid %s): %s", self.placement.id, self.placement.pid, self.breach
            )
            self._children.kill_group_after(self.process, self.exited, 0.0)

    def mark_never_started(self, deed: str) -> None:
        """Treat the worker as exited, because its zygote reported a false pid. `deed` says what the zygote did."""
        if not self.exited.done():
            self.breach = f"its zygote {deed}"
            self.on_never_started()

    def order_to_begin(self) -> None:
        """Order the waiting process to begin its work."""
        if self.control is not None:
            self.control.send({"order": "go"})
            if self.routes is not None:
                self.routes.send_if_newest(self.control)
            self._send_page()
        _settle(self.begun)

    def assign_routes(self, routes: RoutesMessage) -> None:
        """Send the worker these routes, now or when it begins its work."""
        self.routes = routes
        if self.begun.done() and self.control is not None:
            routes.send_if_newest(self.control)

    def share_page(self, page: HasDescriptor) -> None:
        """Send the worker its server's page of connection counts. If it has not begun yet, do this when it begins."""
        if page is not self._page:
            self._page = page
            if self.begun.done():
                self._send_page()

    def _send_page(self) -> None:
        if self._page is not None and self.control is not None and self._page.fileno() >= 0:
            self.control.send({"order": "peers"}, [self._page])

    def request_beat(self, asked_ns: int) -> bool:
        """Request a heartbeat from the worker; False if it cannot be asked now."""
        if self.control is None or self.tally is None:
            return False
        self.tally.ask(asked_ns)
        return self.control.offer(BEAT)

    def set_in_rotation(self, in_rotation: bool) -> None:
        """Take the worker out of rotation, so that its clients reconnect elsewhere, or put it back."""
        if self.control is not None:
            self.control.send({"order": "in" if in_rotation else "out"})

    def set_accepting(self, accepting: bool) -> None:
        """Let the worker accept connections, or stop it from doing so."""
        self.resting = ""
        if self.control is not None:
            self.control.send({"order": "work" if accepting else "rest"})

    def watch_idleness(self, seconds: float) -> None:
        """Set the time without traffic after which the worker reports that it is idle; 0 turns this off."""
        self.idle = False
        if self.control is not None:
            self.control.send({"order": "idle", "seconds": seconds})

    def reload_tls(self, server: ServerConfig, contents: list[bytes]) -> None:
        """Send the worker the certificate, key and client CAs that were read for its server."""
        if self.control is None:
            return
        with memory_files(contents) as fds:
            self._renewing = True
            self.control.send({"order": "tls", "tls": tls_settings(server)}, fds)

    async def connect_for_probe(
        self, kind: str, plain: bool, listeners: Sequence[socket.socket], *, own: bool = False
    ) -> socket.socket:
        """Connect to the worker, and return the caller's end of the connection. Raises OSError.

        A worker that runs a command is reached through the first of `listeners` or, if there is none, at the address
        that the command binds itself. Another worker of its server may accept the connection, unless `own`.
        """
        if self.exited.done():
            raise ConnectionRefusedError("it has exited")
        if self.control is None:
            if own and listeners:
                return await self._connect_to_own(listeners[0])
            return await connect(self.server, next(iter(listeners), None))
        if self.control.waits:
            raise BlockingIOError(errno.EAGAIN, "it has not read earlier commands")
        ours, theirs = socket.socketpair()
        with theirs:
            self.control.send({"order": "conn", "kind": kind, "plain": plain}, [theirs.fileno()])
        return ours

    async def _connect_to_own(self, listener: socket.socket) -> socket.socket:
        """Connect through the listener until a process of this worker accepts the connection; returns the connection.

        Connections that other workers of the server accept are closed. While all are in the accept queue, no further
        ones are made.
        """
        count, pause = 1, _FIRST_CONNECT_PAUSE_SECONDS
        while True:
            own = None
            probes: list[socket.socket] = []
            try:
                for _ in range(count):
                    probes.append(await connect(self.server, listener))
                if _accepts_only_data(listener):
                    own = await self._assume_own(probes[0])
                else:
                    own = await self._wait_for_own(probes)
            except OSError:
                pass
            finally:
                for probe in probes:
                    if probe is not own:
                        probe.close()
            if own is not None:
                return own
            await asyncio.sleep(pause)
            # More only if it may already wait for them: they also burden the other workers.
            waits = await asyncio.to_thread(self._waits_for_events)
            count = min(count * 2, _MAX_PROBES_AT_ONCE if waits else _PROBES_AT_ONCE)
            pause = min(pause * 1.5, _LAST_CONNECT_PAUSE_SECONDS)

    def _waits_for_events(self) -> bool:
        """Whether a process of this worker waits for events (see platform.waits_for_events). Blocks."""
        return any(map(waits_for_events, platform.processes_by_leader({self.process.pid})[self.process.pid]))

    async def _wait_for_own(self, probes: Sequence[socket.socket]) -> socket.socket | None:
        """The first of the connections that this worker accepts; None if others have accepted all of them."""
        waiting = list(probes)
        pause = _FIRST_ACCEPT_PAUSE_SECONDS
        while True:
            for probe in list(waiting):
                inode = peer_inode(probe)
                if inode == 0 and not peer_has_closed(probe):
                    continue  # in the accept queue
                if await self._is_own(probe, inode):
                    return probe
                probe.close()  # the other worker may serve one client at a time
                waiting.remove(probe)
            if not waiting:
                return None
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_CONNECT_PAUSE_SECONDS)

    async def _is_own(self, probe: socket.socket, inode: int | None) -> bool:
        """Whether a process of this worker has accepted the connection, whose other end is the socket `inode`, if any.

        While no older worker of the server runs, this is also assumed of a connection that is already closed.
        """
        if inode:
            found = await self._has_socket(lambda: {inode}, strictly=self._overlaps)
        elif peer_has_closed(probe) or is_listed(probe):
            found = not self._overlaps
        else:
            found = None  # the kernel does not answer
        return (await self._assume_own(probe)) is not None if found is None else found

    async def _assume_own(self, probe: socket.socket) -> socket.socket | None:
        """Return the connection, because the system does not show which process accepts it.

        While an older worker runs, this worker is killed instead, unless it has notified that it is ready: it has to be
        started after the end of the older one.
        """
        if self.answered.done() or not self._overlaps:
            return probe
        self.reason = "the system does not show which process accepts connections"
        self._children.kill_group_after(self.process, self.exited, 0.0)
        await asyncio.wait({self.exited})
        return None

    @property
    def _overlaps(self) -> bool:
        """Whether a worker runs that this one replaces."""
        mine = self.placement
        return any(
            peer.placement.index == mine.index and peer.placement.generation < mine.generation
            for peer in self.peers()
        )

    async def _has_socket(self, inodes: Callable[[], Set[int]], *, strictly: bool) -> bool | None:
        """Whether a process of this worker has a socket with one of the `inodes`; None if that cannot be seen.

        Unless `strictly`, a process also counts that belongs to no other worker and is not older than this one: the
        program may have started it elsewhere, such as in a container.
        """
        worker, peers = self.process, {peer.process.pid for peer in self.peers()}
        # In a thread, because there may be many processes.
        return await asyncio.to_thread(lambda: _worker_has_socket(worker, peers, inodes(), strictly=strictly))

    async def _wait_until_listening(self) -> None:
        """Wait until the program listens at its port. A socket that listened there before its start does not count."""
        while True:
            await wait_until_listening(self.server)
            found = await asyncio.to_thread(listening_inodes, self.server) if self.earlier_listeners else None
            if not found or found - self.earlier_listeners:
                return
            await asyncio.sleep(_LAST_CONNECT_PAUSE_SECONDS)

    async def _wait_until_private_port_is_own(self) -> None:
        """Wait until a process of this worker listens at its private port. Raises ServerError if another one does."""
        await wait_until_listening(self.server)
        if await self._has_socket(lambda: listening_inodes(self.server), strictly=True) is False:
            message = f"another process listens at its private port {self.server.address.port}"
            raise ServerError(message, hint=f"poolctl restart {self.config.name}")

    async def _wait_until_private_port_is_unused(self, limit_seconds: float) -> None:
        """Wait until no connection to its private port is open, or it has exited, or the time limit is reached.

        A program may end at once when it gets its stop signal, with the requests that it is answering.
        """
        port = self.server.address.port or 0

        def is_used() -> bool:
            return any(tcp_sockets(CONNECTED, time.monotonic() + _LISTING_SECONDS, port=port))

        pause = _FIRST_LISTING_PAUSE_SECONDS
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_seconds):
                while not self.exited.done() and await asyncio.to_thread(is_used):
                    await asyncio.wait({self.exited}, timeout=pause)
                    pause = min(pause * 1.5, _LAST_LISTING_PAUSE_SECONDS)

    async def _wait_until_probe_accepted(self, listener: socket.socket) -> None:
        """Wait until this worker has accepted a connection that is made here."""
        while True:
            with await self._connect_to_own(listener) as probe, contextlib.suppress(OSError):
                await wait_until_accepted(probe)
                return

    async def _wait_until_client_accepted(self, listener: socket.socket) -> None:
        """Wait until this worker has accepted any connection: with many clients, a probe may wait long in the queue."""

        def accepted() -> set[int]:
            return set(accepted_inodes(listener, time.monotonic() + _LISTING_SECONDS))

        pause = _FIRST_LISTING_PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause)
            if has_others_waiting(listener) and await self._has_socket(accepted, strictly=True):
                return
            pause = min(pause * 1.5, _LAST_LISTING_PAUSE_SECONDS)

    async def stop_accepting(self, receivers: str | None) -> None:
        """Stop the worker from accepting; return when it has stopped, or after drain_timeout.

        A worker that runs a command gets its stop signal, and may go on accepting until it exits. One that has not
        reported that it is ready has hardly accepted anything: the time for it is stop_timeout. For `receivers` see
        `_order_end`.
        """
        if self.left.done():
            return
        if self.control is None:
            if self.config.is_proxied and self.answered.done():
                await self._wait_until_private_port_is_unused(self.server.drain_timeout)
            if self.server.listens:
                await self._ask_to_end()
            _settle(self.left)
        else:
            await self._order_end("drain", receivers)
        server = self.server
        limit = server.drain_timeout if self.answered.done() else server.stop_timeout
        await asyncio.wait({self.left}, timeout=limit)

    async def drain(self, receivers: str | None) -> None:
        """Stop the worker from accepting; return when its connections are closed, or after drain_timeout.

        Returns at once for a program without a port, which has no connections. `receivers`: see `_order_end`.
        """
        until = asyncio.get_running_loop().time() + self.server.drain_timeout
        await self.stop_accepting(receivers)
        if self.server.listens and self.left.done():
            await asyncio.wait({self.exited}, timeout=until - asyncio.get_running_loop().time())

    async def stop(self, timeout_seconds: float, receivers: str | None) -> Exit:
        """Ask the worker to end, kill it after the timeout, and return its exit. For `receivers` see `_order_end`.

        The end of a program includes that of its process group, unless its `stop_group` is "leader". Raises
        TimeoutError if it does not end even when killed.
        """
        await self._order_end("stop", receivers)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await self._wait_until_ended()
        except TimeoutError:
            group = self.server.stop_group != "leader"
            await self._children.try_signal(self.process, self.exited, signal.SIGKILL, group=group)
            async with asyncio.timeout(KILL_SECONDS):
                exit_ = await self._wait_until_ended()
            return Exit.from_signal(signal.SIGKILL) if exit_.group_left else exit_

    async def _ask_to_end(self) -> None:
        """Send the stop signal, unless the process has exited: then the rest of its group has got the signal."""
        if self.exited.done():
            return
        self.asked_to_end = True
        group = self.server.stop_group == "together"
        number = self.server.stop_signal_number
        await self._children.try_signal(self.process, self.exited, number, group=group)

    async def _wait_until_ended(self) -> Exit:
        exit_ = await asyncio.shield(self.exited)
        await asyncio.shield(self.group_ended)
        return exit_

    async def _order_end(self, order: str, receivers: str | None) -> None:
        """Order the worker to drain or to stop; a program, and a worker that may not read orders yet, gets a signal.

        `receivers` is the `handover_group` of the workers that stay; None if no worker stays. The worker hands its
        connections over to them only if its own is equal.
        """
        if self.control is not None:
            same = receivers is not None and receivers == self.handover_group
            self.control.send({"order": order, "to": "pair" if same else "none"})
            self._children.continue_now(self.process)
        if self.control is None or not self.answered.done():
            # A worker that is still importing its application reads no orders. One that serves already has read this
            # order before the signal, which then has no effect.
            await self._ask_to_end()

    async def wait_until_ready(self, listeners: Sequence[socket.socket]) -> None:
        """Wait until the worker is ready. Raises WorkerFailed if it exits before, ServerError if it cannot become so.

        A job is ready when it has exited with 0. A program that does not report readiness is ready when it accepts a
        connection or, without a port, when it has run for a moment.
        """
        server = self.server
        if server.job:
            exit_ = await asyncio.shield(self.exited)
            if not exit_.ok:
                raise WorkerFailed(exit_.message, hint=f"poolctl logs {server.name}", exit=exit_)
        elif not (server.listens or server.notify):
            if server.is_ready_by_running:
                await asyncio.wait({self.exited}, timeout=server.ready_after)
            self.mark_ready()
        elif server.command and not server.notify:
            if listeners:
                shared = listeners[0]
                await self.become_ready_by(
                    self._wait_until_probe_accepted(shared), self._wait_until_client_accepted(shared)
                )
            elif self.config.is_proxied:
                await self.become_ready_by(self._wait_until_private_port_is_own())
            else:
                await self.become_ready_by(self._wait_until_listening())
        await asyncio.shield(self.answered)

    async def become_ready_by(self, *signs: Awaitable[None]) -> None:
        """Wait for the first of these signs, and mark the worker as ready.

        Raises WorkerFailed if it exits before, and the exception of a sign.
        """
        looks = {asyncio.ensure_future(sign) for sign in signs}
        try:
            await asyncio.wait({*looks, self.answered}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for look in looks:
                look.cancel()
        for look in looks:
            if look.done():
                look.result()
        self.mark_ready()
        await asyncio.shield(self.answered)

    def mark_ready(self) -> None:
        """Mark the worker as ready; has no effect once it has exited."""
        _settle(self.imported)
        if not self.answered.done():
            self.ready_at = self.ready_at or time.monotonic()
            self.answered.set_result(None)

    def to_adopted(self) -> AdoptedWorker:
        """This worker's placement, configuration and reported state, for the core to adopt."""
        return AdoptedWorker(
            self.placement, self.config, self.ready_at, self.leaving, self.idle, self.resting, self._expired
        )

    def meta(self) -> Message:
        """The value of this worker's entry in the keeper's store, from which a later supervisor adopts it."""
        placement = self.placement
        if self.start is None and placement.pid is not None:
            self.start = platform.process_start(placement.pid)
        return {
            "server": placement.server,
            "key": self.server.key,
            "generation": placement.generation,
            "index": placement.index,
            "pid": placement.pid,
            "start": self.start,
            "ready_at": self.ready_at,
            "output": self.output,
            "protocol": self.handover_group,
            "notify": self.notify.path if self.notify is not None else None,
            "stop_signal": self.server.stop_signal_number,
            **({"keeps_group": True} if self.server.command else {}),
            **({"hook": self.hook} if self.hook else {}),
        }

    def listen_for_readiness(self, notify: NotifySocket) -> None:
        """Listen on this socket until the program exits; its message READY=1 marks the program as ready."""
        self.notify = notify
        notify.start(self.mark_ready)
        self.exited.add_done_callback(lambda _: notify.close())

    def record_exit(self, exit_: Exit) -> None:
        """Record how the process exited, and complete all futures of this worker. A second call has no effect."""
        if self.exited.done():
            return
        if self.control is not None:
            # Its last messages may arrive after the report of its exit.
            self.control.dispatch_arrived_messages()
        runs_to_its_end = self.server.job or self.hook
        if self._taken_over and exit_.ok and not (self.reported.done() or runs_to_its_end):
            exit_ = _UNSEEN
        for each in (self.reported, self.begun, self.imported, self.left):
            _settle(each)
        self.exited.set_result(exit_)
        if not exit_.group_left or self.server.stop_group == "leader":
            _settle(self.group_ended)
        if not self.answered.done():
            hint = f"poolctl logs {self.server.name}"
            if exit_.ok and self.server.command and not self.server.job:
                hint = f"{_fix_for_early_end(self.server)}; {hint}"
            if self.missing_module:
                hint = f"{missing_module_hint(self.missing_module, self.server)}; {hint}"
            self.answered.set_exception(
                WorkerFailed(exit_.message_before_ready(self.reason), hint=hint, exit=exit_)
            )
        if self.control is not None:
            self.control.close()
        # Breaks a reference cycle, so that this object is freed without the garbage collector.
        self.on_never_started = lambda: None
        self.peers = tuple


def _fix_for_early_end(server: ServerConfig) -> str:
    """What may keep a program running that ended by itself with status 0 before it was ready."""
    fixes = ["keep it in the foreground"]
    if "stdin" not in server.model_fields_set:
        fixes.append('write stdin = "open" if it ends at the end of its input')
    if not server.listens:
        fixes.append("write job = true if it runs to its end")
    return f"{', '.join(fixes[:-1])}, or {fixes[-1]}" if len(fixes) > 1 else fixes[0]


def _accepts_only_data(listener: socket.socket) -> bool:
    """Whether a connection is accepted only when data has arrived (tcp(7), TCP_DEFER_ACCEPT)."""
    if listener.family == socket.AF_UNIX:
        return False
    return listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0


def _worker_has_socket(
    worker: ProcessIdentity, peers: Set[int], inodes: Set[int], *, strictly: bool
) -> bool | None:
    """See LocalWorker._has_socket; `peers` are the pids of the other workers. Blocks."""
    processes = platform.processes_by_leader({worker.pid, *peers})
    own = [platform.socket_inodes(pid) for pid in processes.pop(worker.pid)]
    if any(found and not found.isdisjoint(inodes) for found in own):
        return True
    if strictly:
        return None if all(found is None for found in own) else False
    strangers = processes.pop(None)
    others = [pid for pids in processes.values() for pid in pids]
    others += [pid for pid in strangers if (platform.process_start(pid) or 0) < (worker.start or 0)]
    return all((platform.socket_inodes(pid) or set()).isdisjoint(inodes) for pid in others)


def _settle(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


class RunnerWorkers(dict[str, LocalWorker]):
    """All workers by id; `of` returns a server's workers.

    The workers of one server share a memory page with their connection counts (see connection_balancer). This object
    keeps the page's descriptor, for workers that are added later. After a takeover, all workers get a new page. Changed
    only by `add` and `remove`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._by_key: dict[str, dict[LocalWorker, None]] = {}
        self._pages: dict[str, tuple[str, Descriptor]] = {}

    def add(self, worker: LocalWorker) -> None:
        """Add a worker. If its server is to have several workers, give all of them the page of connection counts."""
        key, group = worker.config.key, worker.handover_group
        self[worker.placement.id] = worker
        self._by_key.setdefault(key, {})[worker] = None
        if group is None:
            return
        peers = [
            each for each in self._by_key[key] if each.handover_group == group and not each.exited.done()
        ]
        if len(peers) < 2 and worker.server.workers < 2:
            return
        if key in self._pages and self._pages[key][0] != group:
            self._pages.pop(key)[1].close()
        if key not in self._pages:
            self._pages[key] = group, Descriptor(create_peer_counts_page())
        for peer in peers:
            peer.share_page(self._pages[key][1])

    def remove(self, worker: LocalWorker) -> None:
        """Remove a worker that has exited. A second call has no effect."""
        if self.get(worker.placement.id) is worker:
            del self[worker.placement.id]
        key = worker.config.key
        of_server = self._by_key.get(key, {})
        of_server.pop(worker, None)
        if not of_server:
            self._by_key.pop(key, None)
            if key in self._pages:
                self._pages.pop(key)[1].close()

    def of(self, key: str) -> Collection[LocalWorker]:
        """The workers of the server whose canonical address is `key`."""
        return self._by_key.get(key, ())

    def running_peers(self, worker: LocalWorker) -> list[LocalWorker]:
        """The other workers of the worker's server that have not exited."""
        return [each for each in self.of(worker.config.key) if each is not worker and not each.exited.done()]


class Tallies:
    """Reads the request counts of running `workers`, and reports the final counts of exited workers.

    Each worker counts on a page of memory. The keeper holds an exited worker's page until its counts are saved, for a
    successor of this supervisor to add them up. `events` returns the receiver of the reports.
    """

    def __init__(
        self, keeper: Link, workers: Mapping[str, LocalWorker], events: Callable[[], RunnerEventHandler]
    ) -> None:
        self._keeper = keeper
        self._workers = workers
        self._events = events
        self._open: set[str] = set()

    def counts(self, placement: Placement) -> Counts | None:
        """The worker's request counts; None if it has exited, or runs a command and so counts nothing."""
        worker = self._workers.get(placement.id)
        if worker is None or worker.tally is None:
            return None
        return self._read(placement.server, placement.id, worker.tally)

    def _read(self, server: str, name: str, tally: Tally) -> Counts | None:
        believed = not tally.refused
        counts = tally.counts()
        if believed and tally.refused:
            self._events().record_impossible_counts_event(server, name, tally.refused)
        return counts

    def collect_final_counts(self, server: str, name: str, tally: Tally) -> None:
        """Report an exited worker's final counts; the keeper holds them until `discard_saved_counts`."""
        counts = self._read(server, name, tally)
        if counts is not None and any(left := final_counts(counts)):
            entry = {"op": "put", "name": f"{fd_store.TALLY}{name}", "meta": {"server": server}}
            self._keeper.send(entry, [tally.fileno()])
            self._open.add(name)
            self._events().add_up_counts(server, name, left)
        tally.close()

    def add_up_unsaved_counts(self, name: str, meta: Message, fds: list[int]) -> list[Tally]:
        """Report an exited worker's counts, which an earlier supervisor did not save. Close `fds`, and return []."""
        tally = Tally(fds[0])
        counts = tally.counts()
        tally.close()
        self._open.add(name)
        if counts is not None:
            self._events().add_up_counts(meta["server"], name, final_counts(counts))
        return []

    def discard_saved_counts(self) -> None:
        """Let the keeper drop the counts of exited workers, because all that were reported so far have been saved."""
        for name in self._open:
            self._keeper.send({"op": "drop", "name": f"{fd_store.TALLY}{name}"})
        self._open.clear()

    @property
    def unsaved_workers(self) -> list[str]:
        """The names of exited workers whose counts are not saved yet, sorted; the next supervisor gets them again."""
        return sorted(self._open)


class WorkerHeartbeats:
    """Requests heartbeats from the `workers`, by id. A worker answers while its event loop runs. Never blocks."""

    def __init__(self, workers: Mapping[str, LocalWorker]) -> None:
        self._workers = workers

    def request_beat(self, placement: Placement, asked_ns: int) -> bool:
        """Request a heartbeat from a worker at the time `asked_ns`. Returns False if it cannot be asked now."""
        worker = self._workers.get(placement.id)
        return worker is not None and worker.request_beat(asked_ns)

    def last_beat_ns(self, placement: Placement) -> int:
        """The `asked_ns` of the heartbeat that the worker answered last; 0 if it does not answer heartbeats (yet)."""
        worker = self._workers.get(placement.id)
        return worker.tally.last_beat_ns() if worker is not None and worker.tally is not None else 0

    def idle_since_answer(self, placement: Placement) -> bool:
        """Whether the worker has only waited in its event loop since its last heartbeat; False if that is unknown."""
        worker = self._workers.get(placement.id)
        if worker is None or worker.tally is None or placement.pid is None:
            return False
        return worker.idle_check.is_idle(placement.pid, worker.tally)


class EventLoopIdleDetector:
    """Detects whether a worker's event loop is idle, without sending it a message.

    A worker is found idle when its main thread waits for events in the loop, and the process has used hardly any
    processor time since its last heartbeat. It then counts as idle for as long as its processor time does not change,
    because a process that has not run is still waiting. Once its processor time changes, the worker does not count as
    idle until its next heartbeat: it may have handled a request, or a thread may have taken Python's lock.
    """

    __slots__ = ("_answered_at_ns", "_idle_at_ns")

    def __init__(self) -> None:
        self._answered_at_ns = 0
        self._idle_at_ns: int | None = None

    def is_idle(self, pid: int, tally: Tally) -> bool:
        """Whether the process `pid` is idle; False if the kernel does not report its processor time. Does not block.

        `tally` has the processor time that the worker had used at its last heartbeat.
        """
        used_ns = process_cpu_ns(pid)
        if used_ns is None or used_ns == self._idle_at_ns:
            return used_ns is not None
        self._idle_at_ns = None
        before_ns, self._answered_at_ns = self._answered_at_ns, tally.beat_cpu_ns()
        if (
            self._answered_at_ns != before_ns
            and used_ns - self._answered_at_ns <= _AFTER_ANSWER_NS
            and waits_for_events(pid)
            # The process has not run meanwhile, so the observation before is still valid.
            and process_cpu_ns(pid) == used_ns
        ):
            self._idle_at_ns = used_ns
        return self._idle_at_ns is not None


class StackReader:
    """Reads the Python and kernel stacks of `workers`, which are given by worker id."""

    def __init__(self, children: Children, workers: Mapping[str, LocalWorker]) -> None:
        self._children = children
        self._workers = workers
        self._asked: dict[str, asyncio.Task[WorkerStacks]] = {}
        self._reading = asyncio.Semaphore(_MAX_READING)

    async def stacks(self, worker: str, seconds: float) -> WorkerStacks:
        """The worker's stacks; concurrent requests share one answer."""
        found = self._workers.get(worker)
        if found is None or found.exited.done():
            name = worker.rsplit(".", 2)[0]
            return WorkerStacks(name=name, worker=worker, pid=None, problem="it has exited")
        asked = self._asked.get(worker)
        if asked is None:
            asked = self._asked[worker] = asyncio.ensure_future(self._request_stacks(found, seconds))
            asked.add_done_callback(lambda _: self._asked.pop(worker))
        return await asyncio.shield(asked)

    async def _request_stacks(self, worker: LocalWorker, seconds: float) -> WorkerStacks:
        problem, source, written = _reason_stacks_unavailable(worker), "", b""
        if not problem:
            until = asyncio.get_running_loop().time() + (_PYTHON_SHARE + _FAULTHANDLER_SHARE) * seconds
            if await self._request_stack_dump(worker, ASK, until - _FAULTHANDLER_SHARE * seconds):
                source = PYTHON
            elif _handles_signal(worker, ASK_AGAIN):
                source = PYTHON if await self._request_stack_dump(worker, ASK_AGAIN, until) else FAULTHANDLER
            written = worker.tally.stacks() if worker.tally is not None else b""
            problem = _explain_missing_stacks(worker, source if written else "")
        directories = (worker.server.app_dir, worker.server.base_dir)
        # In a thread: the worker writes whatever it likes, up to 256 KiB.
        threads, tasks = await in_daemon_thread(functools.partial(parse, written, source, directories))
        return WorkerStacks(
            name=worker.placement.server,
            worker=worker.placement.id,
            pid=worker.placement.pid,
            source=source if threads else "",
            problem=problem,
            place=find_main_thread_hang(threads),
            threads=tuple(threads),
            tasks=tuple(tasks),
            kernel=()
            if source == PYTHON
            else await self._kernel_threads(worker, (1 - _PYTHON_SHARE - _FAULTHANDLER_SHARE) * seconds),
        )

    async def _request_stack_dump(self, worker: LocalWorker, signal_number: int, until: float) -> bool:
        """Signal the worker to write its stacks; returns whether it did so before `until`, a time of the event loop."""
        if worker.tally is None:
            return False  # it has exited
        worker.tally.clear_stacks()
        worker.wrote_stacks.clear()
        try:
            async with asyncio.timeout_at(until):
                await self._children.try_signal(worker.process, worker.exited, signal_number)
                await worker.wrote_stacks.wait()
        except TimeoutError:
            return False
        return True

    async def _kernel_threads(self, worker: LocalWorker, seconds: float) -> tuple[KernelThread, ...]:
        pid = worker.placement.pid
        assert pid is not None
        try:
            async with asyncio.timeout(seconds), self._reading:
                found = await in_daemon_thread(
                    functools.partial(platform.kernel_state_of_threads, pid, _MAX_THREADS)
                )
        except TimeoutError:
            return ()
        return tuple(
            from_json(KernelThread, {**each, "name": process_link.sanitize_and_truncate_text(each["name"])})
            for each in found
        )


def _reason_stacks_unavailable(worker: LocalWorker) -> str:
    """The reason why the worker cannot be asked for its stacks; "" if it can."""
    if worker.server.command:
        return "a program has no Python stacks here; its threads, as the kernel sees them:"
    if platform.status_of(worker.placement.pid or 0).get(b"State", b"").startswith((b"T", b"t")):
        return "it is stopped (SIGSTOP, or a debugger): kill -CONT lets it continue"
    if worker.tally is None or not worker.tally.has_stacks:
        return "it cannot be asked: it has just been forked"
    return ""


def _explain_missing_stacks(worker: LocalWorker, source: str) -> str:
    """Return why stacks are missing (`source` is "") or incomplete (from faulthandler); "" if `source` is PYTHON."""
    if source == PYTHON:
        return ""
    if worker.exited.done():
        return "it has exited"
    if source:
        return "its tasks are unknown: its main thread is inside a C function, or its application handles SIGURG itself"
    return (
        "it does not answer: it cannot run now, or its application has replaced the handlers of the signals"
    )


def _handles_signal(worker: LocalWorker, number: int) -> bool:
    """Whether the process handles the signal, which would otherwise end it."""
    caught = platform.status_of(worker.placement.pid or 0).get(b"SigCgt", b"0")
    return bool(int(caught, 16) >> (number - 1) & 1)
