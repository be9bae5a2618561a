"""Accepts the dashboard's connections: a limited number of TLS handshakes at once, each with a deadline."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable

HANDSHAKE_SECONDS = 10.0
# Each costs a quarter of a megabyte until it is over.
MOST_HANDSHAKES = 256
_AT_ONCE = 100
_PAUSE_SECONDS = 1.0
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Connects accepted connections with protocols. asyncio's own server limits neither handshakes nor connections.

    `on_lost` is called when another process that holds the listener has shut it down.
    """

    def __init__(
        self,
        listener: socket.socket,
        protocol: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        on_lost: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._protocol = protocol
        self._context = context
        self._on_lost = on_lost
        self._beginning: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting; the listener stays open."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())

    async def wait_closed(self) -> None:
        """Return when every accepted connection has a protocol, or is closed."""
        if self._beginning:
            await asyncio.wait(self._beginning)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self.close()
                if error.errno in _EXHAUSTED:
                    self._pause = self._loop.call_later(_PAUSE_SECONDS, self._again)
                else:
                    self._on_lost()
                return
            if len(self._beginning) >= MOST_HANDSHAKES:
                connection.close()
                continue
            connection.setblocking(False)
            task = self._loop.create_task(self._begin(connection))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)

    def _again(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    async def _begin(self, connection: socket.socket) -> None:
        seconds = HANDSHAKE_SECONDS if self._context else None
        try:
            await self._loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._context, ssl_handshake_timeout=seconds
            )
        except OSError:
            connection.close()
