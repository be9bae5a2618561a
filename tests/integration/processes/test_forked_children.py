"""A process that the application forks from its worker has nothing of the worker's: no signals, no descriptors."""

from __future__ import annotations

from typing import Any

import pytest

from tests.configuration import server
from tests.real_pool import RealPool

# `/pool` computes in a multiprocessing.Pool, which ends its processes with SIGTERM; `/daemon` forks twice, as daemons
# do, and says what its grandchild could still read from a file opened between the forks.
FORKING = """
import multiprocessing, os

def square(number):
    return number * number

def in_a_pool():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return str(sum(pool.map(square, range(10))))

def in_a_daemon():
    read, write = os.pipe()
    if os.fork() == 0:
        opened = [os.open(os.devnull, os.O_WRONLY) for _ in range(40)]
        if os.fork() == 0:
            left = sum(os.path.exists(f"/proc/self/fd/{fd}") for fd in opened)
            os.write(write, str(left).encode())
        os._exit(0)
    os.close(write)
    os.wait()
    with open(read) as file:
        return file.read()

async def app(scope, receive, send):
    assert scope["type"] == "http"
    text = {"/pool": in_a_pool, "/daemon": in_a_daemon, "/": lambda: str(os.getpid())}[scope["path"]]()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": text.encode()})
"""


@pytest.mark.heavy
def test_multiprocessing_in_a_handler_leaves_the_worker_and_its_loop_as_they_were(
    pool: RealPool, free_port: Any, http_get: Any
) -> None:
    ports = {loop: free_port() for loop in ("asyncio", "uvloop")}
    pool.write("forking.py", FORKING)
    text = [
        server(loop, bind=f"127.0.0.1:{port}", app="forking:app", http={"loop": loop})
        for loop, port in ports.items()
    ]
    pool.write("pool.toml", "\n".join(text))
    pool.ok("start")
    for loop, port in ports.items():
        worker = http_get(port).text
        for _ in range(24):
            assert http_get(port, "/pool").text == "285", loop
        assert http_get(port).text == worker, loop


def test_a_grandchild_keeps_its_own_descriptors_and_prints_no_traceback(
    pool: RealPool, free_port: Any, http_get: Any
) -> None:
    port = free_port()
    pool.write("forking.py", FORKING)
    pool.write("pool.toml", server("web", bind=f"127.0.0.1:{port}", app="forking:app"))
    pool.ok("start")
    assert http_get(port, "/daemon").text == "40"
    assert "Traceback" not in pool.ok("logs", "web").stdout
