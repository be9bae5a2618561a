"""Activates sleeping servers: their listeners are watched without a process until the first request.

Each connection is accepted and inspected without reading (MSG_PEEK): a connection that is opened and closed, or that
sends no request, wakes no server. The first request wakes it; every connection held at that time, and all that its last
worker left, goes to its next worker through the adoption pair. New connections wait in the backlog.

Connections from sockets that an application shares come through the accept helper (see AcceptHelper): an application
can make accept(2) on such a listener block forever, and put anything into such a pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from poolctl.keeper.connection_handover import Connection

from .accept_helper import ACCEPT, TAKE, AcceptHelper, Fetched
from .held_connections import (
    ENOUGH_BYTES,
    FirstBytes,
    Handoff,
    HandoffQueue,
    HeldConnection,
    HeldLimit,
    classify_first_bytes,
    refusal,
)

_AGAIN_SECONDS = 0.1
_CONNECTION = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_ENDS = select.EPOLLRDHUP | select.EPOLLHUP


@dataclass(slots=True, eq=False)
class SleepingListener:
    """The activator's state for one server.

    Without `accepts`, any connection wakes the server, and is not accepted before. `shared` means that an application
    may hold the listeners as well. `left` is the socket to which workers pass their idle connections. A connection that
    was answered may stay idle for `quiet_seconds`; any other has `head_seconds` for its request's head, as in a worker,
    which continues with the remaining time.
    """

    key: str
    listeners: Sequence[socket.socket]
    on_request: Callable[[], None]
    accepts: bool = True
    shared: bool = False
    tls: bool = False
    left: socket.socket | None = None
    quiet_seconds: float = 75.0
    head_seconds: float = 10.0
    # In the order of arrival; and those among them that no worker has held.
    connections: dict[HeldConnection, None] = field(default_factory=dict)
    unseen_connections: dict[HeldConnection, None] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    fetched: set[int] = field(
        default_factory=set
    )  # the descriptors with a pending request to the accept helper
    armed: bool = False
    paused: bool = True  # its listeners are not watched now

    @property
    def sockets(self) -> dict[int, socket.socket]:
        """The sockets on which connections arrive, by descriptor."""
        left = [] if self.left is None else [self.left]
        return {sock.fileno(): sock for sock in (*self.listeners, *left)}

    def expendable(self, newest: HeldConnection) -> HeldConnection | None:
        """The connection to close first when there are too many, or None if all others are in the middle of a request.

        Prefers the oldest connection that has never sent anything, then connections left by a worker.
        """
        for group in (self.unseen_connections, self.connections):
            for each in group:
                if not each.begun and each is not newest:
                    return each
        return None

    def add(self, held: HeldConnection) -> None:
        """Hold the connection."""
        self.connections[held] = None
        if held.unseen:
            self.unseen_connections[held] = None

    def wait(self, held: HeldConnection, late: Callable[[], None], *, begun: bool) -> None:
        """Call `late` when the time limit for the connection's first byte, or for the rest of its request, expires."""
        held.begun = begun
        if begun:
            held.give_time(self.head_seconds, asked=False)
        elif held.sock.until is None:
            held.give_time(self.quiet_seconds, asked=True)
        held.set_timer(late)

    def remove(self, held: HeldConnection) -> None:
        """Release the connection."""
        self.connections.pop(held, None)
        self.unseen_connections.pop(held, None)


class Activator:
    """Watches the listeners of all sleeping servers with one epoll instance.

    Belongs to the running loop.
    """

    def __init__(self, handoff: Handoff, accept_helper: AcceptHelper) -> None:
        self._store = handoff
        self._accept_helper = accept_helper
        self._sleeping: dict[str, SleepingListener] = {}
        self._blocking: set[str] = set()
        self._fetches: set[_Fetch] = set()
        self._limit = HeldLimit()
        self._handoff = HandoffQueue(handoff)
        self._watched: dict[int, tuple[SleepingListener, HeldConnection | None]] = {}
        self._epoll: select.epoll | None = None

    def arm(self, sleeping: SleepingListener) -> None:
        """Watch the server for its first request.

        `on_request` is called once, from the loop, after watching has stopped.
        """
        self.disarm(sleeping.key)
        self._sleeping[sleeping.key] = sleeping
        # After one blocked call there is no further call: any connection wakes that server.
        sleeping.accepts = sleeping.accepts and sleeping.key not in self._blocking
        if sleeping.accepts and (sleeping.shared or sleeping.left is not None):
            self._accept_helper.warm()
        sleeping.armed = True
        self._watch_listeners(sleeping)
        for held in self._handoff.recall(sleeping.key):
            # They were not sent before the server fell asleep again.
            self._watch_held(sleeping, held)

    def armed(self, key: str) -> bool:
        """Whether the server's listener is armed."""
        return key in self._sleeping

    def disarm(self, key: str) -> None:
        """Stop watching. Held connections go to the server's next worker as soon as it has room."""
        sleeping = self._sleeping.pop(key, None)
        if sleeping is None:
            return
        sleeping.armed = False
        self._unwatch_listeners(sleeping)
        for held in sleeping.connections:
            self._limit.remove(held)
            self._unwatch(held.sock.fileno())
            held.cancel()
        self._handoff.add(key, sleeping.connections)

    def hold(self, key: str, sock: socket.socket) -> bool:
        """If the listener is armed, hold a duplicate of this connection, which another process accepted. Else False."""
        sleeping = self._sleeping.get(key)
        if sleeping is None:
            return False
        try:
            held = HeldConnection(Connection(fileno=sock.dup().detach()), unseen=False)
        except OSError:
            return False
        self._hold(sleeping, held)
        return True

    def watch_pair(self, key: str, left: socket.socket) -> None:
        """Also take connections from the pair of an armed server, into which a gateway may put some."""
        sleeping = self._sleeping.get(key)
        if sleeping is not None and sleeping.left is None:
            self._unwatch_listeners(sleeping)
            sleeping.left = left
            self._accept_helper.warm()
            self._watch_listeners(sleeping)

    def clear(self, key: str) -> None:
        """Take all connections left by workers that have exited, until their pair is empty (see Handoff)."""
        sleeping = self._sleeping.get(key)
        if sleeping is not None and sleeping.left is not None and sleeping.accepts:
            self._fetch(_Fetch(self, sleeping, sleeping.left, clears=True))

    def dismiss(self, key: str) -> None:
        """Close every connection that is held or being fetched for the server."""
        for fetch in self._fetches:
            fetch.wanted = fetch.wanted and fetch.key != key
        if sleeping := self._sleeping.get(key):
            for held in list(sleeping.connections):
                self._close(sleeping, held)
        for held in self._handoff.recall(key):
            self._handoff.close(held)

    def forget(self, key: str) -> None:
        """Stop watching a server that is stopped, and close all of its connections."""
        self.dismiss(key)
        self.disarm(key)
        self._blocking.discard(key)

    def close(self) -> None:
        """Disarm every server and close all held connections."""
        for key in {*self._sleeping, *self._handoff.keys, *(fetch.key for fetch in self._fetches)}:
            self.forget(key)
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._watched.clear()

    def _watch(self, fd: int, sleeping: SleepingListener, held: HeldConnection | None = None) -> None:
        """Watch the connection `held`, or a listener or pair if it is None. Raises OSError."""
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._on_events)
        self._watched[fd] = (sleeping, held)
        self._epoll.register(fd, select.EPOLLIN if held is None else _CONNECTION)

    def _unwatch(self, fd: int) -> None:
        # Explicitly: closing a descriptor does not remove it from an epoll while other processes hold duplicates.
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _watch_listeners(self, sleeping: SleepingListener) -> None:
        sleeping.paused = False
        sleeping.timer = None
        try:
            for fd in sleeping.sockets.keys() - sleeping.fetched:
                self._watch(fd, sleeping)
        except OSError:
            self._pause(sleeping)

    def _pause(self, sleeping: SleepingListener) -> None:
        # Most likely out of descriptors: new connections wait in the backlog, and connections left by workers in the
        # pair.
        self._unwatch_listeners(sleeping)
        sleeping.timer = asyncio.get_running_loop().call_later(
            _AGAIN_SECONDS, self._watch_listeners, sleeping
        )

    def _unwatch_listeners(self, sleeping: SleepingListener) -> None:
        # Readable for as long as a connection waits in the backlog: an epoll that goes on watching never sleeps.
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
                continue  # since one of the events before it
            sleeping, held = self._watched[fd]
            if held is not None:
                self._classify(sleeping, held, last=bool(events & _ENDS))
            elif not sleeping.accepts:
                self._wake(sleeping)
            elif sleeping.shared or sleeping.sockets[fd] is sleeping.left:
                self._unwatch(fd)
                sleeping.fetched.add(fd)
                self._fetch(_Fetch(self, sleeping, sleeping.sockets[fd]))
            else:
                self._accept(sleeping, sleeping.sockets[fd])

    def _accept(self, sleeping: SleepingListener, listener: socket.socket) -> None:
        """Accept from a listener that no application shares."""
        for _ in range(self._limit.most_at_once):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._pause(sleeping)
                return
            self._hold(sleeping, HeldConnection.accepted(sock, sleeping.head_seconds))
            if not sleeping.armed:
                return

    def _fetch(self, fetch: _Fetch) -> None:
        """Have the accept helper take connections from sockets that an application shares."""
        self._fetches.add(fetch)
        self._accept_helper.fetch(fetch, fetch.shared, self._limit.most_at_once)

    def _arrived(self, fetch: _Fetch, sock: Connection) -> None:
        unseen = fetch.kind == ACCEPT
        held = HeldConnection(sock, unseen=unseen)
        if unseen:
            held.give_time(fetch.sleeping.head_seconds, asked=False)
        if not fetch.wanted:
            self._handoff.close(held)
        elif sleeping := self._sleeping.get(fetch.key):
            self._hold(sleeping, held)
        else:
            # Its server has been woken meanwhile.
            self._handoff.add(fetch.key, [held])

    def _fetched(self, fetch: _Fetch, found: Fetched) -> None:
        self._fetches.discard(fetch)
        sleeping, fd = fetch.sleeping, fetch.fd
        sleeping.fetched.discard(fd)
        if not sleeping.armed or (fetch.clears and sleeping.left is None):
            return
        if found.failed:
            # The server accepts by itself.
            if found.blocked:
                self._blocking.add(sleeping.key)
            self._wake(sleeping)
        elif fetch.clears:
            self._cleared(sleeping, found)
        elif found.junk or found.full:
            self._pause(sleeping)
        elif not sleeping.paused and fd in sleeping.sockets:
            self._watch(fd, sleeping)

    def _cleared(self, sleeping: SleepingListener, found: Fetched) -> None:
        if found.empty and sleeping.left is not None:
            self._unwatch(sleeping.left.fileno())
            sleeping.left = None
            self._store.emptied(sleeping.key)
        else:
            pause_seconds = _AGAIN_SECONDS if found.junk or found.full else 0
            asyncio.get_running_loop().call_later(pause_seconds, self.clear, sleeping.key)

    def _hold(self, sleeping: SleepingListener, held: HeldConnection) -> None:
        held.sock.setblocking(False)
        sleeping.add(held)
        self._classify(sleeping, held)
        if held in sleeping.connections and sleeping.armed:
            try:
                self._watch_held(sleeping, held)
            except OSError:
                self._close(sleeping, held)
            else:
                held.name = self._store.keep(sleeping.key, held.sock)
                if self._limit.too_many:
                    self._make_room(held)

    def _watch_held(self, sleeping: SleepingListener, held: HeldConnection) -> None:
        sleeping.add(held)
        self._watch(held.sock.fileno(), sleeping, held)
        self._limit.add(held)

    def _make_room(self, newest: HeldConnection) -> None:
        """Close one connection of the server that has the most.

        If all of them are sending a request, wake the server instead.
        """
        crowded = max(self._sleeping.values(), key=lambda sleeping: len(sleeping.connections))
        expendable = crowded.expendable(newest)
        if expendable is None:
            self._wake(crowded)
        else:
            self._close(crowded, expendable)

    def _classify(
        self, sleeping: SleepingListener, held: HeldConnection, *, last: bool = False, late: bool = False
    ) -> None:
        """Decide what to do with a connection.

        `last`: the client has closed its side. `late`: its time limit has expired.
        """
        on_late = partial(self._classify, sleeping, held, last=True, late=True)
        try:
            unread = held.sock.recv(ENOUGH_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            head = held.sock.received + unread
        except BlockingIOError:
            head = held.sock.received
            if not head:
                if last:
                    self._close(sleeping, held)
                else:
                    sleeping.wait(held, on_late, begun=False)
                return
        except OSError:
            head = b""
        verdict = classify_first_bytes(head, tls=sleeping.tls) if head else FirstBytes.NO_REQUEST
        if verdict is FirstBytes.REQUEST:
            self._wake(sleeping)
        elif verdict is FirstBytes.BEGINNING and not last:
            sleeping.wait(held, on_late, begun=True)
        else:
            self._close(sleeping, held, b"" if sleeping.tls or not head else refusal(late=late))

    def _close(self, sleeping: SleepingListener, held: HeldConnection, answer: bytes = b"") -> None:
        """Close a connection that wakes no server, after sending `answer` if there is one."""
        sleeping.remove(held)
        self._limit.remove(held)
        self._unwatch(held.sock.fileno())
        if answer:
            with contextlib.suppress(OSError):
                # Read first: closing with unread bytes would reset the connection, and the answer with it.
                held.sock.recv(ENOUGH_BYTES, socket.MSG_DONTWAIT)
                held.sock.send(answer, socket.MSG_DONTWAIT)
        self._handoff.close(held)

    def _wake(self, sleeping: SleepingListener) -> None:
        self.disarm(sleeping.key)
        sleeping.on_request()


class _Fetch:
    """A request to the accept helper for a server. `wanted` becomes False when the server is stopped."""

    def __init__(
        self, activator: Activator, sleeping: SleepingListener, shared: socket.socket, *, clears: bool = False
    ) -> None:
        self.kind = TAKE if shared is sleeping.left else ACCEPT
        self.key = sleeping.key
        self.sleeping = sleeping
        self.shared = shared
        self.fd = -1 if clears else shared.fileno()
        self.clears = clears  # all connections left by its workers are taken
        self.wanted = True
        self._activator = activator

    def arrived(self, sock: Connection) -> None:
        self._activator._arrived(self, sock)

    def ended(self, found: Fetched) -> None:
        self._activator._fetched(self, found)
