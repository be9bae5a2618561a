"""Programs that are not ASGI applications: how to detect that they answer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from poolctl.config import ServerConfig
from poolctl.listeners.acceptance import accepted

# Nothing announces that another program has called bind(): it has to be tried.
_FIRST_PAUSE_SECONDS = 0.01
_LAST_PAUSE_SECONDS = 0.2


async def first_connection(server: ServerConfig, listeners: Sequence[socket.socket]) -> None:
    """Return when the program accepts connections: when it has accepted one of ours, or listens by itself."""
    target = listeners[0] if listeners else None
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            with await connect(server, target) as probe:
                if target is not None:
                    await accepted(probe, target)
                return
        except OSError:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_PAUSE_SECONDS)


async def connect(server: ServerConfig, target: socket.socket | None) -> socket.socket:
    """A connection to the program: to the listener that it was given, or to its address. Raises OSError."""
    loop = asyncio.get_running_loop()
    address = server.address.nearby
    if target is not None:
        family, where = target.family, target.getsockname()
    elif address.kind == "unix":
        family, where = socket.AF_UNIX, address.path
    else:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
    probe = socket.socket(family, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        await loop.sock_connect(probe, where)
    except BaseException:
        probe.close()
        raise
    return probe
