"""A server that misbehaves on purpose: what it does with each connection is a function."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Peer:
    """The server's end of one connection."""

    def __init__(self, sock: socket.socket, server: Scripted) -> None:
        self.sock = sock
        self.server = server
        self._bytes = b""

    def request(self) -> bytes:
        """The head of the next request; raises EOFError when there is none."""
        while b"\r\n\r\n" not in self._bytes:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._bytes += data
        head, _, self._bytes = self._bytes.partition(b"\r\n\r\n")
        self.server.requests += 1
        return head

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def in_pieces(self, data: bytes) -> None:
        """Byte by byte, each in a segment of its own."""
        for place in range(len(data)):
            self.sock.sendall(data[place : place + 1])

    def reset(self) -> None:
        """Close with a reset, seen before anything else is done."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Scripted:
    """Accepts, and does `act(peer)` with each connection in a thread; `requests` counts what it has read."""

    def __init__(self, act: Callable[[Peer], None]) -> None:
        self.act = act
        self.requests = 0
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self.listener.getsockname()[1]
        self._socks: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock = self.listener.accept()[0]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socks.append(sock)
                self.connections += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(EOFError, OSError):
            self.act(Peer(sock, self))

    def close(self) -> None:
        """Refuses from now on."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.listener.close()
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def scripted(act: Callable[[Peer], None]) -> Iterator[Scripted]:
    server = Scripted(act)
    try:
        yield server
    finally:
        server.close()
