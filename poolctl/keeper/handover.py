"""Accepted connections that go from one process to another, one a message: unread bytes and all, and nobody sees it."""

from __future__ import annotations

import os
import socket

from . import wire

_CONNECTION = {"t": "conn"}


class NoRoom(Exception):
    """This process can have no descriptor more: what it took now would be lost."""


def give(end: socket.socket, fd: int) -> None:
    """Let the connection wait for whoever takes it; the descriptor stays the caller's.

    Raises OSError, BlockingIOError when there is no room in between.
    """
    wire.send(end, _CONNECTION, [fd])


def take(end: socket.socket) -> socket.socket | None:
    """The next connection; None when nobody gives any more.

    Raises BlockingIOError when none waits, NoRoom, WireError for what is no connection, OSError.
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
    if message.get("t") == _CONNECTION["t"] and len(fds) == 1:
        return socket.socket(fileno=fds[0])
    for fd in fds:
        os.close(fd)
    raise wire.WireError("this is no connection")
