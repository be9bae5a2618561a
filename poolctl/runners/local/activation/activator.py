"""Activates sleeping servers: their listeners are watched without a process until the first request.

Each connection is accepted and inspected without reading (MSG_PEEK): one that is opened and closed, or that sends no
request, wakes no server. The first request wakes it; every connection that is held by then, and all that its last
worker left, goes to its next worker through the adoption pair. New ones wait in the backlog.

Connections from sockets that an application shares come through the accept helper (see AcceptHelper): an application
can make accept(2) on such a listener block for ever, and put anything into such a pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial

from poolctl.keeper.handover import Connection

from .accept_helper import ACCEPT, TAKE, AcceptHelper, Fetched
from .epoll_watch import EpollWatch
from .first_bytes import ENOUGH_BYTES, FirstBytes, classify_first_bytes, refusal
from .handoff_queue import HandoffQueue
from .held_limit import HeldLimit
from .sleeping_listener import Fetch, Handoff, HeldConnection, SleepingListener

_AGAIN_SECONDS = 0.1


class Activator:
    """All sleeping listeners of a pool on one epoll instance: an armed one costs no callback object and no time.

    Belongs to the running loop.
    """

    def __init__(self, handoff: Handoff, accept_helper: AcceptHelper) -> None:
        self._store = handoff
        self._accept_helper = accept_helper
        self._sleeping: dict[str, SleepingListener] = {}
        self._blocking: set[str] = set()
        self._fetches: set[Fetch] = set()
        self._limit = HeldLimit()
        self._handoff = HandoffQueue(handoff)
        self._watch = EpollWatch(self._on_events)

    def arm(self, sleeping: SleepingListener) -> None:
        """Watch for the first request; `on_request` is called once, from the loop, after it was disarmed."""
        self.disarm(sleeping.key)
        self._sleeping[sleeping.key] = sleeping
        # After a call has blocked once, none is made again: any connection wakes that server.
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
        """Stop watching; held connections go to the server's next worker, as soon as there is room."""
        sleeping = self._sleeping.pop(key, None)
        if sleeping is None:
            return
        sleeping.armed = False
        self._unwatch(sleeping)
        for held in sleeping.connections:
            self._limit.remove(held)
            self._watch.remove(held.sock.fileno())
            held.cancel()
        self._handoff.add(key, sleeping.connections)

    def hold(self, key: str, sock: socket.socket) -> bool:
        """Whether the listener is armed and now holds a duplicate of this connection, accepted by another process."""
        sleeping = self._sleeping.get(key)
        if sleeping is None:
            return False
        try:
            held = HeldConnection(Connection(fileno=sock.dup().detach()), unseen=False)
        except OSError:
            return False
        self._hold(sleeping, held)
        return True

    def clear(self, key: str, then: Callable[[], None]) -> None:
        """Take all connections left by workers that have exited; call `then` once their pair is drained."""
        sleeping = self._sleeping.get(key)
        if sleeping is not None and sleeping.left is not None and sleeping.accepts:
            self._fetch(sleeping, sleeping.left, partial(self._cleared, sleeping, then))

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
        """Close all connections of a server that is stopped."""
        self.dismiss(key)
        self.disarm(key)
        self._blocking.discard(key)

    def close(self) -> None:
        """Dismiss and disarm all."""
        for key in {*self._sleeping, *self._handoff.keys, *(fetch.key for fetch in self._fetches)}:
            self.forget(key)
        self._watch.close()

    def _watch_listeners(self, sleeping: SleepingListener) -> None:
        sleeping.paused = False
        sleeping.timer = None
        try:
            for fd in sleeping.sockets.keys() - sleeping.fetched:
                self._watch.add(fd, sleeping)
        except OSError:
            self._pause(sleeping)

    def _pause(self, sleeping: SleepingListener) -> None:
        # Most likely out of descriptors: new connections wait in the backlog, those that workers left in the pair.
        self._unwatch(sleeping)
        sleeping.timer = asyncio.get_running_loop().call_later(
            _AGAIN_SECONDS, self._watch_listeners, sleeping
        )

    def _unwatch(self, sleeping: SleepingListener) -> None:
        # Readable for as long as a connection waits in the backlog: an epoll that goes on watching never sleeps.
        if sleeping.timer is not None:
            sleeping.timer.cancel()
            sleeping.timer = None
        if not sleeping.paused:
            sleeping.paused = True
            for fd in sleeping.sockets:
                self._watch.remove(fd)

    def _on_events(self) -> None:
        for fd, sleeping, held, ends in self._watch.events():
            if held is not None:
                self._classify(sleeping, held, last=ends)
            elif not sleeping.accepts:
                self._wake(sleeping)
            elif sleeping.shared or sleeping.sockets[fd] is sleeping.left:
                self._watch.remove(fd)
                sleeping.fetched.add(fd)
                self._fetch(sleeping, sleeping.sockets[fd], partial(self._fetched, sleeping, fd))
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

    def _fetch(
        self, sleeping: SleepingListener, shared: socket.socket, done: Callable[[Fetched], None]
    ) -> None:
        """Have the accept helper take connections from sockets that an application shares."""
        fetch = Fetch(sleeping.key, shared is not sleeping.left, sleeping.head_seconds)
        self._fetches.add(fetch)

        def ended(found: Fetched) -> None:
            self._fetches.discard(fetch)
            done(found)

        most, arrived = self._limit.most_at_once, partial(self._arrived, fetch)
        self._accept_helper.fetch(ACCEPT if fetch.unseen else TAKE, fetch.key, shared, most, arrived, ended)

    def _arrived(self, fetch: Fetch, sock: Connection) -> None:
        held = fetch.held(sock)
        if not fetch.wanted:
            self._handoff.close(held)
        elif sleeping := self._sleeping.get(fetch.key):
            self._hold(sleeping, held)
        else:
            # Its server has been woken meanwhile.
            self._handoff.add(fetch.key, [held])

    def _fetched(self, sleeping: SleepingListener, fd: int, found: Fetched) -> None:
        sleeping.fetched.discard(fd)
        if not sleeping.armed:
            return
        if found.failed:
            self._failed(sleeping, found)
        elif found.junk or found.full:
            self._pause(sleeping)
        elif not sleeping.paused and fd in sleeping.sockets:
            self._watch.add(fd, sleeping)

    def _cleared(self, sleeping: SleepingListener, then: Callable[[], None], found: Fetched) -> None:
        if not sleeping.armed or sleeping.left is None:
            return
        if found.failed:
            self._failed(sleeping, found)
        elif found.empty:
            self._watch.remove(sleeping.left.fileno())
            sleeping.left = None
            then()
        else:
            pause_seconds = _AGAIN_SECONDS if found.junk or found.full else 0
            asyncio.get_running_loop().call_later(pause_seconds, self.clear, sleeping.key, then)

    def _failed(self, sleeping: SleepingListener, found: Fetched) -> None:
        """Wake the server, which accepts by itself."""
        if found.blocked:
            self._blocking.add(sleeping.key)
        self._wake(sleeping)

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
        self._watch.add(held.sock.fileno(), sleeping, held)
        self._limit.add(held)

    def _make_room(self, newest: HeldConnection) -> None:
        """Close a connection of the server that has the most; if all of them are sending a request, wake it."""
        crowded = max(self._sleeping.values(), key=lambda sleeping: len(sleeping.connections))
        expendable = crowded.expendable(newest)
        if expendable is None:
            self._wake(crowded)
        else:
            self._close(crowded, expendable)

    def _classify(
        self, sleeping: SleepingListener, held: HeldConnection, *, last: bool = False, late: bool = False
    ) -> None:
        """Decide what to do with a connection; `last`: its client sends nothing more; `late`: its time is over."""
        on_late = partial(self._classify, sleeping, held, last=True, late=True)
        try:
            head = held.sock.recv(ENOUGH_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            if last:
                self._close(sleeping, held)
            else:
                held.wait(sleeping, on_late, begun=False)
            return
        except OSError:
            head = b""
        verdict = classify_first_bytes(head, tls=sleeping.tls) if head else FirstBytes.NO_REQUEST
        if verdict is FirstBytes.REQUEST:
            self._wake(sleeping)
        elif verdict is FirstBytes.BEGINNING and not last:
            held.wait(sleeping, on_late, begun=True)
        else:
            self._close(sleeping, held, b"" if sleeping.tls or not head else refusal(late=late))

    def _close(self, sleeping: SleepingListener, held: HeldConnection, answer: bytes = b"") -> None:
        """Close a connection that wakes no server, after `answer` if there is one."""
        sleeping.remove(held)
        self._limit.remove(held)
        self._watch.remove(held.sock.fileno())
        if answer:
            with contextlib.suppress(OSError):
                # Read first: closing with unread bytes would reset the connection, and the answer with it.
                held.sock.recv(ENOUGH_BYTES, socket.MSG_DONTWAIT)
                held.sock.send(answer, socket.MSG_DONTWAIT)
        self._handoff.close(held)

    def _wake(self, sleeping: SleepingListener) -> None:
        self.disarm(sleeping.key)
        sleeping.on_request()
