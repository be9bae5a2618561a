"""The listener of a dashboard whose keeper and supervisor are both dead, taken over from its process."""

from __future__ import annotations

import os
import socket

from poolctl.keeper import rendezvous, wire
from poolctl.platform import peer_credentials

_ANSWER_SECONDS = 2.0


def inherit(directory: str) -> tuple[str, list[socket.socket]] | None:
    """Its address and its sockets, when there is such a process, which ends then. Blocks for at most two seconds."""
    for name in rendezvous.find(directory, rendezvous.DASHBOARD):
        sock = rendezvous.connect(name, _ANSWER_SECONDS)
        if sock is None:
            continue
        with sock:
            received = rendezvous.receive(sock)
            if received is None:
                continue
            message, fds = received
            if message.get("t") != "dashboard" or peer_credentials(sock)[1] not in (0, os.geteuid()):
                for fd in fds:
                    os.close(fd)
                continue
            wire.send(sock, {"t": "taken"})
            return str(message["bind"]), [socket.socket(fileno=fd) for fd in fds]
    return None
