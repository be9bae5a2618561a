"""A worker's control socket: orders come in, events go out, and nothing here ever waits.

A heartbeat is answered without a message: the time is written to a page of memory that the supervisor reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from typing import Protocol

from ..keeper import wire
from .tally import BEAT_ASKED_NS, BEAT_AT_NS, BEAT_LAG_NS

# As `wire` encodes it. It is compared as bytes: parsing would touch pages that a fork shares until then.
BEAT = b'{"order":"beat"}'


class Controlled(Protocol):
    """The worker that follows the orders."""

    def perform(self, message: wire.Message, fds: list[int]) -> None:
        """Follow an order; its descriptors are closed afterwards."""

    def control_lost(self) -> None:
        """No more orders can come: keeper and supervisor are both gone."""


class ControlSocket:
    """Receives the worker's orders and sends its events."""

    def __init__(self, fd: int, worker: Controlled) -> None:
        self._worker = worker
        self._tally: memoryview | None = None
        self._take(fd)

    def _take(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)
        self._sock.setblocking(False)

    def listen(self, tally: memoryview | None) -> None:
        """Accept orders from now on; heartbeats are answered on the page."""
        self._tally = tally
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def ignore(self) -> None:
        """Accept no more orders."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def move(self, fd: int) -> None:
        """Accept orders from this socket instead."""
        self._sock.close()
        self._take(fd)
        self.listen(self._tally)

    def send(self, message: wire.Message) -> None:
        """Send it if there is room: a supervisor that does not read must not delay a request."""
        with contextlib.suppress(OSError):
            wire.send(self._sock, message)

    def send_raw(self, message: bytes) -> None:
        """Send an encoded message: a fork pays for every page that it touches, and JSON's are 75 KB."""
        with contextlib.suppress(OSError):
            self._sock.send(message)

    def close_in_child(self) -> None:
        """Close it in a process that the application has forked."""
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
            self._worker.control_lost()
            return
        message, fds = received
        try:
            self._worker.perform(message, fds)
        finally:
            for fd in fds:
                os.close(fd)


def begin(tally: memoryview | None) -> None:
    """Show on the page that this worker answers heartbeats."""
    if tally is not None:
        tally[BEAT_AT_NS] = time.monotonic_ns()


def answer(control: socket.socket, tally: memoryview | None) -> bool:
    """Read and answer the next message on the control socket if it is a heartbeat; whether it was one."""
    try:
        if control.recv(len(BEAT) + 1, socket.MSG_PEEK) != BEAT:
            return False
        control.recv(len(BEAT))
    except OSError:
        # The next read sees the same error.
        return False
    if tally is not None:
        now = time.monotonic_ns()
        tally[BEAT_LAG_NS] = max(0, now - tally[BEAT_ASKED_NS])
        tally[BEAT_AT_NS] = now
    return True
