"""Waiting until servers answer: the same client for poolctl and for what it is compared with."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Iterable, Iterator

REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
PAUSE_SECONDS = 0.005
FIRST_PORT, LAST_PORT = 21_000, 32_000


def answers(port: int) -> bool:
    """Whether a request is answered with 200."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(REQUEST)
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def wait_for_all(ports: Iterable[int], timeout_seconds: float = 120.0) -> None:
    """Return when every port has answered once; they are asked one after the other. Raises TimeoutError.

    One at a time: to ask a hundred that do not listen yet, again and again, took a core from those that were starting.
    """
    deadline = time.monotonic() + timeout_seconds
    for port in ports:
        while not answers(port):
            if time.monotonic() > deadline:
                raise TimeoutError(f"port {port} did not answer within {timeout_seconds:g} s")
            time.sleep(PAUSE_SECONDS)


def free_ports(count: int) -> list[int]:
    """That many ports on which nothing listens now, below the kernel's range for outgoing connections."""
    return [port for port, _ in zip(_free(), range(count), strict=False)]


def _free() -> Iterator[int]:
    # From somewhere on: two that measure at once must not choose the same ones.
    first = random.randrange(FIRST_PORT, LAST_PORT)
    for port in (*range(first, LAST_PORT), *range(FIRST_PORT, first)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port
    raise RuntimeError("not enough free ports")
