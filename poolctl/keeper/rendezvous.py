"""How processes that have lost both their keeper and its supervisor are found again: by abstract socket names.

Such a name (unix(7)) needs no directory that a server's user may write to, leaves no file behind, and is gone with its
process. It begins with the path of the pool's directory, and is listed in /proc/net/unix. Who is at the other end is
said by the kernel.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Collection

from ..platform import peer_credentials
from . import wire

WORKER, LOGGER, DASHBOARD = "w", "l", "d"
_TABLE = "/proc/net/unix"
_TRIES = 3


def listen(directory: str, kind: str) -> socket.socket:
    """A non-blocking listener that is found under the pool's directory. Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    name = f"\0{directory}/{kind}/{os.getpid()}"
    try:
        for number in range(_TRIES):
            try:
                # Anybody may have taken the name: what counts is how it begins, and who has it.
                listener.bind(os.fsencode(f"{name}.{number}" if number else name))
                break
            except OSError:
                if number == _TRIES - 1:
                    raise
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def accept(listener: socket.socket, uids: Collection[int]) -> socket.socket | None:
    """The next connection, if it is one of a user that may ask."""
    try:
        connection, _ = listener.accept()
    except OSError:
        return None
    if peer_credentials(connection)[1] not in uids:
        connection.close()
        return None
    connection.setblocking(False)
    return connection


def find(directory: str, kind: str) -> list[bytes]:
    """The names that stand in the kernel's table for the pool of this directory; unknown is as good as none."""
    prefix = os.fsencode(f"@{directory}/{kind}/")
    try:
        with open(_TABLE, "rb") as table:
            # Num RefCount Protocol Flags Type St Inode Path; a listener has flag __SO_ACCEPTCON.
            rows = [row.rstrip(b"\n").split(None, 7) for row in table if prefix in row]
    except OSError:
        return []
    return [
        b"\0" + row[7][1:]
        for row in rows
        if len(row) == 8 and row[7].startswith(prefix) and int(row[3], 16) & 0x10000
    ]


def connect(name: bytes, timeout_seconds: float) -> socket.socket | None:
    """A connection to what has that name; None when nobody is there any more, or does not take it."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(timeout_seconds)
    try:
        sock.connect(name)
    except OSError:
        sock.close()
        return None
    return sock


def receive(sock: socket.socket) -> tuple[wire.Message, list[int]] | None:
    """Like wire.receive, but None for whatever goes wrong: the other end may be anybody."""
    try:
        return wire.receive(sock)
    except (OSError, wire.WireError):
        return None
