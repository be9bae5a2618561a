"""Connections that another process has accepted get their protocol here, by the way that asyncio has for them."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

from poolctl.platform import close_promptly

# A connection without TLS that gets its protocol: what makes its transport, and the future that it awaits.
_Attaching = tuple[Coroutine[Any, Any, object], asyncio.Future[object]]


class AcceptedConnections:
    """Connections that have no protocol yet; `changed` is set when one has got it, or has failed."""

    def __init__(self, changed: asyncio.Event) -> None:
        self._changed = changed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._attaching: list[_Attaching] = []
        self._settling = False

    def __len__(self) -> int:
        return len(self._tasks) + len(self._attaching)

    def attach(
        self,
        make: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        context: ssl.SSLContext | None = None,
        handshake_seconds: float | None = None,
    ) -> None:
        """Give the connection a protocol; with a context it uses TLS."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
        if context is not None:
            work = loop.connect_accepted_socket(
                make, sock, ssl=context, ssl_handshake_timeout=handshake_seconds
            )
            task = loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._done)
            return
        # Without a task, which takes half as long again: it awaits one thing.
        work = loop.connect_accepted_socket(make, sock)
        try:
            self._attaching.append((work, work.send(None)))
        except Exception:
            close_promptly(sock.detach())
            self._changed.set()
            return
        if not self._settling:
            self._schedule(loop)

    def cancel(self) -> None:
        """Cancel those that have no protocol yet."""
        for task in list(self._tasks):
            task.cancel()
        for _, made in self._attaching:
            made.cancel()

    def _settle(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        """Finish so many, which were attached before this was scheduled: they have their protocols now, or have failed.

        No others: uvloop does not survive a transport that is closed before it has called `connection_made`.
        """
        over, self._attaching = self._attaching[:count], self._attaching[count:]
        for work, _ in over:
            try:
                work.send(None)
            except (Exception, asyncio.CancelledError):  # StopIteration: it has returned
                pass
        self._schedule(loop)
        self._changed.set()

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        count = len(self._attaching)
        self._settling = bool(count)
        if count:
            loop.call_soon(self._settle, loop, count)

    def _done(self, task: asyncio.Task[object]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # otherwise asyncio logs that it was never retrieved
        self._changed.set()
