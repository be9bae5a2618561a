"""Connects to programs that are not ASGI applications, and waits for them to become ready.

A program reports readiness through NOTIFY_SOCKET (sd_notify(3)), or is ready when it accepts a connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence

from poolctl.config import ServerConfig
from poolctl.listeners.sock_diag import accepted
from poolctl.platform import CREDENTIALS_BYTES, ask_for_credentials, sender_credentials

from ..untrusted_messages import allowance

# Nothing announces that another program has called bind(): it has to be tried.
_FIRST_PAUSE_SECONDS = 0.01
_LAST_PAUSE_SECONDS = 0.2
# A program that sends too many notifications waits that long, without delaying others.
_PAUSE_SECONDS = 0.5
_MOST_BYTES = 4096


async def first_connection(server: ServerConfig, listeners: Sequence[socket.socket]) -> None:
    """Return when the program is ready: it has accepted a connection, or listens on its own."""
    target = listeners[0] if listeners else None
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            with await connect(server, target) as probe:
                if target is not None:
                    await accepted(probe, target)
                return
        except OSError:
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LAST_PAUSE_SECONDS)


async def connect(server: ServerConfig, target: socket.socket | None) -> socket.socket:
    """A connection to the program, through the listener that it was given or at its address. Raises OSError."""
    loop = asyncio.get_running_loop()
    address = server.address.nearby
    if target is not None:
        family, where = target.family, target.getsockname()
    elif address.kind == "unix":
        family, where = socket.AF_UNIX, address.path
    else:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, where = found[0]
    probe = socket.socket(family, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        await loop.sock_connect(probe, where)
    except BaseException:
        probe.close()
        raise
    return probe


class NotifySocket:
    """The notification socket of one program. Only messages from its user `uid` and from root count.

    The keeper holds it too, so that a later supervisor receives messages sent meanwhile.
    """

    def __init__(self, sock: socket.socket, path: str, uid: int) -> None:
        sock.setblocking(False)
        ask_for_credentials(sock)
        self.path = path
        self._sock = sock
        self._uids = {0, uid}
        self._on_ready: Callable[[], None] = lambda: None
        self._allowance = allowance()
        self._pause: asyncio.TimerHandle | None = None

    @classmethod
    def open(cls, uid: int) -> NotifySocket:
        """Create a socket in a directory that every user may enter, so that the program's user can reach it."""
        import tempfile  # with eight other modules, which most pools do not need

        directory = tempfile.mkdtemp(prefix="poolctl-notify-")
        os.chmod(directory, 0o711)
        path = os.path.join(directory, "socket")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(path)
        os.chmod(path, 0o777)
        return cls(sock, path, uid)

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._sock.fileno()

    def start(self, on_ready: Callable[[], None]) -> None:
        """Call `on_ready` when READY=1 is received."""
        self._on_ready = on_ready
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        space = socket.CMSG_SPACE(CREDENTIALS_BYTES)
        with contextlib.suppress(BlockingIOError):
            while self._allowance.take(1, loop.time()):
                # No buffer for descriptors is given, so the kernel drops them.
                data, ancillary, _, _ = self._sock.recvmsg(_MOST_BYTES, space, socket.MSG_DONTWAIT)
                sender = sender_credentials(ancillary)
                if sender is not None and sender[1] in self._uids and b"READY=1" in data.splitlines():
                    self._on_ready()
            loop.remove_reader(self._sock.fileno())
            self._pause = loop.call_later(_PAUSE_SECONDS, self._listen)

    def close(self) -> None:
        """Stop listening and remove the socket."""
        if self._sock.fileno() < 0:
            return
        if self._pause is not None:
            self._pause.cancel()
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
            os.rmdir(os.path.dirname(self.path))
