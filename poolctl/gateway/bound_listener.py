"""A listener of the gateway: the sockets that the pool has bound, and what accepts from them."""

from __future__ import annotations

import os
import socket

from poolctl.routing.route import StreamRoute

from .acceptor import Acceptor
from .edge import Edge
from .settings import UDP, ListenerSettings
from .streams.tcp import TcpStream
from .streams.udp import UdpStream

_TCP_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class OpenListener:
    """A listener, its sockets, and what accepts from them."""

    def __init__(
        self, edge: Edge, settings: ListenerSettings, route: StreamRoute | None, sockets: list[socket.socket]
    ) -> None:
        self.settings = settings
        self.sockets = sockets
        self.stream: TcpStream | UdpStream | None = None
        self._acceptors: list[Acceptor] = []
        self._set_deferral(1 if route is None else 0)
        if route is None:
            self._acceptors = [Acceptor(edge, sock, settings) for sock in sockets]
        elif settings.protocol == UDP:
            self.stream = UdpStream(edge, sockets, route)
        else:
            self.stream = TcpStream(edge, sockets, route)

    def _set_deferral(self, seconds: int) -> None:
        """Whether the kernel keeps a connection until its first bytes have arrived, for so long at most.

        A connection that waited in this process instead would be lost if it is killed (measured: 3 in 6 times). On a
        stream it may be the server that speaks first, and the socket may have belonged to a listener of HTTP.
        """
        for sock in self.sockets:
            if sock.type == socket.SOCK_STREAM and sock.family in _TCP_FAMILIES:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, seconds)

    def stop(self) -> None:
        """Accept nothing more; open connections stay."""
        while self._acceptors:
            self._acceptors.pop().close()
        if self.stream is not None:
            self.stream.close()

    def close(self) -> None:
        """Likewise, and close the sockets."""
        self.stop()
        for sock in self.sockets:
            sock.close()

    async def drain(self, seconds: float) -> None:
        """Likewise, once the connections of a stream have ended, or were ended after that time."""
        self.stop()
        if self.stream is not None:
            await self.stream.drain(seconds)
        self.close()

    def changed(self, settings: ListenerSettings, route: StreamRoute | None, fds: list[int]) -> bool:
        """Whether another object has to serve this; a stream whose route alone is another one goes on with that."""
        same = [os.fstat(fd).st_ino for fd in fds] == [
            os.fstat(sock.fileno()).st_ino for sock in self.sockets
        ]
        if settings != self.settings or not same or (route is None) != (self.stream is None):
            return True
        if self.stream is not None and route is not None:
            self.stream.apply(route)
        return False
