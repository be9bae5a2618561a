"""The listener of a dashboard whose keeper and supervisor are both dead, taken over from its process."""

from __future__ import annotations

import contextlib
import os
import socket

from poolctl.keeper import rendezvous, wire
from poolctl.platform import peer_credentials

_ANSWER_SECONDS = 2.0


def take_over(directory: str) -> tuple[str, list[socket.socket]] | None:
    """Its address and its sockets, when there is such a process, which ends then. Blocks for at most two seconds."""
    for sock, answer in rendezvous.ask(directory, rendezvous.DASHBOARD, _ANSWER_SECONDS):
        with sock:
            if answer is None:
                continue
            message, fds = answer
            bind = message.get("bind")
            if (
                message.get("t") != "dashboard"
                or not isinstance(bind, str)
                or peer_credentials(sock)[1] not in (0, os.geteuid())
            ):
                for fd in fds:
                    os.close(fd)
                continue
            with contextlib.suppress(OSError):
                wire.send(sock, {"t": "taken"})
            return bind, [socket.socket(fileno=fd) for fd in fds]
    return None
