"""Activates sleeping servers: their listeners are watched without a process until the first request.

Each connection is accepted and inspected without reading (MSG_PEEK): a connection that is opened and closed, or that
sends no request, wakes no server. The first request wakes the server. Its next worker then gets all held connections,
and connections left by exited workers, through a socket pair (the adoption pair, see server_sockets). Connections that
arrive later wait in the backlog.

If an application may have a copy of a listener or pair, a separate process, the accept helper (poolctl.acceptor), takes
the connections: the application can make accept(2) on that listener block forever, or send anything through the pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from poolctl.config import ServerConfig
from poolctl.keeper import fd_store, wire
from poolctl.keeper.connection_handover import Connection, from_message
from poolctl.platform import close_promptly

from ..helper_process import Helpers
from ..process_link import HasDescriptor, Link
from .accept_helper import ACCEPT, TAKE, AcceptHelper, ConnectionRequest, FetchOutcome
from .first_bytes import ENOUGH_BYTES, FirstBytesKind, bad_request_response, classify_first_bytes
from .local_worker import LocalWorker
from .server_sockets import AdoptionPairs, Sockets

_PAIR_RETRY_SECONDS = 0.003
# The maximum of held connections, even with a high limit of open files, because each needs memory.
MAX = 8192
# The minimum even if most descriptors are in use, so that slow clients have time to send their request.
MIN = 16
_MAX_AT_ONCE = 64
_LOOK_SECONDS = 0.1
_RETRY_SECONDS = 0.1
_CONNECTION_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_HANGUP_EVENTS = select.EPOLLRDHUP | select.EPOLLHUP


@dataclass(slots=True, eq=False)
class HeldConnection:
    """A connection held until its request arrives.

    `unseen`: no worker has had it before.
    """

    sock: Connection
    unseen: bool = True
    begun: bool = False  # the client has sent the beginning of a request
    name: str = ""  # the name of its entry in the keeper's store
    timer: asyncio.TimerHandle | None = None

    @classmethod
    def accepted(cls, sock: socket.socket, head_seconds: float) -> HeldConnection:
        """A new connection with a time limit for its request's head. It takes ownership of `sock`."""
        held = cls(Connection(fileno=sock.detach()))
        held.limit_time(head_seconds, between_requests=False)
        return held

    def limit_time(self, seconds: float, *, between_requests: bool) -> None:
        """Limit the client's time to begin its next request (`between_requests`) or to complete a request's head.

        A limit of the same kind that is already set stays unchanged; a limit of the other kind is replaced.
        """
        if self.sock.until is None or self.sock.idle is not between_requests:
            self.sock.until, self.sock.idle = time.monotonic() + seconds, between_requests

    def set_timer(self, late: Callable[[], None]) -> None:
        """Have `late` called when the time limit expires, if one is set."""
        self.stop_timer()
        if self.sock.until is not None:
            seconds = max(0.0, self.sock.until - time.monotonic())
            self.timer = asyncio.get_running_loop().call_later(seconds, late)

    def stop_timer(self) -> None:
        """Cancel the timer. The deadline stays set on `sock`, for the process that gets the connection next."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class HeldConnectionLimit:
    """Limits the connections held for sleeping servers, so that a quarter of this process's descriptors stays free.

    The keeper also holds each of these connections, and has the same limit of descriptors.
    """

    def __init__(self) -> None:
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The arrivals of one turn of the loop must fit as well.
        self.most_at_once = max(1, min(_MAX_AT_ONCE, self._limit // 16))
        self._most = 0
        self._looked_at = 0.0

    def too_many(self, count: int) -> bool:
        if count <= MIN:
            return False
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            # Descriptors used for everything else; counting them for each connection would take too long.
            others = len(os.listdir("/proc/self/fd")) - count
            self._most = min(MAX, max(MIN, self._limit - self._limit // 4 - others))
            self._looked_at = time.monotonic()
        return count > self._most


@dataclass(slots=True, eq=False)
class SleepingListener:
    """A sleeping server's listeners, and the connections accepted for it.

    If `accepts` is set, connections are accepted while the server sleeps, and only a request wakes it. If not, each
    connection wakes the server, and a worker accepts it. `shared` is set if an application may hold the listeners too.
    `left` is the socket with connections that exited workers have passed to the server's next workers, or
    None. If `refuses` is set, each connection is closed, and none wakes the server; it then owns its listeners. A
    connection that has received a response may stay idle for `quiet_seconds`. Any other connection must send
    its request's head within `head_seconds`. The worker that gets a connection keeps the connection's deadline.
    """

    key: str
    listeners: Sequence[socket.socket]
    on_request: Callable[[], None]
    accepts: bool
    shared: bool
    tls: bool
    left: socket.socket | None
    quiet_seconds: float
    head_seconds: float
    refuses: bool = False
    connections: dict[HeldConnection, None] = field(default_factory=dict)  # in the order of arrival
    timer: asyncio.TimerHandle | None = None
    # Descriptors for which a request to the accept helper is pending.
    fetched: set[int] = field(default_factory=set)
    armed: bool = False
    paused: bool = True  # its listeners are not watched at the moment

    @property
    def sockets(self) -> dict[int, socket.socket]:
        """The sockets on which connections arrive, by descriptor."""
        left = [] if self.left is None else [self.left]
        return {sock.fileno(): sock for sock in (*self.listeners, *left)}

    def expendable(self, newest: HeldConnection) -> HeldConnection | None:
        """Return the connection to close when too many are held; never `newest`, nor one that has begun a request.

        Of the others, it is the oldest that no worker has had; if there is none, the oldest. None without others.
        """
        oldest = None
        for connection in self.connections:
            if not connection.begun and connection is not newest:
                if connection.unseen:
                    return connection
                oldest = oldest or connection
        return oldest

    def limit_wait(self, held: HeldConnection, late: Callable[[], None], *, begun: bool) -> None:
        """Set a time limit for the next request to begin or, if `begun`, for its whole head; on expiry call `late`."""
        held.begun = begun
        if begun:
            held.limit_time(self.head_seconds, between_requests=False)
        elif held.sock.until is None and not held.sock.idle:
            held.limit_time(self.quiet_seconds, between_requests=True)
        held.set_timer(late)


@dataclass(slots=True, eq=False)
class ConnectionFetch:
    """A pending request to the accept helper, for connections of the listener `fd`, or of the pair if `fd` is -1.

    With `clears`, it takes every connection that workers have left in the pair. `wanted` is False once the server is
    stopped: then the connections are closed.
    """

    sleeping: SleepingListener
    fd: int
    clears: bool
    wanted: bool


class Activator:
    """Watches the listeners of a runner's sleeping servers with one epoll instance, and wakes a server at a request.

    Connections that wait for a worker are also stored in the keeper process, so that they survive this process. Must
    be created on the running loop.
    """

    def __init__(self, keeper: Link, sockets: Sockets, adoptions: AdoptionPairs, helpers: Helpers) -> None:
        self._keeper = keeper
        self._sockets = sockets
        self._adoptions = adoptions
        self._accept_helper = AcceptHelper(helpers, self._take_inherited_connection)
        self._numbers = itertools.count(os.getpid() << 32)  # different from a successor's
        self._servers: dict[str, ServerConfig] = {}
        self._sleeping: dict[str, SleepingListener] = {}
        self._servers_that_block: set[str] = set()
        self._fetches: set[ConnectionFetch] = set()
        self._limit = HeldConnectionLimit()
        # Connections that wait for room in their server's adoption pair, by the server's key.
        self._leaving: dict[str, list[HeldConnection]] = {}
        self._watched: dict[int, tuple[SleepingListener, HeldConnection | None]] = {}
        self._epoll: select.epoll | None = None

    def arm(self, server: ServerConfig, on_request: Callable[[], None]) -> None:
        """Watch the server for its first request; then stop watching, and call `on_request` once, on the loop.

        Connections that exited workers left open are watched too.
        """
        self._servers[server.key] = server
        # A program takes connections from the listener only.
        accepts = not server.command
        left = self._adoptions.take_end(server.key) if accepts else None
        sleeping = SleepingListener(
            server.key,
            self._sockets.of(server),
            on_request,
            accepts=accepts,
            shared=self._sockets.shared(server.key),
            tls=bool(server.tls),
            left=left,
            quiet_seconds=server.http.keep_alive,
            head_seconds=server.http.head_timeout,
        )
        self._arm(sleeping)

    def close_arriving(self, server: ServerConfig, listeners: Sequence[socket.socket]) -> None:
        """Close each connection that arrives at these listeners, until `disarm_and_hand_over`. Takes over `listeners`.

        An application may have set them to blocking, so the accept helper takes the connections.
        """
        self._arm(
            SleepingListener(
                server.key, listeners, lambda: None, accepts=True, shared=True, tls=bool(server.tls), left=None,
                quiet_seconds=0, head_seconds=server.http.head_timeout, refuses=True,
            )
        )  # fmt: skip

    def _arm(self, sleeping: SleepingListener) -> None:
        self.disarm_and_hand_over(sleeping.key)
        self._sleeping[sleeping.key] = sleeping
        # After one blocked call accept(2) is not called again: any connection wakes that server.
        sleeping.accepts = sleeping.accepts and sleeping.key not in self._servers_that_block
        if sleeping.accepts and (sleeping.shared or sleeping.left is not None):
            self._accept_helper.warm()
        sleeping.armed = True
        self._watch_listeners(sleeping)
        for held in self._leaving.pop(sleeping.key, []):
            # Not sent before the server fell asleep again.
            self._watch_held(sleeping, held)

    def disarm_and_hand_over(self, key: str) -> None:
        """Stop watching for a request. The server's next workers get all held connections, and accept new ones."""
        sleeping = self._sleeping.pop(key, None)
        if sleeping is None:
            return
        sleeping.armed = False
        self._unwatch_listeners(sleeping)
        if sleeping.refuses:
            for sock in sleeping.listeners:
                sock.close()
        for held in sleeping.connections:
            self._unwatch(held.sock.fileno())
            held.stop_timer()
        self._hand_over(key, sleeping.connections)

    def close_unused_socket_pair(self, key: str, workers: Iterable[LocalWorker]) -> None:
        """Close the socket pair through which a sleeping server's workers got connections, once it is empty.

        Connections that are still in the pair are fetched from it first. Nothing is done if a worker among `workers` is
        running, or if the server is awake.
        """
        # Once the pair is empty no further connections come through it.
        if all(worker.exited.done() for worker in workers):
            self._fetch_connections_left_in_pair(key)

    def close_waiting(self, key: str) -> None:
        """Close all connections that wait for a worker of the server."""
        self._close_held_connections(key)
        self._adoptions.close_queued(key)

    def forget_and_close_held(self, key: str) -> None:
        self._close_held_connections(key)
        self.disarm_and_hand_over(key)
        self._servers_that_block.discard(key)
        self._servers.pop(key, None)

    def forget_all_and_close_held(self) -> None:
        """Forget all servers, close the connections held for them, and end the accept helper."""
        for key in {*self._sleeping, *self._leaving, *(fetch.sleeping.key for fetch in self._fetches)}:
            self.forget_and_close_held(key)
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._watched.clear()
        self._accept_helper.close()

    def requeue_held_connection(
        self, servers: Mapping[str, ServerConfig], number: str, meta: wire.Message, fds: list[int]
    ) -> list[HasDescriptor]:
        """Remove a held connection from the keeper's store, and queue it for its server's next worker. Return []."""
        self._keeper.send({"op": "drop", "name": f"{fd_store.HELD_CONNECTION}{number}"})
        try:
            sock = from_message(meta, fds)
        except wire.WireError:  # its client has gone
            return []
        try:
            if (server := servers.get(meta["key"])) is not None:
                self._servers[server.key] = server
                self._queue_duplicate(server.key, sock)
        finally:
            close_promptly(sock.detach())
        return []

    async def adopt_acceptor(self, servers: Mapping[str, ServerConfig]) -> None:
        """Use the previous supervisor's accept helper, which may still send connections accepted for `servers`."""
        self._servers.update(servers)
        await self._accept_helper.adopt()

    def _take_inherited_connection(self, key: str, sock: Connection) -> None:
        """Take a connection that an earlier supervisor requested. It may wake its server."""
        if (sleeping := self._sleeping.get(key)) is not None:
            self._hold(sleeping, HeldConnection(sock, unseen=False))
            return
        try:
            if key in self._servers:
                self._queue_duplicate(key, sock)
        finally:
            close_promptly(sock.detach())

    def _fetch_connections_left_in_pair(self, key: str) -> None:
        """Begin to take all connections that exited workers left in a sleeping server's socket pair, and hold them."""
        sleeping = self._sleeping.get(key)
        if sleeping is not None and sleeping.left is not None and sleeping.accepts:
            self._start_fetch(sleeping, sleeping.left, clears=True)

    def _close_held_connections(self, key: str) -> None:
        """Close every connection that is held or being fetched for the server."""
        for fetch in self._fetches:
            fetch.wanted = fetch.wanted and fetch.sleeping.key != key
        if sleeping := self._sleeping.get(key):
            for held in list(sleeping.connections):
                self._close(sleeping, held)
        for held in self._leaving.pop(key, []):
            self._stop_holding(held)

    def _watch(self, fd: int, sleeping: SleepingListener, held: HeldConnection | None = None) -> None:
        """Watch `fd`: the connection `held` or, if `held` is None, one of `sleeping.sockets`. Raises OSError."""
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_events)
        self._watched[fd] = (sleeping, held)
        self._epoll.register(fd, select.EPOLLIN if held is None else _CONNECTION_EVENTS)

    def _unwatch(self, fd: int) -> None:
        # Closing a descriptor does not remove it from an epoll while other processes hold duplicates.
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _watch_listeners(self, sleeping: SleepingListener) -> None:
        sleeping.paused = False
        try:
            for fd in sleeping.sockets.keys() - sleeping.fetched:
                self._watch(fd, sleeping)
        except OSError:
            self._pause_watching(sleeping)

    def _pause_watching(self, sleeping: SleepingListener) -> None:
        # Most likely out of descriptors: new connections wait in the backlog, and connections left by workers in the
        # pair.
        self._unwatch_listeners(sleeping)
        sleeping.timer = asyncio.get_running_loop().call_later(
            _RETRY_SECONDS, self._watch_listeners, sleeping
        )

    def _unwatch_listeners(self, sleeping: SleepingListener) -> None:
        # A listener stays readable while a connection waits in the backlog: a level-triggered epoll would spin.
        if sleeping.timer is not None:
            sleeping.timer.cancel()
            sleeping.timer = None
        if not sleeping.paused:
            sleeping.paused = True
            for fd in sleeping.sockets:
                self._unwatch(fd)

    def _on_events(self) -> None:
        for fd, events in self._epoll.poll(0) if self._epoll is not None else ():
            if fd not in self._watched:
                continue  # an earlier event of this batch has unwatched it
            sleeping, held = self._watched[fd]
            if held is not None:
                self._inspect(sleeping, held, last=bool(events & _HANGUP_EVENTS))
            elif not sleeping.accepts:
                self._wake(sleeping)
            elif sleeping.shared or sleeping.sockets[fd] is sleeping.left:
                self._unwatch(fd)
                sleeping.fetched.add(fd)
                self._start_fetch(sleeping, sleeping.sockets[fd])
            else:
                self._accept(sleeping, sleeping.sockets[fd])

    def _accept(self, sleeping: SleepingListener, listener: socket.socket) -> None:
        """Accept connections from a listener that no application shares, and hold them until one sends a request."""
        for _ in range(self._limit.most_at_once):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._pause_watching(sleeping)
                return
            self._hold(sleeping, HeldConnection.accepted(sock, sleeping.head_seconds))
            if not sleeping.armed:
                return

    def _start_fetch(
        self, sleeping: SleepingListener, shared: socket.socket, *, clears: bool = False
    ) -> None:
        """Have the accept helper, a separate process, take connections from `shared`."""
        kind, fd = TAKE if shared is sleeping.left else ACCEPT, -1 if clears else shared.fileno()
        fetch = ConnectionFetch(sleeping, fd, clears, wanted=not sleeping.refuses)
        self._fetches.add(fetch)
        request = ConnectionRequest(
            kind,
            sleeping.key,
            partial(self._on_connection_arrived, fetch, kind == ACCEPT),
            partial(self._on_fetch_ended, fetch),
        )
        self._accept_helper.fetch(request, shared, self._limit.most_at_once)

    def _on_connection_arrived(self, fetch: ConnectionFetch, unseen: bool, sock: Connection) -> None:
        held, key = HeldConnection(sock, unseen=unseen), fetch.sleeping.key
        if unseen:
            held.limit_time(fetch.sleeping.head_seconds, between_requests=False)
        if not fetch.wanted:
            self._stop_holding(held)
        elif sleeping := self._sleeping.get(key):
            self._hold(sleeping, held)
        else:
            # The server has been woken meanwhile.
            self._hand_over(key, [held])

    def _on_fetch_ended(self, fetch: ConnectionFetch, outcome: FetchOutcome) -> None:
        self._fetches.discard(fetch)
        sleeping, fd = fetch.sleeping, fetch.fd
        sleeping.fetched.discard(fd)
        if not sleeping.armed or (fetch.clears and sleeping.left is None):
            return
        if outcome.failed:
            # The server accepts the connections itself.
            if outcome.blocked:
                self._servers_that_block.add(sleeping.key)
            self._wake(sleeping)
        elif fetch.clears:
            self._on_pair_fetched(sleeping, outcome)
        elif outcome.junk or outcome.full:
            self._pause_watching(sleeping)
        elif not sleeping.paused and fd in sleeping.sockets:
            self._watch(fd, sleeping)

    def _on_pair_fetched(self, sleeping: SleepingListener, outcome: FetchOutcome) -> None:
        if outcome.empty and sleeping.left is not None:
            self._unwatch(sleeping.left.fileno())
            sleeping.left = None
            self._adoptions.close_pair(sleeping.key)
        else:
            pause_seconds = _RETRY_SECONDS if outcome.junk or outcome.full else 0
            asyncio.get_running_loop().call_later(
                pause_seconds, self._fetch_connections_left_in_pair, sleeping.key
            )

    def _hold(self, sleeping: SleepingListener, held: HeldConnection) -> None:
        held.sock.setblocking(False)
        sleeping.connections[held] = None
        self._inspect(sleeping, held)
        if held in sleeping.connections and sleeping.armed:
            try:
                self._watch_held(sleeping, held)
            except OSError:
                self._close(sleeping, held)
            else:
                held.name = self._try_store_in_keeper(sleeping.key, held.sock)
                if self._limit.too_many(sum(len(other.connections) for other in self._sleeping.values())):
                    self._relieve_pressure(held)

    def _watch_held(self, sleeping: SleepingListener, held: HeldConnection) -> None:
        sleeping.connections[held] = None
        self._watch(held.sock.fileno(), sleeping, held)

    def _relieve_pressure(self, newest: HeldConnection) -> None:
        """Close a connection (not `newest`) of the server for which most connections are held.

        If all of this server's connections are sending requests, wake the server instead.
        """
        crowded = max(self._sleeping.values(), key=lambda sleeping: len(sleeping.connections))
        expendable = crowded.expendable(newest)
        if expendable is None:
            self._wake(crowded)
        else:
            self._close(crowded, expendable)

    def _inspect(
        self, sleeping: SleepingListener, held: HeldConnection, *, last: bool = False, late: bool = False
    ) -> None:
        """By the first bytes of a connection, wake the server, wait for more, or close the connection.

        `last`: the client has closed its side. `late`: its time limit has expired.
        """
        on_late = partial(self._inspect, sleeping, held, last=True, late=True)
        try:
            unread = held.sock.recv(ENOUGH_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            head = held.sock.received + unread
        except BlockingIOError:
            head = held.sock.received
            if not head:
                if last:
                    self._close(sleeping, held)
                else:
                    sleeping.limit_wait(held, on_late, begun=False)
                return
        except OSError:
            head = b""
        verdict = classify_first_bytes(head, tls=sleeping.tls) if head else FirstBytesKind.NO_REQUEST
        if verdict is FirstBytesKind.REQUEST:
            self._wake(sleeping)
        elif verdict is FirstBytesKind.BEGINNING and not last:
            sleeping.limit_wait(held, on_late, begun=True)
        else:
            self._close(sleeping, held, b"" if sleeping.tls or not head else bad_request_response(late=late))

    def _close(self, sleeping: SleepingListener, held: HeldConnection, answer: bytes = b"") -> None:
        """Close a connection that wakes no server, after sending `answer` if there is one."""
        sleeping.connections.pop(held, None)
        self._unwatch(held.sock.fileno())
        if answer:
            with contextlib.suppress(OSError):
                # Read first: closing with unread bytes would reset the connection, and the answer with it.
                held.sock.recv(ENOUGH_BYTES, socket.MSG_DONTWAIT)
                held.sock.send(answer, socket.MSG_DONTWAIT)
        self._stop_holding(held)

    def _wake(self, sleeping: SleepingListener) -> None:
        self.disarm_and_hand_over(sleeping.key)
        sleeping.on_request()

    def _hand_over(self, key: str, connections: Iterable[HeldConnection]) -> None:
        """Put connections into the server's adoption pair for its next worker. While the pair is full, retry later."""
        self._leaving.setdefault(key, []).extend(connections)
        self._send_held_connections(key)

    def _send_held_connections(self, key: str) -> None:
        leaving = self._leaving.get(key, [])
        while leaving:
            held = leaving[-1]
            # If it were sent while it is still in the store, it would be served twice if this process exited here.
            self._drop_from_store(held)
            if not self._queue_duplicate(key, held.sock):
                held.name = self._try_store_in_keeper(key, held.sock)
                asyncio.get_running_loop().call_later(_PAIR_RETRY_SECONDS, self._send_held_connections, key)
                return
            self._stop_holding(leaving.pop())
        self._leaving.pop(key, None)

    def _stop_holding(self, held: HeldConnection) -> None:
        """Close this process's and the keeper's copies of a connection. A worker that received it has its own copy."""
        held.stop_timer()
        close_promptly(held.sock.detach())
        self._drop_from_store(held)

    def _drop_from_store(self, held: HeldConnection) -> None:
        if held.name:
            self._keeper.send({"op": "drop", "name": held.name})
            held.name = ""

    def _queue_duplicate(self, key: str, sock: Connection) -> bool:
        """Queue a duplicate of the connection for the server's next worker. Returns False if there is no room."""
        self._adoptions.open(self._servers[key])
        return self._adoptions.give(key, sock)

    def _try_store_in_keeper(self, key: str, sock: Connection) -> str:
        """Store the connection in the keeper. Returns the name of its entry, or "" if that failed."""
        name = f"{fd_store.HELD_CONNECTION}{next(self._numbers)}"
        try:
            self._keeper.send({"op": "put", "name": name, "meta": {"key": key, **sock.to_message()}}, [sock])
        except OSError:
            return ""
        return name
