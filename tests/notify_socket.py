"""A real receiver of what a service tells systemd (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.deadline import wait_until


class NotifySocket:
    """A datagram socket with a path, and the messages that have come."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "notify.sock")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._sock.bind(self.path)
        self._messages: list[str] = []

    @property
    def messages(self) -> list[str]:
        """Every message so far, in order."""
        while True:
            try:
                self._messages.append(os.fsdecode(self._sock.recv(4096)))
            except BlockingIOError:
                return self._messages

    @property
    def lines(self) -> list[str]:
        """Their lines."""
        return "\n".join(self.messages).splitlines()

    def await_line(self, start: str, *, times: int = 1) -> str:
        """The newest line that begins so, once there are that many."""
        wait_until(
            lambda: len([line for line in self.lines if line.startswith(start)]) >= times,
            what=lambda: f"{start} in {self.messages}",
        )
        return [line for line in self.lines if line.startswith(start)][-1]

    def forget(self) -> None:
        """Begin anew."""
        _ = self.messages
        self._messages.clear()

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()
