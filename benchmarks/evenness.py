"""The distribution of long-lived connections over the workers of one server."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from tests.certificates import certificate
from tests.load.frames import TEXT, frame, new_key

from .project import Project
from .report import Row
from .serving import APP

ROUNDS = 24
CONNECTIONS = 16
WORKERS = 4
_SETTLED_SECONDS = 0.4
_HANDED_OVER_SECONDS = 2.0
_MAX = 1.5 * CONNECTIONS / WORKERS
_REQUEST = b"GET / HTTP/1.1\r\nhost: benchmark\r\n\r\n"
_UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: benchmark\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: %b\r\n\r\n"
)


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    for loop in "asyncio", "uvloop":
        for scheme in "http", "https":
            with Project(1, app=APP, defaults=f'workers = {WORKERS}\nhttp.loop = "{loop}"') as project:
                if scheme == "https":
                    _use_tls(project)
                project.run("start")
                (item,) = json.loads(project.run("list", "-o", "json"))["items"]
                kinds = {"kept connections": (_kept, _kept), "WebSockets": (_websocket, _message)}
                for what, (begin, again) in kinds.items():
                    for among in False, True:
                        with _short_connections(project.ports[0], scheme) if among else nullcontext():
                            found = [
                                _round(project.ports[0], scheme, item["pids"], begin, again)
                                for _ in range(rounds)
                            ]
                        of_all = f"of {CONNECTIONS} {what} on {WORKERS} workers ({loop}, {scheme}"
                        of_all += ", among short ones)" if among else ")"
                        yield Row(f"{of_all}, on the busiest", "", [max(each) for each in found], most=_MAX)
                        yield Row(
                            f"workers without any {of_all}", "", [each.count(0) for each in found], most=0
                        )


def _use_tls(project: Project) -> None:
    certificate(project.directory)
    path = project.directory / "pool.toml"
    path.write_text(path.read_text() + 'tls = { cert = "localhost.pem", key = "localhost.key" }\n')


def _connect(port: int, scheme: str) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), 10)
    if scheme == "http":
        return sock
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock)


@contextmanager
def _short_connections(port: int, scheme: str) -> Iterator[None]:
    """Run clients that connect, send one request, and close."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            with _connect(port, scheme) as sock:
                _kept(sock)

    clients = [threading.Thread(target=ask) for _ in range(4)]
    for each in clients:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in clients:
            each.join()


def _round(
    port: int,
    scheme: str,
    pids: list[int],
    begin: Callable[[socket.socket], None],
    again: Callable[[socket.socket], None],
) -> list[int]:
    """The connections of each worker, shortly after all were opened; then each must answer `again`."""
    socks = []
    for _ in range(CONNECTIONS):
        socks.append(_connect(port, scheme))
        begin(socks[-1])
    time.sleep(_SETTLED_SECONDS)
    counts = _counts(port, {sock.getsockname()[1] for sock in socks}, pids)
    for sock in socks:
        again(sock)
        sock.close()
    time.sleep(_SETTLED_SECONDS)
    return counts


def _counts(port: int, clients: set[int], pids: list[int]) -> list[int]:
    """The number of connections of each worker. During a handover no worker may have a connection."""
    deadline = time.monotonic() + _HANDED_OVER_SECONDS
    while True:
        sockets = _sockets(port, clients)
        counts = [len(sockets & _descriptors(pid)) for pid in pids]
        if sum(counts) == CONNECTIONS:
            return counts
        if time.monotonic() > deadline:
            raise RuntimeError(f"{sum(counts)} of {CONNECTIONS} connections were found")
        time.sleep(0.01)


def _kept(sock: socket.socket) -> None:
    sock.sendall(_REQUEST)
    _read_until(sock, b"hello\n")


def _websocket(sock: socket.socket) -> None:
    sock.sendall(_UPGRADE % new_key())
    _read_until(sock, b"\r\n\r\n")


def _message(sock: socket.socket) -> None:
    sock.sendall(frame(TEXT, b"hello"))
    _read_until(sock, b"hello\n")


def _read_until(sock: socket.socket, end: bytes) -> None:
    seen = b""
    while not seen.endswith(end):
        received = sock.recv(65536)
        if not received:
            raise RuntimeError("a connection was closed")
        seen += received


def _sockets(port: int, clients: set[int]) -> set[str]:
    """The server's ends of the connections from these client ports, as shown by links of descriptors."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    found = set()
    for each in map(str.split, lines):
        mine, theirs = (int(each[at].rpartition(":")[2], 16) for at in (1, 2))
        if mine == port and theirs in clients and each[3] == "01":
            found.add(f"socket:[{each[9]}]")
    return found


def _descriptors(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.add(os.readlink(path))
    return found
