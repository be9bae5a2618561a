"""One server that sleeps, and the connections that are held for it: what a doorbell keeps account of."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Visitor:
    """Who is connected and has not asked for anything yet. A `stranger` is one whom no worker has seen."""

    sock: socket.socket
    stranger: bool = True
    begun: bool = False  # has sent the beginning of a request
    name: str = ""  # under which it is kept for another process
    patience_seconds: float = 0.0
    timer: asyncio.TimerHandle | None = None

    def be_gone_in(self, seconds: float, leave: Callable[[], None]) -> None:
        """Call `leave` after so long; a limit that runs already is not extended."""
        if self.patience_seconds != seconds:
            self.cancel()
            self.patience_seconds = seconds
            self.timer = asyncio.get_running_loop().call_later(seconds, leave)

    def cancel(self) -> None:
        """No limit any more."""
        self.patience_seconds = 0.0
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


@dataclass(slots=True, eq=False)
class Bell:
    """What a doorbell has to know of a server. Without `accepts` any connection wakes it, and none is accepted for it.

    Its listeners are `shared` when an application may have them as well. `left` is where its workers leave their idle
    connections. A connection may stay idle for `quiet_seconds`, and the first line of a request may take
    `line_seconds`: slow clients must not pin descriptors for ever.
    """

    key: str
    listeners: Sequence[socket.socket]
    on_request: Callable[[], None]
    accepts: bool = True
    shared: bool = False
    tls: bool = False
    left: socket.socket | None = None
    quiet_seconds: float = 75.0
    line_seconds: float = 10.0
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
    wanted: bool = True
