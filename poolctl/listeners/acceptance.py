"""Finds out whether a program accepts connections, with a connection that is shut down at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time

from .sock_diag import accepted_connections, is_accepted

# Nothing announces that another program has called accept(): the kernel has to be polled.
_FIRST_PAUSE_SECONDS = 0.01
_LAST_PAUSE_SECONDS = 0.2
_OTHERS_AFTER_SECONDS = 0.5
_OTHERS_LAST_PAUSE_SECONDS = 2.0
_MOST_SECONDS = 1.0  # for the kernel to list all connections
# tcp_info: of a listener tcpi_unacked is the length of its accept queue (tcp(7)).
_TCP_INFO_BYTES = 32
_UNACKED_AT = 24


async def accepted(probe: socket.socket, listener: socket.socket | None = None) -> None:
    """Return when the program that listens at the other end of this new connection has accepted it.

    Our side is shut down first: a program that serves one client at a time then finishes with this one at once. The
    connection was accepted when the program closes it or sends something, or when the kernel reports that a process
    has the other end. Without the kernel's answer (see sock_diag) only the former counts. The length of the accept
    queue proves nothing: with more clients than workers it never becomes empty. In a long queue the probe's turn may
    come too late, so with `listener` it is enough that any connection to it was accepted meanwhile. Raises OSError.
    """
    with contextlib.suppress(OSError):
        probe.shutdown(socket.SHUT_WR)
    loop = asyncio.get_running_loop()
    pause, others_pause = _FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS
    others_at = loop.time() + _OTHERS_AFTER_SECONDS
    before: set[int] | None = None
    while not is_accepted(probe):
        try:
            async with asyncio.timeout(pause):
                await loop.sock_recv(probe, 1)
            return
        except ConnectionResetError:
            return  # by the program, which had accepted it
        except TimeoutError:
            pause = min(pause * 1.5, _LAST_PAUSE_SECONDS)
        if listener is not None and loop.time() >= others_at and _others_wait(listener):
            # In a thread and with growing pauses: the kernel walks all connections of the machine.
            now = await asyncio.to_thread(_accepted_now, listener)
            if before is not None and now - before:
                return
            before = now
            others_at = loop.time() + others_pause
            others_pause = min(others_pause * 1.5, _OTHERS_LAST_PAUSE_SECONDS)


def _others_wait(listener: socket.socket) -> bool:
    """Whether more connections than the probe wait in the accept queue; True if unknown (a Unix socket)."""
    if listener.family == socket.AF_UNIX or not hasattr(socket, "TCP_INFO"):
        return True
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return int(struct.unpack_from("I", info, _UNACKED_AT)[0]) > 1


def _accepted_now(listener: socket.socket) -> set[int]:
    return set(accepted_connections(listener, time.monotonic() + _MOST_SECONDS))
