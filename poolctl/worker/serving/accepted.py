"""Connections that somebody else has accepted, on their way to a protocol of this process."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any


class AcceptedConnections:
    """`arrived` is called when one is there, or has failed, as in its handshake."""

    def __init__(self, arrived: Callable[[], None] = lambda: None) -> None:
        self._arrived = arrived
        self._tasks: set[asyncio.Task[Any]] = set()

    def __bool__(self) -> bool:
        return bool(self._tasks)

    def attach(
        self,
        make: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        context: ssl.SSLContext | None,
        handshake_seconds: float | None = None,
    ) -> None:
        """Give the connection a protocol; with a context TLS is spoken on it."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        # No other timeout than a TLS handshake's is allowed without TLS.
        timeout = None if context is None else handshake_seconds
        work = loop.connect_accepted_socket(make, sock, ssl=context, ssl_handshake_timeout=timeout)
        task = loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def cancel(self) -> None:
        """Let none of them arrive."""
        for task in list(self._tasks):
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio complains of one that nothing has asked for
        self._arrived()
