"""Listeners of servers that sleep: watched without a process, until somebody comes who wants something.

Each connection is accepted and looked at without reading (MSG_PEEK): one that is opened and closed, or that sends no
request, wakes no server. The first request wakes it; every connection that is held by then, and all that its last
worker had left behind, goes to its next worker by way of the adoption pair. New ones wait in the backlog.

Connections from sockets that an application shares come by way of the accept helper (see Acceptor): accept(2) on such a
listener can be made to wait for ever, and the application can put anything into such a pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from functools import partial

from poolctl.keeper.handover import Connection

from .acceptor import ACCEPT, TAKE, Acceptor, Fetched
from .bell import Bell, Fetch, Visitor
from .departures import Departures
from .held import Held
from .knock import ENOUGH_BYTES, Knock, knock, refusal
from .watch import Watch

_AGAIN_SECONDS = 0.1


class Doorbell:
    """The bells of a pool, over one epoll of their own: an armed one costs no callback object and no time.

    `give(key, sock)` sends a connection to the server's next worker; False when there is no room at the moment. `keep`
    is called with each connection that is held, so that it can survive this process, and gives it a name, which goes to
    `forget` when it is held no longer. `answer` may say what to answer to a request instead of waking the server (None:
    wake it). Belongs to the running loop.
    """

    def __init__(
        self,
        give: Callable[[str, Connection], bool],
        acceptor: Acceptor,
        *,
        keep: Callable[[str, Connection], str] = lambda key, sock: "",
        forget: Callable[[str], None] = lambda name: None,
        answer: Callable[[str, bytes], bytes | None] = lambda key, head: None,
    ) -> None:
        self._keep = keep
        self._answer = answer
        self._acceptor = acceptor
        self._bells: dict[str, Bell] = {}
        self._blocking: set[str] = set()
        self._fetches: set[Fetch] = set()
        self._held = Held()
        self._departures = Departures(give, keep, forget)
        self._watch = Watch(self._rung)

    def arm(self, bell: Bell) -> None:
        """Watch for the first request; `on_request` is called once, from the loop, and the bell is disarmed then."""
        self.disarm(bell.key)
        self._bells[bell.key] = bell
        # Where a call has waited once, none is made again: any connection wakes that server.
        bell.accepts = bell.accepts and bell.key not in self._blocking
        if bell.accepts and (bell.shared or bell.left is not None):
            self._acceptor.warm()
        bell.armed = True
        self._listen(bell)
        for visitor in self._departures.recall(bell.key):
            # They did not come away before the server fell asleep again.
            self._watch_visitor(bell, visitor)

    def armed(self, key: str) -> bool:
        """Whether the server's bell is armed."""
        return key in self._bells

    def disarm(self, key: str) -> None:
        """Watch no more; who is held goes to the server's next worker, as soon as there is room."""
        bell = self._bells.pop(key, None)
        if bell is None:
            return
        bell.armed = False
        self._deafen(bell)
        for visitor in bell.visitors:
            self._held.remove(visitor)
            self._watch.remove(visitor.sock.fileno())
            visitor.cancel()
        self._departures.add(key, bell.visitors)

    def visit(self, key: str, sock: socket.socket) -> bool:
        """Whether the bell is armed, and looks at a duplicate of this connection, which others have accepted."""
        bell = self._bells.get(key)
        if bell is None:
            return False
        try:
            visitor = Visitor(Connection(fileno=sock.dup().detach()), stranger=False)
        except OSError:
            return False
        self._hold(bell, visitor)
        return True

    def clear(self, key: str, then: Callable[[], None]) -> None:
        """Take all that workers left behind that are gone; call `then` if nothing more can come out of their pair."""
        bell = self._bells.get(key)
        if bell is not None and bell.left is not None and bell.accepts:
            self._fetch(bell, bell.left, partial(self._cleared, bell, then))

    def dismiss(self, key: str) -> None:
        """Close every connection that is held for the server, or is on its way here."""
        for fetch in self._fetches:
            fetch.wanted = fetch.wanted and fetch.key != key
        if bell := self._bells.get(key):
            for visitor in list(bell.visitors):
                self._leave(bell, visitor)
        for visitor in self._departures.recall(key):
            self._departures.let_go(visitor)

    def forget(self, key: str) -> None:
        """Close all connections of a server that is stopped."""
        self.dismiss(key)
        self.disarm(key)
        self._blocking.discard(key)

    def close(self) -> None:
        """Dismiss and disarm all."""
        for key in {*self._bells, *self._departures.keys, *(fetch.key for fetch in self._fetches)}:
            self.forget(key)
        self._watch.close()

    def _listen(self, bell: Bell) -> None:
        bell.deaf = False
        bell.timer = None
        try:
            for fd in bell.sockets.keys() - bell.fetched:
                self._watch.add(fd, bell)
        except OSError:
            self._pause(bell)

    def _pause(self, bell: Bell) -> None:
        # Out of descriptors, most likely: those who come wait in the backlog, those who were left behind in the pair.
        self._deafen(bell)
        bell.timer = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._listen, bell)

    def _deafen(self, bell: Bell) -> None:
        # Readable for as long as somebody waits in the backlog: an epoll that goes on watching never sleeps.
        if bell.timer is not None:
            bell.timer.cancel()
            bell.timer = None
        if not bell.deaf:
            bell.deaf = True
            for fd in bell.sockets:
                self._watch.remove(fd)

    def _rung(self) -> None:
        for fd, bell, visitor, ends in self._watch.events():
            if visitor is not None:
                self._look(bell, visitor, last=ends)
            elif not bell.accepts:
                self._ring(bell)
            elif bell.shared or bell.sockets[fd] is bell.left:
                self._watch.remove(fd)
                bell.fetched.add(fd)
                self._fetch(bell, bell.sockets[fd], partial(self._fetched, bell, fd))
            else:
                self._accept(bell, bell.sockets[fd])

    def _accept(self, bell: Bell, listener: socket.socket) -> None:
        """Accept from a listener that no application shares."""
        for _ in range(self._held.most_at_once):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._pause(bell)
                return
            self._hold(bell, Visitor.accepted(sock, bell.head_seconds))
            if not bell.armed:
                return

    def _fetch(self, bell: Bell, shared: socket.socket, done: Callable[[Fetched], None]) -> None:
        """Have the accept helper take connections out of what an application shares."""
        fetch = Fetch(bell.key, shared is not bell.left, bell.head_seconds)
        self._fetches.add(fetch)

        def ended(found: Fetched) -> None:
            self._fetches.discard(fetch)
            done(found)

        most, arrived = self._held.most_at_once, partial(self._arrived, fetch)
        self._acceptor.fetch(ACCEPT if fetch.stranger else TAKE, fetch.key, shared, most, arrived, ended)

    def _arrived(self, fetch: Fetch, sock: Connection) -> None:
        visitor = fetch.visitor(sock)
        if not fetch.wanted:
            self._departures.let_go(visitor)
        elif bell := self._bells.get(fetch.key):
            self._hold(bell, visitor)
        else:
            # Its server has been woken meanwhile.
            self._departures.add(fetch.key, [visitor])

    def _fetched(self, bell: Bell, fd: int, found: Fetched) -> None:
        bell.fetched.discard(fd)
        if not bell.armed:
            return
        if found.failed:
            self._failed(bell, found)
        elif found.junk or found.full:
            self._pause(bell)
        elif not bell.deaf and fd in bell.sockets:
            self._watch.add(fd, bell)

    def _cleared(self, bell: Bell, then: Callable[[], None], found: Fetched) -> None:
        if not bell.armed or bell.left is None:
            return
        if found.failed:
            self._failed(bell, found)
        elif found.empty:
            self._watch.remove(bell.left.fileno())
            bell.left = None
            then()
        else:
            pause_seconds = _AGAIN_SECONDS if found.junk or found.full else 0
            asyncio.get_running_loop().call_later(pause_seconds, self.clear, bell.key, then)

    def _failed(self, bell: Bell, found: Fetched) -> None:
        """Wake the server, which accepts by itself."""
        if found.blocked:
            self._blocking.add(bell.key)
        self._ring(bell)

    def _hold(self, bell: Bell, visitor: Visitor) -> None:
        visitor.sock.setblocking(False)
        bell.add(visitor)
        self._look(bell, visitor)
        if visitor in bell.visitors and bell.armed:
            try:
                self._watch_visitor(bell, visitor)
            except OSError:
                self._leave(bell, visitor)
            else:
                visitor.name = self._keep(bell.key, visitor.sock)
                if self._held.too_many:
                    self._make_room(visitor)

    def _watch_visitor(self, bell: Bell, visitor: Visitor) -> None:
        bell.add(visitor)
        self._watch.add(visitor.sock.fileno(), bell, visitor)
        self._held.add(visitor)

    def _make_room(self, newest: Visitor) -> None:
        """Let go of a connection of the server that has the most; if all of them are asking, let it serve them."""
        crowded = max(self._bells.values(), key=lambda bell: len(bell.visitors))
        expendable = crowded.expendable(newest)
        if expendable is None:
            self._ring(crowded)
        else:
            self._leave(crowded, expendable)

    def _look(self, bell: Bell, visitor: Visitor, *, last: bool = False, late: bool = False) -> None:
        """Decide about a visitor; `last`: nothing more will come; `late`: the time for it is over."""
        leave = partial(self._look, bell, visitor, last=True, late=True)
        try:
            head = visitor.sock.recv(ENOUGH_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            if last:
                self._leave(bell, visitor)
            else:
                visitor.wait(bell, leave, begun=False)
            return
        except OSError:
            head = b""
        verdict = knock(head, tls=bell.tls) if head else Knock.NOISE
        if verdict is Knock.REQUEST:
            last_words = self._answer(bell.key, head)
            if last_words is None:
                self._ring(bell)
            else:
                self._leave(bell, visitor, last_words)
        elif verdict is Knock.BEGINNING and not last:
            visitor.wait(bell, leave, begun=True)
        else:
            self._leave(bell, visitor, b"" if bell.tls or not head else refusal(late=late))

    def _leave(self, bell: Bell, visitor: Visitor, last_words: bytes = b"") -> None:
        """Close a visitor for whom nobody wakes."""
        bell.remove(visitor)
        self._held.remove(visitor)
        self._watch.remove(visitor.sock.fileno())
        if last_words:
            with contextlib.suppress(OSError):
                # Read first: closing with unread bytes would reset the connection, and the answer with it.
                visitor.sock.recv(ENOUGH_BYTES, socket.MSG_DONTWAIT)
                visitor.sock.send(last_words, socket.MSG_DONTWAIT)
        self._departures.let_go(visitor)

    def _ring(self, bell: Bell) -> None:
        self.disarm(bell.key)
        bell.on_request()
