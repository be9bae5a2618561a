"""A supervisor that is held up (SIGSTOP, a busy machine) acts on what it knew before: no request is lost by that."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.configuration import server
from tests.processes import freeze
from tests.real_pool import RealPool

# Answers with its pid. Its startup leaves time to hold up the supervisor before it reports that it is ready.
APP = """
import asyncio, os, pathlib
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.startup":
                pathlib.Path("started").write_text(str(os.getpid()))
                while not os.path.exists("may_start"):
                    await asyncio.sleep(0.01)
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"%8d" % os.getpid()})
"""
MAX_REQUESTS = 10
# If each ten of them were reported, these would be more reports than a supervisor accepts from a worker at once.
MANY_REQUESTS = 1200


class Client:
    """A client that keeps its connection, and never asks again: what fails is seen."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def pid(self) -> int:
        """The process that answers."""
        self._connection.request("GET", "/")
        return int(self._connection.getresponse().read())

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def held_up(pool: RealPool) -> Iterator[None]:
    supervisor = pool.info()["supervisor_pid"]
    freeze(supervisor)
    try:
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)


@pytest.mark.capability
def test_worker_that_is_not_known_to_be_ready_loses_no_request_when_it_is_replaced(
    pool: RealPool, free_port: Any, until: Any
) -> None:
    port = free_port()
    started, may_start = pool.directory / "started", pool.write("may_start", "")
    pool.write("app.py", APP)
    http_keys = {"max_requests": MAX_REQUESTS}
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", app="app:app", http=http_keys))
    pool.ok("start")
    old = int(started.read_text())
    may_start.unlink()
    pool.ok("restart", "--no-wait")
    new = int(until(lambda: (text := started.read_text()) != str(old) and text))
    with contextlib.ExitStack() as stack:

        def connect_to_new() -> Client | None:
            client = stack.enter_context(contextlib.closing(Client(port)))
            return client if client.pid() == new else None

        with held_up(pool):
            may_start.touch()
            client = until(connect_to_new)
            for _ in range(MANY_REQUESTS):
                client.pid()
        until(lambda: client.pid() not in (old, new))
