"""Accepted connections that go from one process to another, one a message: unread bytes and all, and nobody sees it."""

from __future__ import annotations

import math
import os
import socket

from ..platform import close_promptly
from . import wire

_CONNECTION = {"t": "conn"}
_FAMILIES = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
_PROTOCOLS = (0, socket.IPPROTO_TCP)


class NoRoom(Exception):
    """This process can have no descriptor more: what it took now would be lost."""


class Connection(socket.socket):
    """A connection that was taken, with the time that its client has left.

    `until` is when it must have sent a whole head (before its first request), or may not have been silent any longer
    (`asked`: it has had a request); a time of the system's monotonic clock, None if the giver set no limit.
    """

    __slots__ = ("asked", "until")
    until: float | None
    asked: bool


def give(end: socket.socket, fd: int, until: float | None = None, *, asked: bool = False) -> None:
    """Let the connection wait for a process that takes it; the descriptor stays the caller's.

    `until` and `asked` are as in Connection. Raises OSError, BlockingIOError when there is no room in between.
    """
    limit = {} if until is None else {"until": until, "asked": asked}
    wire.send(end, {**_CONNECTION, **limit}, [fd])


def take(end: socket.socket) -> Connection | None:
    """The next connection; None when nobody gives any more.

    Raises BlockingIOError when none waits, NoRoom, OSError, and WireError for anything else, all of which is closed: an
    application that has the other end can send what it likes.
    """
    try:
        # A descriptor for which there is no room when it arrives is lost.
        os.close(os.dup(end.fileno()))
    except OSError as error:
        raise NoRoom from error
    received = wire.receive(end)
    if received is None:
        return None
    message, fds = received
    if message.get("t") == _CONNECTION["t"] and len(fds) == 1 and _is_connection(fds[0]):
        taken = Connection(fileno=fds[0])
        until = message.get("until")
        taken.until = until if isinstance(until, float) and math.isfinite(until) else None
        taken.asked = bool(message.get("asked"))
        return taken
    for fd in fds:
        close_promptly(fd)
    raise wire.WireError("this is no connection")


def _is_connection(fd: int) -> bool:
    """Whether it is a stream socket that is connected."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        return False
    try:
        known = sock.family in _FAMILIES and sock.type == socket.SOCK_STREAM and sock.proto in _PROTOCOLS
        return known and sock.getpeername() is not None
    except OSError:
        return False
    finally:
        sock.detach()
