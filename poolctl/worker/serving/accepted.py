"""Connections that another process has accepted, until they have a protocol here."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any


class AcceptedConnections:
    """`on_done` is called when one has its protocol, or has failed, for example in its handshake."""

    def __init__(self, on_done: Callable[[], None] = lambda: None) -> None:
        self._on_done = on_done
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
        """Give up those that have no protocol yet."""
        for task in list(self._tasks):
            task.cancel()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio complains of one that nothing has asked for
        self._on_done()
