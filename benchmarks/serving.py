"""The cost of a request in a worker compared to stock uvicorn with the same application, loop and parser.

A worker is one thread, so the processor time per request limits its throughput. The kernel accounts for it, but on a
busy machine a process that loses its caches to others takes longer. So the ratio is of pairs, measured one right after
the other, and a second stock uvicorn is measured as a third side: its ratio shows how far a figure can be trusted. Each
side leads a session, because the kernel shares out processors among sessions (sched(7), autogroups).
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
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.load.frames import TEXT, frame, new_key

from . import answers, processes
from .project import Project
from .report import Row

ROUNDS = 60
ROUND_SECONDS = 0.1
CONNECTIONS = 16
DEPTH = 8
_WORKERS = 2
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
    """The worker `pid`, or several, and clients that send requests as fast as they are answered."""

    def __init__(self, port: int, pid: int, *more: int) -> None:
        self.port = port
        self.pid = pid
        self._pids = pid, *more
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
        """The workers' processor time per request."""
        spent, requests, ends = self.processor_ns(), 0, time.perf_counter() + seconds
        while time.perf_counter() < ends:
            requests += ask(self)
        return (self.processor_ns() - spent) / 1000 / requests

    def close(self) -> None:
        for sock in self._kept:
            sock.close()
        self._kept = []

    def processor_ns(self) -> int:
        """The processor time of all threads of the processes so far."""
        threads = (each for pid in self._pids for each in Path(f"/proc/{pid}/task").glob("*/schedstat"))
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


# With the target for each.
_MODES: dict[str, tuple[Callable[[Side], int], float]] = {
    "keep-alive": (keep_alive, 0.97),
    "keep-alive, other fields": (another_field, 0.97),
    "pipelined": (_pipelined, 0.97),
    "new connection": (new_connection, 1.0),
    "WebSocket": (_websocket, 1.03),
}
_MODES_OF_SEVERAL = {name: (_MODES[name][0], 1.0) for name in ("keep-alive", "new connection")}


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    for engine in _ENGINES:
        for workers, modes in ((1, _MODES), (_WORKERS, _MODES_OF_SEVERAL)):
            with _sides(engine, workers) as sides:
                of = engine if workers == 1 else f"{engine}, {workers} workers"
                for mode, (ask, most_ratio) in modes.items():
                    worker, stock, control = _measured(sides, ask, rounds)
                    yield Row(
                        f"processor time, {mode} ({of})", "µs", worker, "stock uvicorn", stock, paired=True,
                        most_ratio=most_ratio,
                    )  # fmt: skip
                    yield Row(
                        f"of another stock uvicorn, {mode} ({of})", "µs", control, "stock uvicorn", stock,
                        paired=True,
                    )  # fmt: skip


@contextmanager
def _sides(engine: str, workers: int) -> Iterator[list[Side]]:
    """The worker or workers of a server, stock uvicorn, and another stock uvicorn."""
    loop, parser = _ENGINES[engine]
    http = f'http = {{ implementation = "{parser}", loop = "{loop}", websocket = "websockets-sansio" }}'
    with Project(1, app=APP, defaults=f"workers = {workers}\n{http}") as project, ExitStack() as stack:
        project.run("start")
        (item,) = json.loads(project.run("list", "-o", "json"))["items"]
        sides = [Side(project.ports[0], *item["pids"])]
        for port in answers.free_ports(2):
            pids = stack.enter_context(_stock(project.directory, port, loop, parser, workers))
            sides.append(Side(port, *pids))
        yield sides


def _measured(sides: list[Side], ask: Callable[[Side], int], rounds: int) -> tuple[list[float], ...]:
    """The microseconds of each side in each round."""
    found: tuple[list[float], ...] = tuple([] for _ in sides)
    for side in sides:
        side.request_microseconds(ask, min(rounds, 5) * ROUND_SECONDS)  # the first requests are slower
    for turn in range(rounds):
        # Each side is the first, the second and the third equally often.
        for number in range(turn, turn + len(sides)):
            number %= len(sides)
            found[number].append(sides[number].request_microseconds(ask, ROUND_SECONDS))
    for side in sides:
        side.close()
    return found


@contextmanager
def _stock(directory: Path, port: int, loop: str, parser: str, workers: int) -> Iterator[list[int]]:
    """Runs uvicorn; the pids of its workers."""
    arguments = ["--loop", loop, "--http", parser, "--ws", "websockets-sansio", "--log-level", "warning"]
    arguments += ["--workers", str(workers)] if workers > 1 else []
    arguments.append("--no-proxy-headers")  # as in the default configuration of the pool's server
    argv = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--no-access-log", *arguments]
    with open(directory / "uvicorn.log", "ab") as log:
        stock = subprocess.Popen(
            argv, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ,
            start_new_session=True,
        )  # fmt: skip
    pids = [stock.pid]
    try:
        answers.wait_for_all([port])
        if workers > 1:
            pids = processes.children(stock.pid)
        yield pids
    finally:
        processes.end([stock.pid, *pids])
        stock.wait()
