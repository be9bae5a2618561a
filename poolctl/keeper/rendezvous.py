"""Finds processes that continue after keeper and supervisor were killed, by their sockets in the pool's directory.

Only the pool's user can enter that directory. For a worker that runs as another user, a socket is bound there before
the worker starts, and the worker listens on it once it is orphaned. The kernel reports which process listens (unix(7),
SO_PEERCRED); the caller checks that process's answer.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Collection

from ..platform import peer_credentials
from ..private_directory import recreate_pool_directory
from . import wire
from .pool_files import find_listeners

Socket = socket.socket  # an application may replace it, as gevent and PySocks do

_MOST_BYTES = 16 * 1024
_MOST_DESCRIPTORS = 64

Answer = tuple[wire.Message, list[int]]


def bind_new_socket(directory: str, kind: str) -> tuple[socket.socket, str]:
    """A bound non-blocking socket, not listening yet, and its path. Raises OSError."""
    # The path is not longer than the control socket's, whose length was checked.
    path = f"{directory}/{kind}.{os.urandom(4).hex()}"
    sock = Socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        recreate_pool_directory(directory)
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    return sock, path


def accept(listener: socket.socket, uids: Collection[int]) -> socket.socket | None:
    """The next connection; None if no connection waits, or if its peer's user is not in `uids`."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    if peer_credentials(connection)[1] not in uids:
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def connect_to_all(directory: str, kind: str, seconds: float) -> list[tuple[socket.socket, Answer | None]]:
    """Connect to all listening sockets of this kind; returns each connection with its first message.

    All are queried in parallel, within `seconds`. The message is None if it did not arrive in time or the connection
    failed, and empty if it was invalid.
    """
    until = time.monotonic() + seconds
    asked = {
        sock.fileno(): sock for path in find_listeners(directory, kind) if (sock := connect(path)) is not None
    }
    found: list[tuple[socket.socket, Answer | None]] = []
    poll = select.poll()
    for fd in asked:
        poll.register(fd, select.POLLIN)
    while asked and (left := until - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            sock = asked.pop(fd)
            try:
                found.append((sock, _receive(sock)))
            except wire.WireError:
                found.append((sock, ({}, [])))
            except OSError:
                found.append((sock, None))
    return [*found, *((sock, None) for sock in asked.values())]


def connect(path: str) -> socket.socket | None:
    """A non-blocking connection to the socket at this path; None if nothing listens there or its backlog is full."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock


def receive_or_none(sock: socket.socket) -> Answer | None:
    """Like wire.receive, but returns None for any error: the other end is not trusted."""
    try:
        return _receive(sock)
    except (OSError, wire.WireError):
        return None


def _receive(sock: socket.socket) -> Answer | None:
    return wire.receive(sock, most_bytes=_MOST_BYTES, most_descriptors=_MOST_DESCRIPTORS)
