"""Accepting from listeners that somebody else owns: their descriptors are duplicated, and stay as they were."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence

import uvicorn


async def accept_from(
    listeners: Sequence[socket.socket], make_protocol: Callable[[], asyncio.Protocol], config: uvicorn.Config
) -> list[asyncio.base_events.Server]:
    """Servers that accept from each of the listeners, and speak TLS if the configuration has a context."""
    loop = asyncio.get_running_loop()
    return [
        await loop.create_server(make_protocol, sock=duplicate(sock), ssl=config.ssl, backlog=config.backlog)
        for sock in listeners
    ]


def stop_reading(listeners: Sequence[socket.socket]) -> None:
    """Accept nothing more from them from now on; what was accepted goes on."""
    loop = asyncio.get_running_loop()
    for listener in listeners:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            loop.remove_reader(listener.fileno())


async def close(servers: Sequence[asyncio.base_events.Server]) -> None:
    """Accept nothing more, and lose nothing of what was accepted."""
    # asyncio's Server.close() destroys connections that it accepted and did not attach yet: stop reading the listener
    # first and close it some turns later, when those are attached.
    for server in servers:
        stop_reading(server.sockets)
    for _ in range(3):
        await asyncio.sleep(0)
    for server in servers:
        server.close()
    await asyncio.sleep(0)


def duplicate(listener: socket.socket) -> socket.socket:
    """The same listener under another descriptor."""
    # Not listener.dup(): it makes the new socket blocking for a moment, and with it, because they share one open file,
    # the listener of every other worker; one that calls accept() just then waits there for ever.
    return socket.socket(listener.family, listener.type, listener.proto, fileno=os.dup(listener.fileno()))
