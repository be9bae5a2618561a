"""The cost of counting requests: a worker that counts compared to one that does not, in short turns.

A worker is one thread, so the processor time per request limits its throughput. The kernel accounts for it, so
other load on the machine has little effect.
"""

from __future__ import annotations

import json
import socket
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from .project import Project
from .report import Row

ROUNDS = 120
ROUND_SECONDS = 0.1
CONNECTIONS = 16
_REQUEST = b"GET / HTTP/1.1\r\nhost: benchmark\r\n\r\n"
_END = b"hello\n"
_UNCOUNTED = 'name = "s1"\nenv = { POOLCTL_UNCOUNTED = "1" }\n'
_ENGINES = {
    "uvloop and httptools": "",
    "asyncio and h11": 'http = { implementation = "h11", loop = "asyncio" }\n',
}


class Side:
    """One worker, and connections that send requests as fast as it answers."""

    def __init__(self, port: int, pid: int) -> None:
        self._schedstat = Path(f"/proc/{pid}/schedstat")
        self._socks = [socket.create_connection(("127.0.0.1", port), 10) for _ in range(CONNECTIONS)]

    def request_microseconds(self, seconds: float) -> float:
        """The worker's processor time per request."""
        spent, requests, ends = self._processor_ns(), 0, time.perf_counter() + seconds
        while time.perf_counter() < ends:
            for sock in self._socks:
                sock.sendall(_REQUEST)
            for sock in self._socks:
                while not sock.recv(65536).endswith(_END):
                    continue
            requests += len(self._socks)
        return (self._processor_ns() - spent) / 1000 / requests

    def close(self) -> None:
        for sock in self._socks:
            sock.close()

    def _processor_ns(self) -> int:
        return int(self._schedstat.read_text().split()[0])


def run(options: Namespace) -> Iterator[Row]:
    rounds = 2 if options.quick else ROUNDS
    for what, defaults in _ENGINES.items():
        found: tuple[list[float], list[float]] = ([], [])
        with Project(2, defaults=defaults) as project:
            path = project.directory / "pool.toml"
            path.write_text(path.read_text().replace('name = "s1"\n', _UNCOUNTED))
            project.run("start")
            items = json.loads(project.run("list", "-o", "json"))["items"]
            sides = [Side(port, item["pids"][0]) for port, item in zip(project.ports, items, strict=True)]
            for side in sides:
                side.request_microseconds(5 * ROUND_SECONDS)  # the first requests are slower
            for turn in range(rounds):
                # The order alternates.
                for number in (0, 1) if turn % 2 else (1, 0):
                    found[number].append(sides[number].request_microseconds(ROUND_SECONDS))
            for side in sides:
                side.close()
        yield Row(
            f"processor time of a request, counted ({what})", "µs", found[0],
            "not counted", found[1], most_ratio=1.03,
        )  # fmt: skip
