"""Clients that are slow, silent or many: the servers of a pool serve the others, and fall asleep beside them."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.http_get import get
from tests.leaving_clients import connect
from tests.real_pool import RealPool

HEAD = 'http = {{ head_timeout = "1500ms", loop = "{loop}", implementation = "{parser}" }}'
ENGINES = [("asyncio", "h11"), ("uvloop", "httptools")]
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@contextlib.contextmanager
def dribbling(sock: socket.socket) -> Iterator[None]:
    """Sends a byte ten times a second, for as long as it can."""
    over = threading.Event()

    def send() -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.1):
                sock.send(b"a")

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def all_of(sock: socket.socket) -> bytes:
    """What is answered until the end, a reset included."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1000):
            received += data
    return received


@pytest.mark.parametrize(("loop", "parser"), [ENGINES[1], pytest.param(*ENGINES[0], marks=pytest.mark.heavy)])
def test_slow_and_silent_clients_are_sent_away_awake_asleep_and_across_a_restart(
    pool: RealPool, loop: str, parser: str
) -> None:
    http = HEAD.format(loop=loop, parser=parser)
    port = pool.write_hello(extra=f"{http}\nscale = {{ min = 0, idle = 0.2 }}")["web"]
    pool.ok("start")
    for asked in (False, True):
        # Asleep and then awake.
        if asked:
            assert get(port).status == 200
        with connect(port) as silent, connect(port, b"GET / HT") as half:
            assert all_of(silent) == b""
            assert all_of(half).startswith(b"HTTP/1.1 408 ")
    with connect(port, REQUEST) as slow:
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /")
        with dribbling(slow):
            assert b"HTTP/1.1 408 " in all_of(slow)
    assert get(port).status == 200
    with connect(port, REQUEST) as slow:
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /")
        with dribbling(slow):
            pool.ok("restart", "web")
            assert b"HTTP/1.1 408 " in all_of(slow)
    pool.ok("wait", "--for", "sleeping", "--timeout", "40s")


def test_server_falls_asleep_despite_a_client_that_sends_half_a_head(pool: RealPool) -> None:
    http = 'http = { head_timeout = "1s" }'
    port = pool.write_hello(extra=f"{http}\nscale = {{ min = 0, idle = 0.2 }}")["web"]
    pool.ok("start")
    assert get(port).status == 200
    with connect(port, b"GET / HTTP/1.1\r\nX: ") as slow, dribbling(slow):
        pool.ok("wait", "--for", "sleeping", "--timeout", "40s")
        assert all_of(slow).startswith(b"HTTP/1.1 408 ")


@pytest.mark.heavy_variants
@pytest.mark.parametrize(("loop", "parser"), ENGINES)
def test_more_clients_than_descriptors_wait_and_are_all_served_and_probes_have_room(
    pool: RealPool, loop: str, parser: str
) -> None:
    extra = f"""
    http = {{ loop = "{loop}", implementation = "{parser}" }}
    limits = {{ open_files = 64 }}
    health = {{ liveness = {{ http = "/", interval = "200ms", timeout = "20s", fall_count_ko = 1 }} }}
    """
    port = pool.write_hello(extra=extra)["web"]
    pool.ok("start")
    pids = pool.items()["web"]["pids"]
    clients = [connect(port, REQUEST) for _ in range(200)]
    left = set(clients)
    while left:
        ready, _, _ = select.select(left, [], [], 60)
        assert ready, f"{len(left)} clients wait for ever"
        if len(left) == len(clients):
            time.sleep(0.5)  # for a probe or two of a worker that is full
        for client in ready:
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            client.close()
            left.discard(client)
    item = pool.items()["web"]
    assert (item["pids"], item["health"]) == (pids, "ok")
    assert "out of system resource" not in pool.ok("logs", "web").stdout
