"""Restarts and reloads under constant load: the numbers of requests sent, and without a complete answer.

Losses with pipelining over TLS are reported but allowed: the state of a TLS connection belongs to its process, so
requests sent ahead are lost with the connection.
"""

from __future__ import annotations

import contextlib
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.certificates import certificate
from tests.load import apps
from tests.load.load import Load
from tests.load.report import Report

from .project import Project
from .report import Row

RESTARTS = 8  # per kind of server; every other one by a reload of a changed file
REQUESTS = 1_000_000  # minimum, of all kinds together
DRAIN_SECONDS = 3.0
QUICK_DRAIN_SECONDS = 0.3
CONNECTIONS = {
    "keep_alive": 16, "new_connection": 4, "pipelined": 2, "bodies": 2, "stream": 16, "websocket": 8, "sse": 8,
}  # fmt: skip
PAUSES = {"keep_alive": 0.0, "pipelined": 0.0}
LOOK_SECONDS = 0.2
OTHER_PAUSE_SECONDS = 0.002
STREAM_SHARE, CHUNKS = 0.7, 20  # drain timeout, long enough for slow requests


class Kind(NamedTuple):
    """The protocol of a server."""

    loop: str
    implementation: str
    workers: int
    tls: bool = False

    def promises(self, mode: str) -> bool:
        return not (self.tls and mode == "pipelined")

    def configuration(self, directory: Path, drain_seconds: float) -> str:
        lines = [
            f"workers = {self.workers}\ndrain_timeout = {drain_seconds}",
            f'http = {{ loop = "{self.loop}", implementation = "{self.implementation}" }}',
        ]
        if self.tls:
            cert, key = certificate(directory)
            lines.append(f'tls = {{ cert = "{cert}", key = "{key}" }}')
        return "\n".join(lines)

    def __str__(self) -> str:
        tls = ", TLS" if self.tls else ""
        return f"{self.loop}, {self.implementation}, {self.workers} worker{'s' * (self.workers > 1)}{tls}"


KINDS = [
    *(
        Kind(loop, parser, workers)
        for loop in ("uvloop", "asyncio")
        for parser in ("httptools", "h11")
        for workers in (1, 3)
    ),
    Kind("uvloop", "httptools", 1, tls=True),
    Kind("asyncio", "h11", 1, tls=True),
]


def run(options: Namespace) -> Iterator[Row]:
    kinds, restarts, requests = (KINDS[:1], 2, 0) if options.quick else (KINDS, RESTARTS, REQUESTS)
    drain_seconds = QUICK_DRAIN_SECONDS if options.quick else DRAIN_SECONDS
    sent: dict[str, list[float]] = {}
    failed: dict[str, list[float]] = {}
    failures: list[str] = []
    for kind in kinds:
        for mode, report in _restarted(kind, restarts, requests // len(kinds), drain_seconds).items():
            name = mode if kind.promises(mode) else f"{mode} over TLS, not promised"
            sent.setdefault(name, []).append(report.sent)
            failed.setdefault(name, []).append(report.failed)
            failures += [f"{kind}, {name}: {text}" for text in report.failures]
    for name, counts in sent.items():
        what = f"{name}: requests failed of {sum(counts):.0f} over {len(counts) * restarts} restarts"
        yield Row(what, "", [sum(failed[name])], most=0 if name in CONNECTIONS else None)
    total = sum(sum(counts) for name, counts in sent.items() if name in CONNECTIONS)
    yield Row(f"requests sent over {restarts * len(kinds)} restarts", "", [total])
    for text in failures[:20]:
        print(f"    {text}", file=sys.stderr)


def _restarted(kind: Kind, restarts: int, requests: int, drain_seconds: float) -> dict[str, Report]:
    """The result of each mode, with all modes at once on one server that is restarted repeatedly."""
    app = Path(apps.__file__).read_text()
    with contextlib.ExitStack() as stack:
        project = stack.enter_context(Project(1, app=app))
        file = project.directory / "pool.toml"
        text = f"{file.read_text()}\n{kind.configuration(project.directory, drain_seconds)}\n"
        file.write_text(text)
        project.run("start")
        loads = {
            mode: stack.enter_context(_load(kind, mode, project.ports[0], drain_seconds))
            for mode in CONNECTIONS
        }
        for number in range(1, restarts + 1):
            _wait(loads, requests * number // (restarts + 1), drain_seconds)
            if number % 2:
                project.run("restart")
            else:
                file.write_text(f'{text}env = {{ TURN = "{number}" }}\n')
                project.run("reload")
        _wait(loads, requests, drain_seconds)
        return {mode: load.stop() for mode, load in loads.items()}


def _wait(loads: dict[str, Load], requests: int, seconds: float) -> None:
    """Wait at least this long, and until this many requests were answered."""
    time.sleep(seconds)
    while sum(load.look().complete for load in loads.values()) < requests:
        time.sleep(LOOK_SECONDS)


def _load(kind: Kind, mode: str, port: int, drain_seconds: float) -> Load:
    return Load(
        [port], mode, connections=CONNECTIONS[mode], tls=kind.tls,
        chunks=CHUNKS, chunk_pause=STREAM_SHARE * drain_seconds / CHUNKS,
        pause=PAUSES.get(mode, OTHER_PAUSE_SECONDS), patience=20.0,
    )  # fmt: skip
