"""Hands accepted connections to another process, one a message, with their unread bytes and unnoticed by clients."""

from __future__ import annotations

import math
import os
import socket

from ..platform import close_promptly
from . import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_CONNECTION = {"t": "conn"}
_MOST_BYTES = 1024
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_PROTOCOLS = (0, socket.IPPROTO_TCP)


class NoRoom(Exception):
    """This process is at its limit of descriptors: a connection taken now would be lost."""


class Connection(socket.socket):
    """A connection with its client's remaining time.

    `until` is the deadline for a whole request head, or with `asked` (an answer was sent, and no byte came since) for
    its next request; a time of the system's monotonic clock, None for the usual limit from now on.
    """

    until: float | None = None
    asked = False

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream connection, which workers can serve."""
        # Numbers instead of enumerations: a newly forked worker pays for each page that it touches.
        numbers: Any = super(socket.socket, self)
        return (
            numbers.family in _FAMILIES and numbers.type == socket.SOCK_STREAM and numbers.proto in _PROTOCOLS
        )

    def limits(self) -> wire.Message:
        """`until` and `asked` as a part of a message."""
        return {} if self.until is None else {"until": self.until, "asked": self.asked}

    def limit(self, message: wire.Message) -> None:
        """Set `until` and `asked` from a message, which may come from an application."""
        until = message.get("until")
        self.until = until if isinstance(until, float) and math.isfinite(until) else None
        self.asked = bool(message.get("asked"))


def give(end: socket.socket, fd: int, limits: wire.Message | None = None) -> None:
    """Queue the connection for a process that takes it; the descriptor stays the caller's.

    `limits` are those of a Connection. Raises OSError, BlockingIOError when the queue is full.
    """
    wire.send(end, {**_CONNECTION, **(limits or {})}, [fd])


def take(end: socket.socket) -> Connection | None:
    """The next connection; None when the other end is closed.

    Raises BlockingIOError when none is queued, NoRoom, OSError, and WireError for anything else, which is closed: an
    application that holds the other end can send anything.
    """
    try:
        # A descriptor that exceeds the limit when it arrives is lost.
        os.close(os.dup(end.fileno()))
    except OSError as error:
        raise NoRoom from error
    received = wire.receive(end, most_bytes=_MOST_BYTES)
    if received is None:
        return None
    message, fds = received
    if message.get("t") == _CONNECTION["t"] and len(fds) == 1 and (taken := _connection(fds[0])) is not None:
        taken.limit(message)
        return taken
    for fd in fds:
        close_promptly(fd)
    raise wire.WireError("not a connection")


def _connection(fd: int) -> Connection | None:
    """The stream socket with this descriptor if it is connected; otherwise None, and the descriptor stays open."""
    try:
        sock = Connection(fileno=fd)
    except OSError:
        return None
    try:
        if sock.is_stream:
            sock.getpeername()
            return sock
    except OSError:
        pass
    sock.detach()
    return None
