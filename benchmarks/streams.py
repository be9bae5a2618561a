"""Compares the gateway's streams with a plain HAProxy before an echo process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from . import answers, proxies
from .gateway import DIRECT, POOLCTL, on_one_processor
from .project import Project
from .report import Row
from .serving import Side

ROUNDS = 7
ROUND_SECONDS = 0.2
_CONNECTIONS = 8
_SMALL_BYTES = 100
_START_SECONDS = 10.0

_ECHO = """
import asyncio, sys

class Connection(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

async def main(port):
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()

asyncio.run(main(int(sys.argv[1])))
"""


class Way(Side):
    """A way to the echo process. The processor time is measured for the process in front of it."""

    def __init__(self, name: str, port: int, before: int) -> None:
        super().__init__(port, before)
        self.name = name


def _send_and_receive(socks: list[socket.socket], sent: bytes) -> int:
    for sock in socks:
        sock.sendall(sent)
    for sock in socks:
        missing = len(sent)
        while missing:
            received = len(sock.recv(1 << 18))
            if not received:
                raise RuntimeError("a connection was closed")
            missing -= received
    return len(socks)


def _kept(size: int) -> Callable[[Way], int]:
    sent = bytes(size)
    return lambda way: _send_and_receive(way.kept()[:_CONNECTIONS], sent)


def _new_connection(way: Way) -> int:
    socks = [way.connect() for _ in range(_CONNECTIONS)]
    _send_and_receive(socks, bytes(_SMALL_BYTES))
    for sock in socks:
        sock.close()
    return len(socks)


_MODES: dict[str, Callable[[Way], int]] = {
    "TCP, 100 bytes": _kept(_SMALL_BYTES),
    "TCP, 64 KB": _kept(1 << 16),
    "TCP, 1 MB": _kept(1 << 20),
    "TCP, new connection": _new_connection,
}


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    with ExitStack() as stack:
        project = stack.enter_context(Project(1))
        backend, port, peer_port = answers.free_ports(3)
        echo = stack.enter_context(_echo(backend))
        path = project.directory / "pool.toml"
        path.write_text(
            f'[gateway]\nbind = []\n[[stream]]\nalias = "tcp"\nbind = "127.0.0.1:{port}"\nto = "127.0.0.1:{backend}"\n'
            + path.read_text()
        )
        project.run("start")
        ways = [Way(DIRECT, backend, echo), Way(POOLCTL, port, project.process("gateway"))]
        if proxies.is_installed("HAProxy"):
            pid = stack.enter_context(
                proxies.stream_peer(project.directory, plain=peer_port, backend=backend)
            )
            ways.append(Way("HAProxy", peer_port, pid))
        stack.enter_context(on_one_processor([way.pid for way in ways]))
        for mode, ask in _MODES.items():
            yield from _measured(mode, ways, ask, rounds)


def _measured(mode: str, ways: list[Way], ask: Callable[[Way], int], rounds: int) -> Iterator[Row]:
    found: dict[str, list[tuple[float, float]]] = {way.name: [] for way in ways}
    for way in ways:
        _wait_for(way, ask)
    for number in range(rounds):
        first = number % len(ways)
        for way in ways[first:] + ways[:first]:
            spent, asked, started = way.processor_ns(), 0, time.perf_counter()
            while time.perf_counter() < started + ROUND_SECONDS:
                asked += ask(way)
            seconds = time.perf_counter() - started
            found[way.name].append((asked / seconds, (way.processor_ns() - spent) / 1000 / asked))
    for way in ways:
        way.close()
    direct = [rate for rate, _ in found.pop(DIRECT)]
    for name, turns in found.items():
        yield Row(f"{mode}, {name}", "1/s", [rate for rate, _ in turns], DIRECT, direct)
    peer = next((name for name in found if name != POOLCTL), "")
    spent_by = {name: [taken for _, taken in turns] for name, turns in found.items()}
    yield Row(f"processor time of the gateway, {mode}", "µs", spent_by[POOLCTL], peer, spent_by.get(peer, []))


def _wait_for(way: Way, ask: Callable[[Way], int]) -> None:
    """Retry until it answers, because the process was just started."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            ask(way)
            return
        except (OSError, RuntimeError):
            way.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


@contextmanager
def _echo(port: int) -> Iterator[int]:
    """Start a process that echoes everything it receives on the port; returns its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", _ECHO, str(port)], stdin=subprocess.DEVNULL, env=os.environ
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()
