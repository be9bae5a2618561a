"""Applications that attack the pool by way of the sockets that they share with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.http_get import get
from tests.other_user import python_for_others
from tests.processes import descriptors, is_alive
from tests.real_pool import RealPool

Until = Callable[..., Any]

# A process of the application which the pool does not know: it has the listener, and the adoption pair behind it. It is
# forked by the C library, so that the worker's own hooks close nothing in it.
HOSTILE = """
import array, contextlib, ctypes, os, select, socket, threading
LISTENER, GIVE, TAKE = range(18, 21)

async def app(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/attack" and not os.path.exists("/proc/self/cwd/escaped/pid"):
        escape()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getuid()).encode()})

def escape():
    fork = ctypes.PyDLL(None).fork
    if fork() == 0:
        if fork():
            os._exit(0)
        os.setsid()
        with open("escaped/writing", "w") as file:
            file.write(str(os.getpid()))
        os.rename("escaped/writing", "escaped/pid")
        attack(LISTENER, GIVE, TAKE)

def block(*fds):
    while True:
        for fd in fds:
            os.set_blocking(fd, True)

def steal(listener):
    sock = socket.socket(fileno=listener)
    while True:
        if select.select([sock], [], [], 10)[0]:
            sock.accept()

def stuff(give):
    sock = socket.socket(fileno=give)
    null = os.open("/dev/null", os.O_RDONLY)
    while True:
        for rights in ([null], [null] * 100, [give], []):
            with contextlib.suppress(OSError):
                sock.sendmsg([b'{"t":"conn"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", rights))])
"""
ATTACKS = {
    "blocks": "def attack(listener, give, take): block(listener, give, take)",
    "steals": """
def attack(listener, give, take):
    threading.Thread(target=steal, args=(os.dup(listener),)).start()
    block(listener)
""",
    "stuffs": "def attack(listener, give, take): stuff(give)",
}


@pytest.fixture
def hostile(pool: RealPool) -> Iterator[RealPool]:
    """A pool in which `bad`, which sleeps soon, runs as nobody, and `good` as root."""
    python_for_others()
    pool.open_to_all()
    ports = pool.write_hello("good", "bad")
    pool.write("hostile.py", HOSTILE)
    (pool.directory / "escaped").mkdir(mode=0o777)
    (pool.directory / "escaped").chmod(0o777)
    # Not uvloop: the worker's own would not survive the fork.
    bad = 'app = "hostile:app"\nuser = "nobody"\nscale = { min = 0, idle = 0.2 }\nhttp.loop = "asyncio"\n'
    bad += 'drain_timeout = "0.5s"\nstop_timeout = "0.5s"\n'
    head, _, _ = (pool.directory / "pool.toml").read_text().rpartition("app = ")
    pool.write("pool.toml", head + bad)
    assert ports
    yield pool
    with contextlib.suppress(ProcessLookupError):  # the keeper kills what is left of its children
        if pid := escaped(pool):
            os.kill(pid, signal.SIGKILL)


def escaped(pool: RealPool) -> int:
    """The pid of the process that attacks; 0 if there is none."""
    try:
        return int((pool.directory / "escaped" / "pid").read_text())
    except FileNotFoundError:
        return 0


def begin(pool: RealPool, attack: str, until: Until) -> None:
    """Have the attack go on while the attacked server sleeps."""
    pool.write("hostile.py", HOSTILE + ATTACKS[attack])
    pool.ok("start")
    assert get(pool.ports["bad"], "/attack").status == 200
    until(lambda: escaped(pool))
    # It may be woken again by what the attack does; what counts is that it is asleep while it goes on.
    until(lambda: pool.items()["bad"]["state"] == "sleeping")
    assert is_alive(escaped(pool))


@pytest.mark.heavy_variants
@pytest.mark.parametrize("attack", list(ATTACKS))
def test_application_that_shares_its_sockets_with_the_pool_holds_up_nothing(
    hostile: RealPool, until: Until, attack: str
) -> None:
    begin(hostile, attack, until)
    supervisor = hostile.info()["supervisor_pid"]
    held = len(descriptors(supervisor))
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", hostile.ports["bad"]), timeout=60) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert get(hostile.ports["good"]).status == 200
    began = time.monotonic()
    hostile.items()
    assert len(descriptors(supervisor)) < held + 40
    hostile.ok("restart", "bad")
    hostile.ok("stop", "bad")
    hostile.ok("stop")
    assert time.monotonic() - began < 90
    log = "".join(
        each.read_text() for each in hostile.runtime.glob("*/supervisor.log")
    )  # an empty one is removed
    assert not any(word in log for word in ("does not answer", "Traceback", "Exception")), log
    assert not is_alive(supervisor)


def test_sleeping_server_whose_listener_blocks_is_woken_by_a_request(hostile: RealPool, until: Until) -> None:
    begin(hostile, "blocks", until)
    assert get(hostile.ports["bad"]).status == 200


@pytest.mark.heavy_variants
@pytest.mark.parametrize("attack", ["blocks", "stuffs"])
def test_keeper_ends_when_ordered_in_spite_of_an_attack(hostile: RealPool, until: Until, attack: str) -> None:
    begin(hostile, attack, until)
    keeper = hostile.info()["keeper_pid"]
    os.kill(keeper, signal.SIGTERM)
    until(lambda: not is_alive(keeper))
