"""Connections to the address of a program, and who listens there."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from typing import Any

from poolctl.config import ServerConfig
from poolctl.listeners.sock_diag import CONNECTED, LISTEN, tcp_sockets

# There is no notification when another program calls bind(), so it is polled.
FIRST_CONNECT_PAUSE_SECONDS = 0.01
LAST_CONNECT_PAUSE_SECONDS = 0.2
# Listing the connections of a listener takes longer: the kernel walks through all connections of the machine.
FIRST_LISTING_PAUSE_SECONDS = 0.5
LAST_LISTING_PAUSE_SECONDS = 2.0
LISTING_SECONDS = 1.0


async def wait_until_listening(server: ServerConfig) -> None:
    """Wait until a program that binds its address itself listens there."""
    pause = FIRST_CONNECT_PAUSE_SECONDS
    while True:
        try:
            (await connect(server, None)).close()
        except OSError:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LAST_CONNECT_PAUSE_SECONDS)
        else:
            return


def listening_inodes(server: ServerConfig) -> set[int]:
    """The inodes of the sockets that listen at the server's port, whichever process has them. Blocks."""
    until = time.monotonic() + LISTING_SECONDS
    return {sock.inode for sock in tcp_sockets(LISTEN, until, port=server.address.port or 0)}


async def connect(server: ServerConfig, target: socket.socket | None) -> socket.socket:
    """A new connection to a program: through its listener or, if `target` is None, at its address. Raises OSError."""
    loop = asyncio.get_running_loop()
    address = server.address.connect_address
    if target is not None:
        family, where = target.family, target.getsockname()
    elif address.kind == "unix":
        family, where = socket.AF_UNIX, address.path
    else:
        addresses = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = addresses[0]
    probe = socket.socket(family, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        await loop.sock_connect(probe, where)
    except BaseException:
        probe.close()
        raise
    return probe


async def wait_until_port_is_unused(port: int, exited: asyncio.Future[Any], limit_seconds: float) -> None:
    """Wait until no connection to the program's port is open, or it has exited, or the time limit is reached.

    A program may end at once when it gets its stop signal, with the requests that it is answering.
    """

    def is_used() -> bool:
        return any(tcp_sockets(CONNECTED, time.monotonic() + LISTING_SECONDS, port=port))

    pause = FIRST_LISTING_PAUSE_SECONDS
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_seconds):
            while not exited.done() and await asyncio.to_thread(is_used):
                await asyncio.wait({exited}, timeout=pause)
                pause = min(pause * 1.5, LAST_LISTING_PAUSE_SECONDS)
