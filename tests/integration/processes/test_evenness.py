"""Kept connections are shared by all workers of a server, also by one that comes later, and none is lost by that."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from http.client import HTTPConnection

from tests.deadline import wait_until
from tests.ports import claim_port
from tests.real_pool import RealPool

APP = """
import os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = b"%d" % os.getpid()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


def ask(connection: HTTPConnection) -> int:
    """The pid of the worker that answers."""
    connection.request("GET", "/")
    return int(connection.getresponse().read())


def test_kept_connections_are_even_and_survive_a_worker_that_is_killed(pool: RealPool) -> None:
    port = claim_port()
    pool.write("app.py", APP)
    pool.write(
        "pool.toml", f'[[server]]\nname = "web"\nbind = "127.0.0.1:{port}"\napp = "app:app"\nworkers = 4\n'
    )
    pool.ok("start")
    with contextlib.ExitStack() as stack:

        def connect(count: int) -> list[HTTPConnection]:
            made = [HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(count)]
            for each in made:
                each.auto_open = 0  # a lost connection is an error
                each.connect()
                stack.callback(each.close)
            return made

        def even(workers: int) -> bool:
            counts = Counter(map(ask, kept)).values()
            return len(counts) == workers and max(counts) - min(counts) <= 1  # then none moves any more

        kept = connect(16)
        wait_until(lambda: even(4))
        pool.ok("scale", "web", "5")
        wait_until(lambda: even(5))
        pids = dict(zip(kept, map(ask, kept), strict=True))
        victim = pids[kept[0]]
        os.kill(victim, signal.SIGSTOP)  # it takes nothing any more
        later = connect(8)
        assert victim not in map(ask, later)
        with contextlib.suppress(ProcessLookupError):  # its pool may have replaced it
            os.kill(victim, signal.SIGKILL)
        for each in [*later, *(each for each in kept if pids[each] != victim)]:
            assert ask(each) != victim
