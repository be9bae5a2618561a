"""Long-lived connections are shared by all workers of a server, and none is lost by that."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPSConnection
from typing import Any

import pytest

from tests.certificates import certificate
from tests.configuration import server
from tests.deadline import wait_until
from tests.load.frames import new_key
from tests.ports import claim_port
from tests.processes import freeze
from tests.real_pool import RealPool

APP = """
import os

async def app(scope, receive, send):
    body = b"%d" % os.getpid()
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept", "headers": [(b"x-pid", body)]})
        while (await receive())["type"] != "websocket.disconnect":
            pass
        return
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""

WEBSOCKET = {
    "upgrade": "websocket",
    "connection": "upgrade",
    "sec-websocket-version": "13",
    "sec-websocket-key": new_key().decode(),
}


def start_serving(pool: RealPool, loop: str, workers: int, *, tls: bool = False) -> int:
    """The port of a server that tells which of its workers answers."""
    port = claim_port()
    pool.write("app.py", APP)
    keys: dict[str, Any] = {
        "bind": f"127.0.0.1:{port}",
        "app": "app:app",
        "workers": workers,
        "http": {"loop": loop},
    }
    if tls:
        keys["tls"] = {"cert": str(certificate(pool.directory)[0]), "key": "localhost.key"}
    pool.write("pool.toml", server("web", **keys))
    pool.ok("start")
    return port


def ask(connection: HTTPConnection) -> int:
    """The pid of the worker that answers."""
    connection.request("GET", "/")
    return int(connection.getresponse().read())


def test_kept_connections_are_even_and_survive_a_worker_that_is_killed(pool: RealPool) -> None:
    port = start_serving(pool, "auto", 4)
    with contextlib.ExitStack() as stack:

        def connect(count: int) -> list[HTTPConnection]:
            made = [HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(count)]
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
        freeze(victim)  # it takes nothing any more
        later = connect(8)
        assert victim not in map(ask, later)
        with contextlib.suppress(ProcessLookupError):  # its pool may have replaced it
            os.kill(victim, signal.SIGKILL)
        for each in [*later, *(each for each in kept if pids[each] != victim)]:
            assert ask(each) != victim


@pytest.fixture
def https() -> Iterator[list[HTTPSConnection]]:
    """Connections that the test has opened; closed at its end."""
    opened: list[HTTPSConnection] = []
    yield opened
    for each in opened:
        each.close()


def secured(port: int, opened: list[HTTPSConnection]) -> HTTPSConnection:
    made = HTTPSConnection("127.0.0.1", port, timeout=60, context=ssl._create_unverified_context())
    opened.append(made)
    made.connect()
    made.auto_open = 0  # a lost connection is an error
    return made


@pytest.mark.heavy
@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.heavy)])
def test_tls_connections_are_even_and_a_worker_that_is_killed_loses_none_but_its_own(
    pool: RealPool, https: list[HTTPSConnection], loop: str
) -> None:
    port = start_serving(pool, loop, 4, tls=True)
    kept = {each: ask(each) for each in (secured(port, https) for _ in range(16))}
    shared = Counter(kept.values())
    assert len(shared) == 4, shared
    assert max(shared.values()) <= 6, shared
    assert kept == {each: ask(each) for each in kept}  # none moves after its handshake
    victim = next(iter(kept.values()))
    freeze(victim)  # its count stays on the page, out of date, and it takes nothing
    with ThreadPoolExecutor(8) as clients:
        later = [clients.submit(lambda: ask(secured(port, https))) for _ in range(8)]
        assert victim not in [each.result() for each in later]
        later = [clients.submit(lambda: ask(secured(port, https))) for _ in range(8)]
        with contextlib.suppress(ProcessLookupError):  # its pool may have replaced it
            os.kill(victim, signal.SIGKILL)
        assert victim not in [each.result() for each in later]
    for each, pid in kept.items():
        assert pid == victim or ask(each) == pid


@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.heavy)])
def test_new_tls_connections_lose_nothing_while_workers_come_and_go(
    pool: RealPool, https: list[HTTPSConnection], loop: str
) -> None:
    port = start_serving(pool, loop, 2, tls=True)
    over = False

    def connect() -> list[HTTPSConnection]:
        """Connections of which each has its answer, the last ones still open."""
        made = []
        while not over:
            made.append(secured(port, []))
            ask(made[-1])
            if len(made) == 6:
                made.pop(0).close()
        return made

    with ThreadPoolExecutor(4) as clients:
        loads = [clients.submit(connect) for _ in range(4)]
        try:
            for order in (("scale", "web", "4"), ("restart",), ("scale", "web", "2")):
                pool.ok(*order)
        finally:
            over = True
        for load in loads:
            https.extend(load.result())


@pytest.mark.heavy
@pytest.mark.parametrize("loop", ["uvloop", pytest.param("asyncio", marks=pytest.mark.heavy)])
def test_websockets_among_short_connections_are_even(pool: RealPool, loop: str) -> None:
    port = start_serving(pool, loop, 4)
    answered = 0
    over = False

    def ask_shortly() -> None:
        nonlocal answered
        while not over:
            connection = HTTPConnection("127.0.0.1", port, timeout=60)
            ask(connection)
            connection.close()
            answered += 1
            pause.wait(0.01)  # an idle server: the kernel gives most connections to one worker

    pause = threading.Event()
    with ThreadPoolExecutor(1) as clients, contextlib.ExitStack() as stack:
        load = clients.submit(ask_shortly)
        shared: Counter[str] = Counter()
        try:
            for number in range(1, 17):
                wait_until(lambda after=8 * number: answered >= after or load.done())
                connection = HTTPConnection("127.0.0.1", port, timeout=60)
                stack.callback(connection.close)
                connection.request("GET", "/", headers=WEBSOCKET)
                response = connection.getresponse()
                assert response.status == 101
                shared[response.headers["x-pid"]] += 1
        finally:
            over = True
        load.result()
    assert len(shared) == 4, shared
    assert max(shared.values()) <= 6, shared
