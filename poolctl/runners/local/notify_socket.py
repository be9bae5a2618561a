"""The socket on which a program reports that it is ready (sd_notify(3))."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from poolctl import platform

from .. import process_link

# The pause after too many notifications from one program, so that it does not delay others.
_NOTIFICATION_PAUSE_SECONDS = 0.5
_MAX_NOTIFICATION_BYTES = 4096


class NotifySocket:
    """The notification socket of one program. Accepts only messages from the program's user `uid` and from root.

    The keeper holds it too, so that a later supervisor receives messages that arrive while none runs.
    """

    def __init__(self, sock: socket.socket, path: str, uid: int) -> None:
        sock.setblocking(False)
        platform.enable_sender_credentials(sock)
        self.path = path
        self._sock = sock
        self._uids = {0, uid}
        self._on_ready: Callable[[], None] = lambda: None
        self._allowance = process_link.message_allowance()
        self._pause: asyncio.TimerHandle | None = None

    @classmethod
    def open(cls, uid: int) -> NotifySocket:
        """Create a socket in a directory that every user may enter, so that the program's user can reach it."""
        import tempfile  # imported late: slow, and needed only for programs that notify

        directory = tempfile.mkdtemp(prefix="poolctl-notify-")
        os.chmod(directory, 0o711)
        path = os.path.join(directory, "socket")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(path)
        os.chmod(path, 0o777)
        return cls(sock, path, uid)

    def fileno(self) -> int:
        return self._sock.fileno()

    def start(self, on_ready: Callable[[], None]) -> None:
        """Start to listen; `on_ready` is called for each READY=1 that is received."""
        self._on_ready = on_ready
        self._listen()

    def _listen(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        space = socket.CMSG_SPACE(platform.CREDENTIALS_BYTES)
        with contextlib.suppress(BlockingIOError):
            while self._allowance.take(1, loop.time()):
                # Without a buffer for descriptors, the kernel drops them.
                data, ancillary, _, _ = self._sock.recvmsg(
                    _MAX_NOTIFICATION_BYTES, space, socket.MSG_DONTWAIT
                )
                sender = platform.sender_credentials(ancillary)
                if sender is not None and sender[1] in self._uids and b"READY=1" in data.splitlines():
                    self._on_ready()
            loop.remove_reader(self._sock.fileno())
            self._pause = loop.call_later(_NOTIFICATION_PAUSE_SECONDS, self._listen)

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
