"""Whether a program accepts connections: by one that is made for it and ended at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from .sock_diag import accepted_connections, is_accepted

# Nothing announces that another program has called accept(): the kernel has to be asked.
_FIRST_PAUSE_SECONDS = 0.01
_LAST_PAUSE_SECONDS = 0.2
_MOST_SECONDS = 1.0  # for the kernel to name all connections


async def accepted(probe: socket.socket, listener: socket.socket | None = None) -> None:
    """Return when the program that listens at the other end of this new connection has accepted it.

    We end our side first, so that a program which serves one client at a time is done with this one as soon as it has
    accepted it. It has when it closes the connection or sends something, or when the kernel says that a process has
    the other end; where the kernel does not say (see sock_diag), only the former counts. How many others wait in the
    accept queue says nothing: behind a program with more clients than workers it is never empty. Where it is long, it
    may take longer than anybody waits until it is the probe's turn: with its `listener` it is enough that another
    connection was accepted meanwhile. Raises OSError.
    """
    with contextlib.suppress(OSError):
        probe.shutdown(socket.SHUT_WR)
    pause = _FIRST_PAUSE_SECONDS
    before: set[int] | None = None
    while not is_accepted(probe):
        try:
            async with asyncio.timeout(pause):
                await asyncio.get_running_loop().sock_recv(probe, 1)
            return
        except ConnectionResetError:
            return  # by the program, which had accepted it
        except TimeoutError:
            pause = min(pause * 1.5, _LAST_PAUSE_SECONDS)
        if listener is not None and pause == _LAST_PAUSE_SECONDS:
            # Beside the loop: the kernel looks through all connections of the machine.
            now = await asyncio.to_thread(_accepted_now, listener)
            if before is not None and now - before:
                return
            before = now


def _accepted_now(listener: socket.socket) -> set[int]:
    return set(accepted_connections(listener, time.monotonic() + _MOST_SECONDS))
