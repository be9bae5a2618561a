"""The keeper's end of the socket to its client: what the client does not take now waits here."""

from __future__ import annotations

import os
import socket
from collections import deque

from . import wire


class Channel:
    """One client's connection. A client that is stopped or stuck must not hold up the reaping: nothing here waits."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self._waiting: deque[tuple[wire.Message, list[int]]] = deque()

    @property
    def blocked(self) -> bool:
        """Whether something waits for the client to read."""
        return bool(self._waiting)

    def tell(self, message: wire.Message, fds: list[int] | tuple[int, ...] = ()) -> None:
        """Send in order, now or later; the descriptors stay the caller's."""
        copies: list[int] = []
        try:
            for fd in fds:
                copies.append(os.dup(fd))
        except OSError as error:
            _close(copies)
            message, copies = {"id": message.get("id"), "error": str(error)}, []
        self._waiting.append((message, copies))
        self.flush()

    def flush(self) -> None:
        """Send what the client takes. For one that is gone nothing is left: its successor is told anew."""
        while self._waiting:
            message, fds = self._waiting[0]
            try:
                wire.send(self.sock, message, fds)
            except BlockingIOError:
                return
            except wire.WireError as error:
                _close(fds)
                self._waiting[0] = ({"id": message.get("id"), "error": str(error)}, [])
                continue
            except OSError:
                self._forget()
                return
            self._waiting.popleft()
            _close(fds)

    def close(self) -> None:
        """End the connection."""
        self.sock.close()
        self._forget()

    def _forget(self) -> None:
        for _, fds in self._waiting:
            _close(fds)
        self._waiting.clear()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
