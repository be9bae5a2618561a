"""How evenly long-lived connections are spread over the workers of one server."""

from __future__ import annotations

import json
import os
import socket
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.load.frames import new_key

from .project import Project
from .report import Row
from .serving import APP

ROUNDS = 24
CONNECTIONS = 16
WORKERS = 4
_SETTLED_SECONDS = 0.4
_MOST = 1.5 * CONNECTIONS / WORKERS
_REQUEST = b"GET / HTTP/1.1\r\nhost: benchmark\r\n\r\n"
_UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: benchmark\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: %b\r\n\r\n"
)


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    with Project(1, app=APP, defaults=f"workers = {WORKERS}") as project:
        project.run("start")
        (item,) = json.loads(project.run("list", "-o", "json"))["items"]
        for what, begin in {"kept connections": _kept, "WebSockets": _websocket}.items():
            found = [_round(project.ports[0], item["pids"], begin) for _ in range(rounds)]
            of_all = f"of {CONNECTIONS} {what} on {WORKERS} workers"
            yield Row(f"{of_all}, on the busiest", "", [max(each) for each in found], most=_MOST)
            yield Row(f"workers without any {of_all}", "", [each.count(0) for each in found], most=0)


def _round(port: int, pids: list[int], begin: Callable[[socket.socket], None]) -> list[int]:
    """The connections of each worker, a moment after all were opened."""
    socks = []
    for _ in range(CONNECTIONS):
        socks.append(socket.create_connection(("127.0.0.1", port), 10))
        begin(socks[-1])
    time.sleep(_SETTLED_SECONDS)
    sockets = _sockets(port)
    counts = [len(sockets & _descriptors(pid)) for pid in pids]
    if sum(counts) != CONNECTIONS:
        raise RuntimeError(f"{CONNECTIONS - sum(counts)} connections were lost")
    for sock in socks:
        sock.close()
    time.sleep(_SETTLED_SECONDS)
    return counts


def _kept(sock: socket.socket) -> None:
    sock.sendall(_REQUEST)
    _read_until(sock, b"hello\n")


def _websocket(sock: socket.socket) -> None:
    sock.sendall(_UPGRADE % new_key())
    _read_until(sock, b"\r\n\r\n")


def _read_until(sock: socket.socket, end: bytes) -> None:
    seen = b""
    while not seen.endswith(end):
        received = sock.recv(65536)
        if not received:
            raise RuntimeError("a connection was closed")
        seen += received


def _sockets(port: int) -> set[str]:
    """The server's ends of all connections to this port, as links of descriptors show them."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return {f"socket:[{each[9]}]" for each in fields if each[1].endswith(f":{port:04X}") and each[3] == "01"}


def _descriptors(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(path))
    return found
