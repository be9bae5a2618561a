"""Closes a listener from which an event loop accepts, without losing a connection that is accepted already."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence


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
