"""One server that sleeps, and the connections that are held for it: what a doorbell keeps account of."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from poolctl.keeper.handover import Connection


@dataclass(slots=True, eq=False)
class Visitor:
    """Who is connected and has not asked for anything yet. A `stranger` is one whom no worker has seen."""

    sock: Connection
    stranger: bool = True
    begun: bool = False  # has sent the beginning of a request
    name: str = ""  # under which it is kept for another process
    until: float | None = None  # when the timer fires
    timer: asyncio.TimerHandle | None = None

    @classmethod
    def accepted(cls, sock: socket.socket, head_seconds: float) -> Visitor:
        """A new connection, which is the caller's no more."""
        made = cls(Connection(fileno=sock.detach()))
        made.give_time(head_seconds, asked=False)
        return made

    def give_time(self, seconds: float, *, asked: bool) -> None:
        """Let it have so long from now on, unless a time is set already for the same."""
        if self.sock.until is None or self.sock.asked is not asked:
            self.sock.until, self.sock.asked = time.monotonic() + seconds, asked

    def wait(self, bell: Bell, leave: Callable[[], None], *, begun: bool) -> None:
        """Call `leave` when the time for the rest of its request is over, or for the first byte of it."""
        self.begun = begun
        if begun:
            self.give_time(bell.head_seconds, asked=False)
        elif self.sock.until is None:
            self.give_time(bell.quiet_seconds, asked=True)
        until = self.sock.until
        if until is not None and until != self.until:
            self.cancel()
            self.until = until
            seconds = max(0.0, until - time.monotonic())
            self.timer = asyncio.get_running_loop().call_later(seconds, leave)

    def cancel(self) -> None:
        """No limit any more."""
        self.until = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class Bell:
    """What a doorbell has to know of a server. Without `accepts` any connection wakes it, and none is accepted for it.

    Its listeners are `shared` when an application may have them as well. `left` is where its workers leave their idle
    connections. One that has had an answer may stay idle for `quiet_seconds`; any other has `head_seconds` for the head
    of its request, as at a worker, which goes on with the time that is left.
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
    # In the order of their coming; and those among them whom no worker has seen.
    visitors: dict[Visitor, None] = field(default_factory=dict)
    strangers: dict[Visitor, None] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    fetched: set[int] = field(default_factory=set)  # the descriptors that the accept helper is asked about
    armed: bool = False
    deaf: bool = True  # its listeners are not watched, or not for the moment

    @property
    def sockets(self) -> dict[int, socket.socket]:
        """What is to be watched for those who come, by descriptor."""
        left = [] if self.left is None else [self.left]
        return {sock.fileno(): sock for sock in (*self.listeners, *left)}

    def expendable(self, newest: Visitor) -> Visitor | None:
        """The connection that is closed first where there are too many: the oldest that has never sent anything.

        After those come the ones that workers have left. None when all others are in the middle of a request.
        """
        for group in (self.strangers, self.visitors):
            for each in group:
                if not each.begun and each is not newest:
                    return each
        return None

    def add(self, visitor: Visitor) -> None:
        """Somebody is connected from now on."""
        self.visitors[visitor] = None
        if visitor.stranger:
            self.strangers[visitor] = None

    def remove(self, visitor: Visitor) -> None:
        """Somebody has gone, or is to."""
        self.visitors.pop(visitor, None)
        self.strangers.pop(visitor, None)


@dataclass(slots=True, eq=False)
class Fetch:
    """What the accept helper is asked for a server; not `wanted` any more once the server has been stopped."""

    key: str
    stranger: bool
    head_seconds: float
    wanted: bool = True

    def visitor(self, sock: Connection) -> Visitor:
        """What has come of it."""
        return Visitor.accepted(sock, self.head_seconds) if self.stranger else Visitor(sock, stranger=False)
