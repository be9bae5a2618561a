"""The listener of a sleeping server, and the connections held for it until a worker runs."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from poolctl.keeper.handover import Connection


class Handoff(Protocol):
    """Where held connections go: to the server's next worker, and until then into the keeper's store."""

    def give(self, key: str, sock: Connection) -> bool:
        """Send the connection to the server's next worker; False while there is no room."""
        ...

    def keep(self, key: str, sock: Connection) -> str:
        """Keep the connection so that it survives this process; the name under which it is kept, "" on failure."""
        ...

    def forget(self, name: str) -> None:
        """Remove the kept connection."""
        ...


@dataclass(slots=True, eq=False)
class HeldConnection:
    """A connection without a whole request yet. It is `unseen` while no worker has held it."""

    sock: Connection
    unseen: bool = True
    begun: bool = False  # has sent the beginning of a request
    name: str = ""  # under which it is kept for another process
    until: float | None = None  # when the timer fires
    timer: asyncio.TimerHandle | None = None

    @classmethod
    def accepted(cls, sock: socket.socket, head_seconds: float) -> HeldConnection:
        """A new connection, which takes ownership of `sock`."""
        made = cls(Connection(fileno=sock.detach()))
        made.give_time(head_seconds, asked=False)
        return made

    def give_time(self, seconds: float, *, asked: bool) -> None:
        """Set a time limit from now on, unless one of the same kind is set already."""
        if self.sock.until is None or self.sock.asked is not asked:
            self.sock.until, self.sock.asked = time.monotonic() + seconds, asked

    def wait(self, sleeping: SleepingListener, late: Callable[[], None], *, begun: bool) -> None:
        """Call `late` when the time for the first byte, or for the rest of its request, is over."""
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
        """Remove the time limit."""
        self.until = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class SleepingListener:
    """The activator's state of a server. Without `accepts` any connection wakes it, and none is accepted for it.

    Its listeners are `shared` when an application may have them as well. `left` is where its workers leave their idle
    connections. One that was answered may stay idle for `quiet_seconds`; any other has `head_seconds` for its
    request's head, as at a worker, which continues with the remaining time.
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
        """The connection to close first when there are too many: the oldest that has never sent anything.

        After those, one left by a worker. None if all others are in the middle of a request.
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
        """Release the connection."""
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
        """The fetched connection."""
        if self.unseen:
            return HeldConnection.accepted(sock, self.head_seconds)
        return HeldConnection(sock, unseen=False)
