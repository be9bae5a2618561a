"""NOTIFY_SOCKET (sd_notify(3)): how a program that is no ASGI application says that it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import tempfile
from collections.abc import Callable


class Notify:
    """The socket for one program. The keeper holds it too, so that a later supervisor hears what is said meanwhile."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        sock.setblocking(False)
        self.path = path
        self._sock = sock

    @classmethod
    def open(cls) -> Notify:
        """A new socket, which programs of every user may write to: below a name that nobody guesses."""
        directory = tempfile.mkdtemp(prefix="poolctl-notify-")
        os.chmod(directory, 0o711)
        path = os.path.join(directory, "socket")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(path)
        os.chmod(path, 0o777)
        return cls(sock, path)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def start(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` at READY=1."""
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable, on_ready)

    def _readable(self, on_ready: Callable[[], None]) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                if b"READY=1" in self._sock.recv(4096).splitlines():
                    on_ready()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._sock.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
            os.rmdir(os.path.dirname(self.path))
