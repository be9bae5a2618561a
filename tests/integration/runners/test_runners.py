"""What every runner does alike, seen through a Pool on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poolctl import Pool, PoolRestartError, PoolStartError, Server, ServerConfig, State
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.inline_runner import InlineRunner
from poolctl.runners.runner_protocol import Runner
from tests.deadline import wait_until
from tests.http_get import get, refused
from tests.ports import claim_port
from tests.processes import is_alive

TESTS = Path(__file__).parents[2]
APPS = "tests.asgi_apps"


@pytest.fixture
def pool(python_pool: Pool) -> Pool:
    return python_pool


def config(name: str, app: str = "hello", *, bind: str = "", **keys: Any) -> ServerConfig:
    """A server on a port of its own."""
    bind = bind or f"127.0.0.1:{claim_port()}"
    return ServerConfig(name=name, bind=bind, app=f"{APPS}:{app}", app_dir=str(TESTS.parent), **keys)


def hold_open(server: Server) -> socket.socket:
    """A keep-alive connection that has had one answer."""
    sock = socket.create_connection(("127.0.0.1", server.config.address.port), timeout=60)
    assert ask(sock).endswith(b"hello")
    return sock


def ask(sock: socket.socket, path: str = "/") -> bytes:
    sock.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    data = b""
    while not data.endswith(b"hello"):
        more = sock.recv(4096)
        if not more:
            break
        data += more
    return data


def test_server_that_is_started_and_stopped_shows_its_state(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    assert (server.state, server.ready, server.pids, server.uptime) == (State.STOPPED, False, [], timedelta())

    pool.start_sync(timeout=60)

    assert get(server.bind).text == "hello"
    assert (server.state, server.ready, server.is_running) == (State.RUNNING, True, True)
    assert [str(pid) for pid in server.pids] == [get(server.bind, "/pid").text]
    assert server.uptime > timedelta()
    assert server.endpoints == [server.bind]
    assert repr(server) == f"<Server web {server.bind} running>"
    assert repr(pool) == "<Pool 1 server, 1 running>"

    before = server.uptime
    pool.start_sync()
    assert server.uptime > before, "it runs already"
    for _ in range(2):
        pool.stop_sync()
    assert refused(server.bind)
    assert (server.state, server.ready, server.pids, server.endpoints) == (State.STOPPED, False, [], [])
    for _ in range(2):
        server.start_sync()
        assert get(server.bind).text == "hello"
        server.stop_sync()
        assert refused(server.bind)


def test_a_request_under_way_is_finished_before_the_stop(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    with hold_open(server) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_until(lambda: _has_nothing_unread(server), what="the request to be read")
        pool.stop_sync()
        data = b""
        while more := sock.recv(4096):
            data += more
    assert data.endswith(b"slow hello")


def _has_nothing_unread(server: Server) -> bool:
    """Whether no byte waits in a receive queue of the server's port (proc_net_tcp(5))."""
    port = f":{server.config.address.port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return all(row[4].endswith(":00000000") for row in rows if row[1].endswith(port) and row[3] == "01")


def test_an_idle_connection_outlives_the_restart_until_it_is_quiet(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    with hold_open(server) as sock:
        server.restart_sync()
        assert ask(sock).endswith(b"hello"), "the request that was on its way is answered"
    pool.join_sync()


def test_without_overlap_a_failed_restart_starts_the_old_configuration_again(pool: Pool) -> None:
    server = pool.store_new(config("web", overlap=False))
    pool.start_sync()
    pool.merge(Pool([config("web", "refusing", bind=server.bind, overlap=False)]))
    with pytest.raises(PoolRestartError):
        server.restart_sync()
    assert (server.state, server.stale) == (State.RUNNING, True)
    assert get(server.bind).text == "hello"


def test_every_failure_of_a_start_is_reported_and_the_others_run(pool: Pool) -> None:
    good = pool.store_new(config("good"))
    bad = pool.store_new(config("bad", "refusing"))
    missing = pool.store_new(config("missing", "no_such_attribute"))
    taken = pool.store_new(config("taken"))
    somebody_else = socket.create_server(("127.0.0.1", taken.config.address.port or 0))
    with somebody_else, pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    errors = {error.name: error for error in caught.value.exceptions}
    assert errors.keys() == {"bad", "missing", "taken"}
    assert "exited with status 3 before it was ready" in errors["bad"].message
    assert "no_such_attribute" in errors["missing"].message
    assert f"pid {os.getpid()}" in errors["taken"].message
    assert {error.code for error in errors.values()} == {1323}
    assert {error.bind for error in errors.values()} == {bad.bind, missing.bind, taken.bind}
    assert get(good.bind).text == "hello"
    for server in (bad, missing, taken):
        assert (server.state, server.is_running) == (State.FAILED, False)
        assert refused(server.bind)
    assert bad.message == errors["bad"].message
    assert errors["taken"].hint


def test_a_server_that_does_not_end_is_ended_at_its_timeout(pool: Pool) -> None:
    server = pool.store_new(config("stubborn", "stubborn", stop_timeout=0.5))
    pool.start_sync()
    assert get(server.bind).text == "still here"
    pool.stop_sync()
    assert server.state is State.STOPPED
    assert refused(server.bind)


def test_an_async_pool_is_started_and_stopped_at_the_end(pool: Pool) -> None:
    server = pool.store_new(config("web"))

    async def use() -> str:
        async with pool as entered:
            assert entered is pool
            return (await asyncio.to_thread(get, server.bind)).text

    assert asyncio.run(use()) == "hello"
    assert refused(server.bind)


def test_an_async_pool_that_fails_to_start_leaves_nothing_running(pool: Pool) -> None:
    good = pool.store_new(config("good"))
    pool.store_new(config("bad", "refusing"))

    async def use() -> None:
        async with pool:
            raise AssertionError("it did not start")

    with pytest.raises(PoolStartError):
        asyncio.run(use())
    assert refused(good.bind)


def test_lifecycle_orders_from_many_threads_end_in_one_state(pool: Pool) -> None:
    servers = [pool.store_new(config(f"s{number}")) for number in range(3)]
    surprises: list[BaseException] = []

    def order(number: int) -> None:
        for turn in range(10):
            try:
                (pool.start_sync, pool.restart_sync, pool.stop_sync)[(number + turn) % 3]()
            except (PoolStartError, PoolRestartError) as error:
                surprises.extend(child for child in error.exceptions if "was stopped" not in str(child))
            except BaseException as error:
                surprises.append(error)

    threads = [threading.Thread(target=order, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert surprises == []
    pool.start_sync()
    assert [get(server.bind).text for server in servers] == ["hello"] * 3
    pool.stop_sync()
    pool.join_sync()
    assert all(refused(server.bind) for server in servers)


# Forks.


def holds(bind: str) -> bool:
    """Whether this process has a socket of that address."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with contextlib.suppress(OSError):  # not a socket
            sock = socket.socket(fileno=int(name))
            if sock.family == socket.AF_INET:
                found.add("{}:{}".format(*sock.getsockname()))
            sock.detach()
    return bind in found


@pytest.mark.parametrize("kind", [InlineRunner, ProcessRunner])
def test_a_forked_child_can_use_its_parents_runner_and_fork_again(
    kind: Callable[[], Runner],
    capfd: pytest.CaptureFixture[str],
    short_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_path))  # the child removes no logs
    runner = kind()
    pool = Pool([config("web")], runner=runner)
    bind, other = next(iter(pool)), config("other")
    pool.start_sync()
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child is not measured
        status = 1
        try:
            pool.store_new(other)
            pool[other.bind].start_sync(timeout=60)
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(holds(other.bind))
            _, ended = os.waitpid(grandchild, 0)
            assert get(other.bind).status == 200
            pool.stop_sync()
            status = os.waitstatus_to_exitcode(ended)
        finally:
            os._exit(status)
    try:
        assert os.waitpid(pid, 0)[1] == 0
        assert get(bind).status == 200
        pool.restart_sync()
        assert get(bind).status == 200
    finally:
        pool.stop_sync()
        loop_thread.run_sync(runner.aclose())
    assert "Exception" not in capfd.readouterr().err


def test_workers_end_with_their_program_although_a_child_that_it_forked_lives() -> None:
    bind = f"127.0.0.1:{claim_port()}"
    program = f"""
import os, signal
from poolctl import Pool, ServerConfig
from poolctl.runners.inline_runner import InlineRunner
from poolctl.runners.embedded_runner import ProcessRunner
web = ServerConfig(name="web", bind="{bind}", app="{APPS}:hello", app_dir="{TESTS.parent}")
pool = Pool([web], runner=ProcessRunner())
pool.start_sync()
child = os.fork()
if child:
    print(child, *pool["{bind}"].pids, flush=True)
signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        child, worker = map(int, running.stdout.readline().split())
        try:
            running.kill()
            wait_until(lambda: not is_alive(worker))
            assert is_alive(child)
        finally:
            os.kill(child, signal.SIGKILL)
