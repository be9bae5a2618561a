"""The activator's state of one sleeping server: its sockets, and the connections that are held for it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .held_connections import HeldConnection


@dataclass(slots=True, eq=False)
class SleepingListener:
    """The activator's state of a server. Without `accepts` any connection wakes it, without being accepted.

    Its listeners are `shared` when an application may have them as well. `left` is where its workers leave their idle
    connections. A connection that was answered may stay idle for `quiet_seconds`; any other has `head_seconds` for its
    request's head, as in a worker, which continues with the remaining time.
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

    def wait(self, held: HeldConnection, late: Callable[[], None], *, begun: bool) -> None:
        """Call `late` when the time for its first byte, or for the rest of its request, is over."""
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
