"""Connections held for sleeping servers: their first bytes, their time, their number, and where they go.

The first bytes are a request, the beginning of one, or nothing to wake a server for.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from poolctl.http.message_head import response_head
from poolctl.keeper.connection_handover import Connection
from poolctl.platform import close_promptly

# A longer line is left to the application; httptools and h11 have limits of their own.
LONGEST_LINE_BYTES = 8192
ENOUGH_BYTES = LONGEST_LINE_BYTES + 2

_METHOD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}"
_REQUEST_LINE = re.compile(_METHOD + rb" [^ \r\n]+ HTTP/[0-9]\.[0-9]\r?")
_BEGINNING = re.compile(_METHOD + rb"( .*)?", re.DOTALL)
# RFC 8446 §5.1 and §4: a record of type handshake, version 3.x, whose first message is a ClientHello.
_HANDSHAKE, _MAJOR, _CLIENT_HELLO = 0x16, 3, 1
_HELLO_AT = 5
_ROOM_SECONDS = 0.003
# Independent of the limit of open files: each costs memory.
MOST = 8192
# Even if most descriptors are in use: a client that is slow to send its request is not closed at once.
LEAST = 16
_MOST_AT_ONCE = 64
_LOOK_SECONDS = 0.1


class FirstBytes(StrEnum):
    """The kinds of data with which a connection can begin."""

    REQUEST = "request"
    BEGINNING = "beginning"  # it may become one: wait for more
    NO_REQUEST = "no request"


def refusal(*, late: bool) -> bytes:
    """The response to bytes that are not a request or, when `late`, to an incomplete request."""
    return response_head(408 if late else 400, [("Connection", "close"), ("Content-Length", "0")])


def classify_first_bytes(head: bytes, *, tls: bool) -> FirstBytes:
    """The kind of data with which a connection begins; ENOUGH_BYTES of it suffice."""
    return _hello(head) if tls else _request_line(head)


def _request_line(head: bytes) -> FirstBytes:
    # Empty lines before the request line are to be ignored (RFC 9112 §2.2).
    line, end, _ = head.lstrip(b"\r\n").partition(b"\n")
    if end:
        return FirstBytes.REQUEST if _REQUEST_LINE.fullmatch(line) else FirstBytes.NO_REQUEST
    if not line:
        return FirstBytes.BEGINNING if len(head) < LONGEST_LINE_BYTES else FirstBytes.NO_REQUEST
    if not _BEGINNING.fullmatch(line):
        return FirstBytes.NO_REQUEST
    return FirstBytes.BEGINNING if len(line) < LONGEST_LINE_BYTES else FirstBytes.REQUEST


def _hello(head: bytes) -> FirstBytes:
    expected = ((0, _HANDSHAKE), (1, _MAJOR), (_HELLO_AT, _CLIENT_HELLO))
    if any(head[at] != value for at, value in expected if at < len(head)):
        return FirstBytes.NO_REQUEST
    return FirstBytes.REQUEST if len(head) > _HELLO_AT else FirstBytes.BEGINNING


class Handoff(Protocol):
    """Passes held connections to the server's next worker, and stores them in the keeper until then."""

    def give(self, key: str, sock: Connection) -> bool:
        """Send the connection to the server's next worker; False if there is no room."""
        ...

    def keep(self, key: str, sock: Connection) -> str:
        """Store the connection so that it survives this process. Returns the name of its entry, "" on failure."""
        ...

    def forget(self, name: str) -> None:
        """Remove the kept connection."""
        ...

    def emptied(self, key: str) -> None:
        """Note that the pair of a server without workers is empty, and that no further connection can arrive in it."""
        ...


@dataclass(slots=True, eq=False)
class HeldConnection:
    """A connection that has not sent a complete request.

    `unseen` means that no worker has held it.
    """

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
        """Set a time limit that starts now, unless one of the same kind is set already."""
        if self.sock.until is None or self.sock.asked is not asked:
            self.sock.until, self.sock.asked = time.monotonic() + seconds, asked

    def set_timer(self, late: Callable[[], None]) -> None:
        """Call `late` when the time limit expires."""
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


class HandoffQueue:
    """Connections that wait for room in their server's adoption pair, by the server's key."""

    def __init__(self, handoff: Handoff) -> None:
        self._handoff = handoff
        self._waiting: dict[str, list[HeldConnection]] = {}

    @property
    def keys(self) -> list[str]:
        """The keys of the servers that have queued connections."""
        return list(self._waiting)

    def add(self, key: str, connections: Iterable[HeldConnection]) -> None:
        """Send the connections to the server's next worker, now or as soon as there is room."""
        waiting = self._waiting.setdefault(key, [])
        waiting += connections
        self._send(key)

    def recall(self, key: str) -> list[HeldConnection]:
        """Remove and return the connections that have not been sent; the caller owns them."""
        return self._waiting.pop(key, [])

    def close(self, held: HeldConnection) -> None:
        """Close a connection, and drop it from the keeper's store."""
        held.cancel()
        close_promptly(held.sock.detach())
        self._forget(held)

    def _send(self, key: str) -> None:
        waiting = self._waiting.get(key, [])
        while waiting:
            held = waiting[-1]
            # If it were sent while it is still in the store, it would be served twice if this process exited here.
            self._forget(held)
            if not self._handoff.give(key, held.sock):
                held.name = self._handoff.keep(key, held.sock)
                asyncio.get_running_loop().call_later(_ROOM_SECONDS, self._send, key)
                return
            self.close(waiting.pop())
        self._waiting.pop(key, None)

    def _forget(self, held: HeldConnection) -> None:
        if held.name:
            self._handoff.forget(held.name)
            held.name = ""


class HeldLimit:
    """Limits the held connections, so that a quarter of this process's descriptors stays free for other work.

    The keeper holds each connection as well, and has the same limit.
    """

    def __init__(self) -> None:
        self._limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The arrivals of one turn of the loop must fit as well.
        self.most_at_once = max(1, min(_MOST_AT_ONCE, self._limit // 16))
        self._connections: set[HeldConnection] = set()
        self._most = 0
        self._looked_at = 0.0

    def add(self, held: HeldConnection) -> None:
        """Count one more."""
        self._connections.add(held)

    def remove(self, held: HeldConnection) -> None:
        """Count one fewer."""
        self._connections.discard(held)

    @property
    def too_many(self) -> bool:
        """Whether a connection must be closed to keep the newest."""
        count = len(self._connections)
        if count <= LEAST:
            return False
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            # The descriptors of the rest of the work; counting them takes too long to do it for each connection.
            others = len(os.listdir("/proc/self/fd")) - count
            self._most = min(MOST, max(LEAST, self._limit - self._limit // 4 - others))
            self._looked_at = time.monotonic()
        return count > self._most
