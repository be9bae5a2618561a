"""A worker's control socket: orders come in, events go out, and nothing here ever waits.

A heartbeat is answered without a message: the time is written to a page of memory that the supervisor reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable

from ..keeper import wire
from .tally import BEAT_ASKED_NS, BEAT_AT_NS, BEAT_LAG_NS

# As the wire writes it, and compared as it is: parsing it would touch pages that a fork shares until then.
BEAT = b'{"order":"beat"}'

Obey = Callable[[wire.Message, list[int]], None]


class Control:
    """`obey` gets each order, with descriptors that are closed after it; `lost` is called when no more can come."""

    def __init__(self, fd: int, obey: Obey, lost: Callable[[], None]) -> None:
        self._obey = obey
        self._lost = lost
        self._tally: memoryview | None = None
        self._take(fd)

    def _take(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)

    def listen(self, tally: memoryview | None) -> None:
        """Take orders from now on; heartbeats are answered on the page."""
        self._tally = tally
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def ignore(self) -> None:
        """Take no more orders."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def move(self, fd: int) -> None:
        """Take orders from this socket instead."""
        self._sock.close()
        self._take(fd)
        self.listen(self._tally)

    def tell(self, message: wire.Message) -> None:
        """Say it, if there is room: nobody may be listening, and no request may pay for that."""
        with contextlib.suppress(OSError):
            wire.send(self._sock, message)

    def tell_as_it_is(self, message: bytes) -> None:
        """Likewise, as the wire has it: a fork pays for every page that it touches, and JSON's are 75 KB."""
        with contextlib.suppress(OSError):
            self._sock.send(message)

    def forget(self) -> None:
        """Close it, in a process that is no worker."""
        with contextlib.suppress(OSError):
            os.close(self._sock.detach())

    def _readable(self) -> None:
        if answer(self._sock, self._tally):
            return
        try:
            received = wire.receive(self._sock)
        except (BlockingIOError, wire.WireError):
            return
        except ConnectionError:
            received = None
        if received is None:
            # An end of file is always readable.
            self.ignore()
            self._lost()
            return
        message, fds = received
        try:
            self._obey(message, fds)
        finally:
            for fd in fds:
                os.close(fd)


def begin(tally: memoryview | None) -> None:
    """Say that this worker knows of heartbeats."""
    if tally is not None:
        tally[BEAT_AT_NS] = time.monotonic_ns()


def answer(control: socket.socket, tally: memoryview | None) -> bool:
    """Whether the next message on the control socket was a heartbeat; it has been read and answered then."""
    try:
        if control.recv(len(BEAT) + 1, socket.MSG_PEEK) != BEAT:
            return False
        control.recv(len(BEAT))
    except OSError:
        # Whoever reads next sees the same.
        return False
    if tally is not None:
        now = time.monotonic_ns()
        tally[BEAT_LAG_NS] = max(0, now - tally[BEAT_ASKED_NS])
        tally[BEAT_AT_NS] = now
    return True
