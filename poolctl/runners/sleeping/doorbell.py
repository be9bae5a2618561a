"""Listeners of servers that sleep: watched without a process, until somebody comes who wants something.

Whoever connects is accepted and looked at without reading (MSG_PEEK): a connection that is opened and closed, or that
sends no request, wakes nobody. The first request wakes the server; every connection that is held by then, and all that
its last worker had left behind, goes to its next worker by way of the adoption pair. New ones wait in the backlog.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
from collections.abc import Callable
from functools import partial

from poolctl.keeper import handover
from poolctl.keeper.wire import WireError

from .bell import Bell, Visitor
from .departures import Departures
from .knock import ENOUGH_BYTES, Knock, knock

# How many of those who have sent no request are held for a server; when one more comes, the oldest has to go.
MOST_STRANGERS = 512
_AT_ONCE = 64
_AGAIN_SECONDS = 0.1
_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
_HELD = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


class Doorbell:
    """The bells of a pool, over one epoll of their own: an armed one costs no callback object and no time.

    `give(key, sock)` sends a connection to the server's next worker; False when there is no room at the moment. `keep`
    is told of each connection that is held, so that it can survive this process, and gives it a name, which `forget` is
    told when it is held no longer. `answer` may say what to answer to a request instead of waking the server (None:
    wake it). Belongs to the running loop.
    """

    def __init__(
        self,
        give: Callable[[str, socket.socket], bool],
        *,
        keep: Callable[[str, socket.socket], str] = lambda key, sock: "",
        forget: Callable[[str], None] = lambda name: None,
        answer: Callable[[str, bytes], bytes | None] = lambda key, head: None,
    ) -> None:
        self._keep = keep
        self._answer = answer
        self._bells: dict[str, Bell] = {}
        self._watched: dict[int, tuple[Bell, Visitor | None]] = {}
        self._departures = Departures(give, keep, forget)
        self._epoll: select.epoll | None = None

    def arm(self, bell: Bell) -> None:
        """Watch for the first request; `on_request` is called once, from the loop, and the bell is disarmed then."""
        self.disarm(bell.key)
        self._bells[bell.key] = bell
        bell.armed = True
        self._listen(bell)
        for visitor in self._departures.recall(bell.key):
            # They did not come away before the server fell asleep again.
            bell.add(visitor)
            self._watch(visitor.sock.fileno(), bell, visitor)

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
            self._unwatch(visitor.sock.fileno())
            visitor.cancel()
        self._departures.add(key, bell.visitors)

    def visit(self, key: str, sock: socket.socket) -> bool:
        """Whether the bell is armed, and looks at a duplicate of this connection, which others have accepted."""
        bell = self._bells.get(key)
        if bell is None:
            return False
        try:
            visitor = Visitor(sock.dup(), stranger=False)
        except OSError:
            return False
        self._hold(bell, visitor)
        return True

    def clear(self, key: str) -> bool:
        """Take all who were left behind by workers that are gone; whether nobody can be there any more."""
        bell = self._bells.get(key)
        if bell is None or bell.left is None:
            return False
        while not self._receive(bell, bell.left):
            if bell.deaf:
                return False  # woken by one of them, or out of descriptors
        self._unwatch(bell.left.fileno())
        bell.left = None
        return True

    def dismiss(self, key: str) -> None:
        """Close every connection that is held for the server."""
        bell = self._bells.get(key)
        for visitor in list(bell.visitors) if bell is not None else ():
            assert bell is not None
            self._leave(bell, visitor)
        for visitor in self._departures.recall(key):
            self._departures.let_go(visitor)

    def close(self) -> None:
        """Dismiss everybody and disarm all."""
        for key in {*self._bells, *self._departures.keys}:
            self.dismiss(key)
            self.disarm(key)
        if self._epoll is not None:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    # Watching.

    def _listen(self, bell: Bell) -> None:
        bell.deaf = False
        bell.timer = None
        try:
            for fd in bell.descriptors:
                self._watch(fd, bell, None)
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
            for fd in bell.descriptors:
                self._unwatch(fd)

    def _watch(self, fd: int, bell: Bell, visitor: Visitor | None) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._rung)
        self._watched[fd] = (bell, visitor)
        self._epoll.register(fd, select.EPOLLIN if visitor is None else _HELD)

    def _unwatch(self, fd: int) -> None:
        # By hand: what other processes hold duplicates of does not leave an epoll by being closed.
        if self._watched.pop(fd, None) is not None and self._epoll is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def _rung(self) -> None:
        assert self._epoll is not None
        for fd, events in self._epoll.poll(0):
            bell, visitor = self._watched.get(fd, (None, None))
            if bell is None:
                continue  # disarmed by one of those before it
            if visitor is not None:
                self._look(bell, visitor, last=bool(events & (select.EPOLLRDHUP | select.EPOLLHUP)))
            elif bell.left is not None and fd == bell.left.fileno():
                self._receive(bell, bell.left)
            elif bell.accepts:
                self._accept(bell, fd)
            else:
                self._ring(bell)
            if self._epoll is None:
                return

    # Who comes.

    def _accept(self, bell: Bell, fd: int) -> None:
        listener = next(each for each in bell.listeners if each.fileno() == fd)
        for _ in range(_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:
                self._pause(bell)
                return
            if len(bell.strangers) >= MOST_STRANGERS:
                self._leave(bell, next(iter(bell.strangers)))
            self._hold(bell, Visitor(sock))
            if not bell.armed:
                return

    def _receive(self, bell: Bell, left: socket.socket) -> bool:
        """Take some of those who were left behind; whether nobody is there any more."""
        for _ in range(_AT_ONCE):
            try:
                taken = handover.take(left)
            except handover.NoRoom:
                self._pause(bell)
                return False
            except WireError:
                continue
            except BlockingIOError:
                return True
            if taken is None:
                return True
            self._hold(bell, Visitor(taken, stranger=False))
            if not bell.armed:
                break
        return False

    def _hold(self, bell: Bell, visitor: Visitor) -> None:
        visitor.sock.setblocking(False)
        bell.add(visitor)
        self._look(bell, visitor)
        if visitor in bell.visitors and bell.armed:
            try:
                self._watch(visitor.sock.fileno(), bell, visitor)
            except OSError:
                self._leave(bell, visitor)
            else:
                visitor.name = self._keep(bell.key, visitor.sock)

    def _look(self, bell: Bell, visitor: Visitor, *, last: bool = False) -> None:
        """Decide about a visitor; `last`: nothing more will come, or the time for it is over."""
        wait = partial(visitor.be_gone_in, leave=partial(self._look, bell, visitor, last=True))
        try:
            head = visitor.sock.recv(ENOUGH_BYTES, socket.MSG_PEEK)
        except BlockingIOError:
            if last:
                self._leave(bell, visitor)
            else:
                wait(bell.quiet_seconds)
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
            wait(bell.line_seconds)
        else:
            self._leave(bell, visitor, b"" if bell.tls or not head else _BAD_REQUEST)

    def _leave(self, bell: Bell, visitor: Visitor, last_words: bytes = b"") -> None:
        """Close a visitor for whom nobody wakes."""
        bell.remove(visitor)
        self._unwatch(visitor.sock.fileno())
        if last_words:
            with contextlib.suppress(OSError):
                # Read first: closing with unread bytes would reset the connection, and the answer with it.
                visitor.sock.recv(ENOUGH_BYTES)
                visitor.sock.send(last_words)
        self._departures.let_go(visitor)

    def _ring(self, bell: Bell) -> None:
        self.disarm(bell.key)
        bell.on_request()
