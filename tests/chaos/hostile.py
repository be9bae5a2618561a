"""An application that attacks the pool through their shared sockets: `/flood`, `/forge`, …"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Callable

from tests.load import apps

CONTROL, LISTENER, GIVE, TAKE = range(17, 21)


async def app(scope: apps.Scope, receive: apps.Receive, send: apps.Send) -> None:
    if scope["type"] == "http" and (attack := ATTACKS.get(scope["path"].strip("/"))):
        with contextlib.suppress(OSError):
            attack()
    await apps.app(scope, receive, send)


def flood() -> None:
    """More messages than are read, each with descriptors."""
    _send(CONTROL, b'{"id": []}', times=80, descriptors=[1] * 250)
    _send(CONTROL, b'{"event": "tls", "error": "%s"}' % (b"x" * 9000), times=20_000)


def forge() -> None:
    """Messages reserved for other senders, and invalid messages."""
    for message in (
        b'{"event": "left"}', b'{"event": "idle"}', b'{"event": "exit", "pid": 1}', b'{"id": 1, "pid": -1}',
        b'{"event": "expired"}', b'{"event": ["ready"]}', b"[]", b"\xff", b"{" * 5000,
    ):  # fmt: skip
        _send(CONTROL, message)


def block() -> None:
    """Clear the non-blocking flag of shared sockets, which blocks the pool if it relies on it."""
    for fd in (CONTROL, LISTENER, GIVE, TAKE):
        os.set_blocking(fd, True)


def stuff() -> None:
    """Put descriptors that are not connections among those waiting for the next worker."""
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        _send(GIVE, b'{"t": "conn"}', times=60, descriptors=[null])
        _send(GIVE, b"junk", times=60, descriptors=[null] * 100)
    finally:
        os.close(null)


def count() -> None:
    """Write impossible values into the page of counts."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            if "poolctl-tally" in os.readlink(f"/proc/self/fd/{fd}"):
                os.pwrite(fd, struct.pack("31Q", *[1 << 63] * 31), 8)


ATTACKS: dict[str, Callable[[], None]] = {each.__name__: each for each in (flood, forge, block, stuff, count)}


def _send(fd: int, message: bytes, *, times: int = 1, descriptors: list[int] | None = None) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    with socket.socket(fileno=os.dup(fd)) as sock:
        for _ in range(times):
            sock.sendmsg([message], rights, socket.MSG_DONTWAIT if fd == GIVE else 0)
