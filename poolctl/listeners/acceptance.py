"""Finds out whether a program accepts connections, with a connection that is ended at once."""

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

    Our side is ended first: a program that serves one client at a time then finishes with this one at once. The
    connection was accepted when the program closes it or sends something, or when the kernel says that a process has
    the other end. Without an answer of the kernel (see sock_diag) only the former counts. The length of the accept
    queue proves nothing: with more clients than workers it never becomes empty. In a long queue the probe's turn may
    come too late, so with `listener` it is enough that any connection to it was accepted meanwhile. Raises OSError.
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
