"""Stops accepting from a listener without losing a connection, and finds the connections accepted from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Sequence

_EVERYWHERE = ("0.0.0.0", "::")


def stop_reading(listeners: Sequence[socket.socket]) -> None:
    """Stop accepting from them; accepted connections continue."""
    loop = asyncio.get_running_loop()
    for listener in listeners:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_reader(listener.fileno())


async def close(servers: Sequence[asyncio.base_events.Server]) -> None:
    """Stop accepting, without losing an accepted connection."""
    # asyncio's Server.close() destroys connections that it accepted and did not attach yet: stop reading the listener
    # first and close it some turns later, when those are attached.
    for server in servers:
        stop_reading(server.sockets)
    for _ in range(3):
        await asyncio.sleep(0)
    for server in servers:
        server.close()
    await asyncio.sleep(0)


def accepted_from(listeners: Sequence[socket.socket]) -> list[int]:
    """The descriptors of these listeners, of every connection accepted from them, and of all duplicates, unordered.

    An event loop registers a connection only some turns after accepting it. A caller that must not miss one, such as a
    forked child, checks the descriptors: an accepted connection has its listener's address as its own.
    """
    addresses = {_address(each) for each in listeners}
    found = []
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # not a socket, or the listing's own
            sock = socket.socket(fileno=int(name))
            try:
                if _address(sock) in addresses or _address(sock, everywhere=True) in addresses:
                    found.append(sock.fileno())
            finally:
                sock.detach()
    return found


def _address(sock: socket.socket, *, everywhere: bool = False) -> tuple[int, object, object]:
    name = sock.getsockname()
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return sock.family, name, None
    host = _EVERYWHERE[sock.family == socket.AF_INET6] if everywhere else name[0]
    return sock.family, host, name[1]
