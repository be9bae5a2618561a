"""Accepting from listeners that somebody else owns: their descriptors are duplicated, and stay as they were."""

from __future__ import annotations

import asyncio
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


def duplicate(listener: socket.socket) -> socket.socket:
    """The same listener under another descriptor."""
    # Not listener.dup(): it makes the new socket blocking for a moment, and with it, because they share one open file,
    # the listener of every other worker; one that calls accept() just then waits there for ever.
    return socket.socket(listener.family, listener.type, listener.proto, fileno=os.dup(listener.fileno()))
