"""The cost of a request in a worker compared to stock uvicorn with the same application, loop and parser.

A worker is one thread, so the processor time per request limits its throughput. The kernel accounts for it, so
other load on the machine has little effect.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.load.frames import TEXT, frame, new_key

from . import answers, processes
from .project import Project
from .report import Row

ROUNDS = 60
ROUND_SECONDS = 0.1
CONNECTIONS = 16
DEPTH = 8
_MOST_RATIO = 1.03
_REQUEST = b"GET / HTTP/1.1\r\nhost: benchmark\r\nuser-agent: benchmark\r\naccept: */*\r\n\r\n"
_UPGRADE = (
    b"GET / HTTP/1.1\r\nhost: benchmark\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: %b\r\n\r\n"
)
_END = b"hello\n"
_ENGINES = {"uvloop and httptools": ("uvloop", "httptools"), "asyncio and h11": ("asyncio", "h11")}

# The beginning of an application, up to its answer to a request.
APP_BEGINNING = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] != "websocket.disconnect":
            if message["type"] == "websocket.receive":
                await send({"type": "websocket.send", "text": "hello\\n"})
        return
"""

APP = (
    APP_BEGINNING
    + """\
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"hello\\n"})
"""
)


class Side:
    """One worker, and clients that send requests as fast as it answers."""

    def __init__(self, port: int, pid: int) -> None:
        self.port = port
        self.pid = pid
        self._kept: list[socket.socket] = []

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 10)

    def kept(self, first: bytes = b"") -> list[socket.socket]:
        """The same connections in every turn; each sends `first` once."""
        if not self._kept:
            self._kept = [self.connect() for _ in range(CONNECTIONS)]
            for sock in self._kept if first else ():
                sock.sendall(first)
                _read(sock, b"\r\n\r\n")
        return self._kept

    def request_microseconds(self, ask: Callable[[Side], int], seconds: float) -> float:
        """The worker's processor time per request."""
        spent, requests, ends = self.processor_ns(), 0, time.perf_counter() + seconds
        while time.perf_counter() < ends:
            requests += ask(self)
        return (self.processor_ns() - spent) / 1000 / requests

    def close(self) -> None:
        for sock in self._kept:
            sock.close()
        self._kept = []

    def processor_ns(self) -> int:
        """The processor time of all threads of the process so far."""
        threads = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(each.read_text().split()[0]) for each in threads)


def _read(sock: socket.socket, end: bytes, times: int = 1) -> None:
    seen = b""
    while not (seen.endswith(end) and (times == 1 or seen.count(end) >= times)):
        received = sock.recv(65536)
        if not received:
            raise RuntimeError("a connection was closed")
        seen += received


def _exchange(socks: list[socket.socket], sent: bytes, times: int = 1) -> int:
    for sock in socks:
        sock.sendall(sent)
    for sock in socks:
        _read(sock, _END, times)
    return len(socks) * times


def keep_alive(side: Side) -> int:
    return _exchange(side.kept(), _REQUEST)


def another_field(side: Side) -> int:
    """Requests on kept connections, each with different fields."""
    field = b"x-request-id: %x\r\n\r\n" % time.perf_counter_ns()
    return _exchange(side.kept(), _REQUEST.removesuffix(b"\r\n") + field)


def _pipelined(side: Side) -> int:
    return _exchange(side.kept(), _REQUEST * DEPTH, DEPTH)


def _websocket(side: Side) -> int:
    return _exchange(side.kept(_UPGRADE % new_key()), frame(TEXT, b"hello"))


def new_connection(side: Side) -> int:
    socks = [side.connect() for _ in range(CONNECTIONS)]
    asked = _exchange(socks, _REQUEST)
    for sock in socks:
        sock.close()
    return asked


_MODES: dict[str, Callable[[Side], int]] = {
    "keep-alive": keep_alive,
    "new connection": new_connection,
    "pipelined": _pipelined,
    "WebSocket": _websocket,
}


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    for what, (loop, parser) in _ENGINES.items():
        http = f'http = {{ implementation = "{parser}", loop = "{loop}", websocket = "websockets-sansio" }}'
        with Project(1, app=APP, defaults=http) as project:
            project.run("start")
            (item,) = json.loads(project.run("list", "-o", "json"))["items"]
            (port,) = answers.free_ports(1)
            stock = _stock(project.directory, port, loop, parser)
            try:
                sides = [Side(project.ports[0], item["pids"][0]), Side(port, stock.pid)]
                for mode, ask in _MODES.items():
                    yield _measured(f"processor time, {mode} ({what})", sides, ask, rounds)
            finally:
                processes.end([stock.pid])
                stock.wait()


def _measured(what: str, sides: list[Side], ask: Callable[[Side], int], rounds: int) -> Row:
    found: tuple[list[float], list[float]] = ([], [])
    for side in sides:
        side.request_microseconds(ask, min(rounds, 5) * ROUND_SECONDS)  # the first requests are slower
    for turn in range(rounds):
        # The order alternates.
        for number in (0, 1) if turn % 2 else (1, 0):
            found[number].append(sides[number].request_microseconds(ask, ROUND_SECONDS))
    for side in sides:
        side.close()
    return Row(what, "µs", found[0], "stock uvicorn", found[1], most_ratio=_MOST_RATIO)


def _stock(directory: Path, port: int, loop: str, parser: str) -> subprocess.Popen[bytes]:
    arguments = ["--loop", loop, "--http", parser, "--ws", "websockets-sansio", "--log-level", "warning"]
    arguments.append("--no-proxy-headers")  # as in the default configuration of the pool's server
    argv = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--no-access-log", *arguments]
    with open(directory / "uvicorn.log", "ab") as log:
        stock = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ
        )
    answers.wait_for_all([port])
    return stock
