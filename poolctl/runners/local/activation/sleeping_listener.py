"""The listener of a sleeping server, and the connections that are held for it until a worker is there."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from poolctl.keeper.handover import Connection


class Handoff(Protocol):
    """The way of held connections: to the server's next worker, and into the keeper's store meanwhile."""

    def give(self, key: str, sock: Connection) -> bool:
        """Send the connection to the server's next worker; False when there is no room at the moment."""
        ...

    def keep(self, key: str, sock: Connection) -> str:
        """Keep the connection so that it survives this process; the name under which it is kept, "" if it is not."""
        ...

    def forget(self, name: str) -> None:
        """Keep it no longer."""
        ...


@dataclass(slots=True, eq=False)
class HeldConnection:
    """A connection without a whole request yet. It is `unseen` while no worker has had it."""

    sock: Connection
    unseen: bool = True
    begun: bool = False  # has sent the beginning of a request
    name: str = ""  # under which it is kept for another process
    until: float | None = None  # when the timer fires
    timer: asyncio.TimerHandle | None = None

    @classmethod
    def accepted(cls, sock: socket.socket, head_seconds: float) -> HeldConnection:
        """A new connection, which is the caller's no more."""
        made = cls(Connection(fileno=sock.detach()))
        made.give_time(head_seconds, asked=False)
        return made

    def give_time(self, seconds: float, *, asked: bool) -> None:
        """Limit its time from now on, unless a limit for the same is set already."""
        if self.sock.until is None or self.sock.asked is not asked:
            self.sock.until, self.sock.asked = time.monotonic() + seconds, asked

    def wait(self, sleeping: SleepingListener, late: Callable[[], None], *, begun: bool) -> None:
        """Call `late` when the time for the rest of its request is over, or for the first byte of it."""
        self.begun = begun
        if begun:
            self.give_time(sleeping.head_seconds, asked=False)
        elif self.sock.until is None:
            self.give_time(sleeping.quiet_seconds, asked=True)
        until = self.sock.until
        if until is not None and until != self.until:
            self.cancel()
            self.until = until
            seconds = max(0.0, until - time.monotonic())
            self.timer = asyncio.get_running_loop().call_later(seconds, late)

    def cancel(self) -> None:
        """Remove the limit."""
        self.until = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class SleepingListener:
    """What the activator knows of a server. Without `accepts` any connection wakes it, and none is accepted for it.

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
    # In the order of arrival; and those among them that no worker has had.
    connections: dict[HeldConnection, None] = field(default_factory=dict)
    unseen_connections: dict[HeldConnection, None] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    fetched: set[int] = field(default_factory=set)  # the descriptors that the accept helper is asked about
    armed: bool = False
    paused: bool = True  # its listeners are not watched now

    @property
    def sockets(self) -> dict[int, socket.socket]:
        """The sockets on which connections arrive, by descriptor."""
        left = [] if self.left is None else [self.left]
        return {sock.fileno(): sock for sock in (*self.listeners, *left)}

    def expendable(self, newest: HeldConnection) -> HeldConnection | None:
        """The connection that is closed first where there are too many: the oldest that has never sent anything.

        After those, one that a worker has left. None when all others are in the middle of a request.
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

    def remove(self, held: HeldConnection) -> None:
        """Hold it no longer."""
        self.connections.pop(held, None)
        self.unseen_connections.pop(held, None)


@dataclass(slots=True, eq=False)
class Fetch:
    """A request to the accept helper for a server; no longer `wanted` once the server has been stopped."""

    key: str
    unseen: bool
    head_seconds: float
    wanted: bool = True

    def held(self, sock: Connection) -> HeldConnection:
        """The connection that it brought."""
        if self.unseen:
            return HeldConnection.accepted(sock, self.head_seconds)
        return HeldConnection(sock, unseen=False)
