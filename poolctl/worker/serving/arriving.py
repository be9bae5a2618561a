"""Connections that somebody else has accepted, on their way to a protocol of this process."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any


class Arriving:
    """`arrived` is told of each when it is there: its protocol, or None for one that failed, as in its handshake."""

    def __init__(self, arrived: Callable[[Any], None] = lambda protocol: None) -> None:
        self._arrived = arrived
        self._tasks: set[asyncio.Task[Any]] = set()

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def attach(
        self, make: Callable[[], asyncio.BaseProtocol], sock: socket.socket, context: ssl.SSLContext | None
    ) -> None:
        """Give the connection a protocol; with a context TLS is spoken on it."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(make, sock, ssl=context))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Let none of them arrive."""
        for task in list(self._tasks):
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        failed = task.cancelled() or task.exception() is not None
        self._arrived(None if failed else task.result()[1])
