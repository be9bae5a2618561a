"""Restarts while clients never pause: every request that was sent gets its whole answer."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.certificates import certificate
from tests.deadline import wait_until
from tests.http_get import get
from tests.load import Load, Report, apps
from tests.ports import claim_port
from tests.real_pool import HELLO_APP, RealPool

pytestmark = pytest.mark.slow

RESTARTS = 2
MODES = {
    "keep_alive": 4, "new_connection": 1, "pipelined": 1, "bodies": 1, "stream": 3, "websocket": 2, "sse": 2,
}  # fmt: skip
DRAIN_SECONDS = 5.0


class Kind(NamedTuple):
    """How the server is served, and where."""

    loop: str
    parser: str
    workers: int = 1
    tls: bool = False
    unix: bool = False
    overlap: bool = True

    @property
    def modes(self) -> list[str]:
        # What was pipelined over TLS may be lost.
        return [mode for mode in MODES if not (self.tls and mode == "pipelined")]


KINDS = [
    Kind("uvloop", "httptools", workers=3),
    Kind("asyncio", "h11"),
    Kind("uvloop", "h11", unix=True),
    Kind("asyncio", "httptools", workers=3, tls=True),
    Kind("uvloop", "httptools", overlap=False),
]


def write(pool: RealPool, kind: Kind) -> str:
    """Where the server of this kind, which the pool consists of now, is reached."""
    where = f"unix:{pool.directory}/s" if kind.unix else f"127.0.0.1:{claim_port()}"
    pool.write("loaded.py", Path(apps.__file__).read_text())
    tls = ""
    if kind.tls:
        cert, key = certificate(pool.directory)
        tls = f'tls = {{ cert = "{cert}", key = "{key}" }}'
    pool.write(
        "pool.toml",
        f"""
        [[server]]
        name = "web"
        bind = "{where}"
        app = "loaded:app"
        workers = {kind.workers}
        overlap = {str(kind.overlap).lower()}
        http = {{ loop = "{kind.loop}", implementation = "{kind.parser}" }}
        drain_timeout = {DRAIN_SECONDS}
        {tls}
        """,
    )
    return where


class Loads:
    """Every mode at once."""

    def __init__(self, where: str, kind: Kind, stack: contextlib.ExitStack) -> None:
        options = {"tls": kind.tls, "chunks": 8, "chunk_pause": 0.05}
        self._loads = {
            mode: stack.enter_context(
                # Without a pause at least one: a connection that is idle may be closed, and nobody misses it.
                Load(
                    [where], mode, connections=number, pause=0.0 if mode == "keep_alive" else 0.002, **options
                )
            )
            for mode, number in MODES.items()
            if mode in kind.modes
        }

    @property
    def answers(self) -> int:
        reports = [load.look() for load in self._loads.values()]
        return sum(report.complete + report.messages for report in reports)

    def go_on(self) -> None:
        """Return when there have been some more answers."""
        before = self.answers
        wait_until(lambda: self.answers > before + 100)

    def stop(self) -> dict[str, Report]:
        return {mode: load.stop() for mode, load in self._loads.items()}


@pytest.mark.parametrize(
    "kind",
    [KINDS[0], *(pytest.param(each, marks=pytest.mark.heavy) for each in KINDS[1:])],
    ids=lambda kind: "-".join(map(str, kind)),
)
def test_a_restart_under_load_loses_no_request(pool: RealPool, kind: Kind) -> None:
    where = write(pool, kind)
    pool.ok("start")
    with contextlib.ExitStack() as stack:
        loads = Loads(where, kind, stack)
        for _ in range(RESTARTS):
            loads.go_on()
            pool.ok("restart")
        loads.go_on()
        reports = loads.stop()
    for mode, report in reports.items():
        assert report.failed == 0, f"{mode}: {report!r}"
        assert report.sent == report.complete > 0


def test_requests_after_a_restart_are_answered_by_the_new_processes(pool: RealPool) -> None:
    (port,) = pool.write_hello("web", extra="workers = 3").values()
    pid = HELLO_APP.replace('str(scope["server"][1])', "str(os.getpid())").replace("hello from ", "")
    pool.write("hello.py", f"import os\n{pid}")
    pool.ok("start")
    for _ in range(4):
        before = set(pool.items()["web"]["pids"])
        pool.ok("restart")
        assert {int(get(port).body) for _ in range(20)}.isdisjoint(before)
