"""Waits until servers answer, with the same client for poolctl and its alternatives."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator

REQUEST = b"GET %b HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PAUSE_SECONDS = 0.005
AT_ONCE = 8
FIRST_PORT, LAST_PORT = 21_000, 32_000


def answers(port: int, path: str = "/", status: int = 200) -> bool:
    """Whether a request is answered with this status."""
    connection = _ask(port, path)
    return connection is not None and _is_answered(connection, status)


def wait_for_all(ports: Iterable[int], timeout_seconds: float = 120.0) -> None:
    """Return when every port has answered once, asked in order. Raises TimeoutError.

    A few ports are asked in parallel: one after another, the last figure would include the client's own wait for
    all others. At most one of them does not listen yet: polling a hundred such ports would take a core from the
    starting servers.
    """
    deadline = time.monotonic() + timeout_seconds
    waiting, asked = deque(ports), dict[socket.socket, int]()
    while waiting or asked:
        while waiting and len(asked) < AT_ONCE and (connection := _ask(waiting[0])) is not None:
            asked[connection] = waiting.popleft()
        if time.monotonic() > deadline:
            raise TimeoutError(f"{[*asked.values(), *waiting]} did not answer within {timeout_seconds:g} s")
        if not asked:
            time.sleep(PAUSE_SECONDS)
            continue
        refused = waiting and len(asked) < AT_ONCE
        for connection in select.select(asked, [], [], PAUSE_SECONDS if refused else 1.0)[0]:
            port = asked.pop(connection)
            if not _is_answered(connection):
                time.sleep(PAUSE_SECONDS)
                waiting.appendleft(port)


def _ask(port: int, path: str = "/") -> socket.socket | None:
    try:
        connection = socket.create_connection(("127.0.0.1", port), timeout=5)
        connection.sendall(REQUEST % path.encode())
    except OSError:
        return None
    return connection


def _is_answered(connection: socket.socket, status: int = 200) -> bool:
    with connection, contextlib.suppress(OSError):
        return connection.recv(64).startswith(b"HTTP/1.1 %d" % status)
    return False


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens, below the kernel's range for outgoing connections."""
    return [port for port, _ in zip(_free(), range(count), strict=False)]


def _free() -> Iterator[int]:
    # A random start, so that two concurrent measurements choose different ports.
    first = random.randrange(FIRST_PORT, LAST_PORT)
    for port in (*range(first, LAST_PORT), *range(FIRST_PORT, first)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
    raise RuntimeError("not enough free ports")
