"""Attaches a protocol to connections that another process has accepted, in the way of asyncio."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any

from poolctl.platform import close_promptly

from .connection_state import PoolServerState

_LEAST_HANDSHAKE_SECONDS = 0.1

_Work = Coroutine[Any, Any, object]  # creates a transport
_Attaching = tuple[
    _Work, asyncio.Future[object]
]  # for a connection without TLS, with the future that it awaits


class AcceptedConnections:
    """Connections that have no protocol yet.

    The state's `changed` is set when a connection has got its protocol, or has failed.
    """

    def __init__(self, server_state: PoolServerState) -> None:
        self._server_state = server_state
        self._changed = server_state.changed
        self._loop: asyncio.AbstractEventLoop | None = None
        self._attaching: list[_Attaching] = []
        self._settling = False
        self._handshakes: dict[asyncio.Protocol, asyncio.Future[object]] = {}

    def __len__(self) -> int:
        """The number of connections without a protocol; the state counts connections in a TLS handshake."""
        return len(self._attaching)

    def shake_hands(
        self, protocol: asyncio.Protocol, sock: socket.socket, context: ssl.SSLContext, due: float
    ) -> None:
        """Begin TLS on a connection that then gets this protocol.

        The handshake and the first head must be complete at `due`, in seconds of the system's monotonic clock.
        """
        self._server_state.expect(protocol, due)
        seconds = max(_LEAST_HANDSHAKE_SECONDS, due - monotonic())
        loop = asyncio.get_running_loop()
        work = loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=context, ssl_handshake_timeout=seconds
        )
        # Without a task, which would begin in another iteration of the loop: 3 % of a new connection.
        try:
            self._await(protocol, work)
        except Exception:
            close_promptly(sock.detach())
            self._server_state.handshake_failed(protocol)

    def _await(self, protocol: asyncio.Protocol, work: _Work) -> None:
        self._handshakes[protocol] = waits = work.send(None)
        waits.add_done_callback(functools.partial(self._continue, protocol, work))

    def _continue(self, protocol: asyncio.Protocol, work: _Work, _: object) -> None:
        del self._handshakes[protocol]
        try:
            self._await(protocol, work)
        except (Exception, asyncio.CancelledError):  # StopIteration: it has returned
            self._server_state.handshake_failed(protocol)

    def attach(self, make: Callable[[], asyncio.BaseProtocol], sock: socket.socket) -> None:
        """Give the connection a protocol, without TLS."""
        loop = self._loop = self._loop or asyncio.get_running_loop()
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
        """Close the connections that have no protocol yet."""
        for waits in list(self._handshakes.values()):
            waits.cancel()
        for _, made in self._attaching:
            made.cancel()

    def _settle(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        """Finish the first `count`, attached before this was scheduled: they have their protocols now, or have failed.

        Later connections must wait: uvloop does not survive a transport that is closed before it has called
        `connection_made`.
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
