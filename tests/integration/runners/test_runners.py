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
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from poolctl import Field, Pool, PoolRestartError, PoolStartError, Server, ServerConfig, State
from poolctl.pool import loop_thread
from poolctl.runners.embedded_runner import ProcessRunner
from poolctl.runners.inline_runner import InlineRunner
from poolctl.runners.runner_protocol import Runner
from tests.deadline import wait_until
from tests.http_get import get
from tests.ports import claim_port
from tests.processes import is_alive

TESTS = Path(__file__).parents[2]
APPS = "tests.asgi_apps"

MakeRunner = Callable[[], Runner | None]


def in_this_process() -> Runner | None:
    return None


@pytest.fixture(params=[in_this_process, ProcessRunner])
def make_runner(request: pytest.FixtureRequest) -> MakeRunner:
    made: MakeRunner = request.param
    return made


@pytest.fixture
def pool(make_runner: MakeRunner) -> Iterator[Pool]:
    """An empty pool on the runner; stopped at the end."""
    runner = make_runner()
    made = Pool(runner=runner)
    yield made
    made.stop_sync(timeout=60)
    made.join_sync()
    if runner is not None:
        loop_thread.run_sync(runner.aclose())


def config(name: str, app: str = "hello", *, bind: str = "", **keys: Any) -> ServerConfig:
    """A server on a port of its own."""
    bind = bind or f"127.0.0.1:{claim_port()}"
    return ServerConfig(name=name, bind=bind, app=f"{APPS}:{app}", app_dir=str(TESTS.parent), **keys)


def refuses(server: Server) -> bool:
    address = server.config.address
    with socket.socket() as probe:
        return probe.connect_ex((address.host, address.port)) != 0


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


def test_started_server_has_answered_and_shows_its_state(pool: Pool) -> None:
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


def test_starting_twice_starts_once(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    first = server.uptime
    pool.start_sync()
    assert server.uptime > first


def test_a_stopped_server_refuses_connections(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    pool.stop_sync()
    assert refuses(server)
    assert (server.state, server.ready, server.pids, server.endpoints) == (State.STOPPED, False, [], [])
    pool.stop_sync()


def test_a_server_can_be_started_again(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    for _ in range(3):
        server.start_sync()
        assert get(server.bind).text == "hello"
        server.stop_sync()
        assert refuses(server)


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


def test_a_restart_refuses_no_connection_and_keeps_the_listener(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    failures: list[BaseException] = []
    answered: list[str] = []
    over = threading.Event()

    def ask_all_the_time() -> None:
        while not over.wait(0.005):
            try:
                answered.append(get(server.bind).text)
            except OSError as error:
                failures.append(error)

    clients = [threading.Thread(target=ask_all_the_time) for _ in range(4)]
    for client in clients:
        client.start()
    for turn in range(1, 6):
        wait_until(lambda enough=20 * turn: len(answered) > enough or failures)
        server.restart_sync()
    over.set()
    for client in clients:
        client.join()
    assert failures == []
    assert set(answered) == {"hello"}


def test_an_idle_connection_outlives_the_restart_until_it_is_quiet(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    with hold_open(server) as sock:
        server.restart_sync()
        assert ask(sock).endswith(b"hello"), "the request that was on its way is answered"
    pool.join_sync()


def test_restart_keeps_the_old_worker_when_the_replacement_fails(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    pool.merge(Pool([config("web", "refusing", bind=server.bind)]))
    assert server.stale

    with pytest.raises(PoolRestartError) as caught:
        server.restart_sync()

    assert "the old instance serves on" in caught.value.exceptions[0].message
    assert caught.value.exceptions[0].code == 1325
    assert get(server.bind).text == "hello"
    assert server.is_running
    assert server.stale


def test_a_merged_configuration_takes_effect_at_the_next_start(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    pool.merge(Pool([config("other", "without_lifespan", bind=server.bind)]))
    assert (server.name, server.stale) == ("other", True)
    assert get(server.bind).text == "hello"
    server.start_sync()
    assert not server.stale
    wait_until(lambda: get(server.bind).text == "plain", what="the old instance to accept no more")


def test_without_overlap_a_restart_ends_the_old_one_first_and_connections_wait(pool: Pool) -> None:
    server = pool.store_new(config("web", overlap=False))
    pool.start_sync()
    over = threading.Event()
    failures: list[BaseException] = []

    def ask_all_the_time() -> None:
        while not over.wait(0.005):
            try:
                get(server.bind)
            except OSError as error:
                failures.append(error)

    client = threading.Thread(target=ask_all_the_time)
    client.start()
    server.restart_sync()
    over.set()
    client.join()
    assert [type(error) for error in failures if isinstance(error, ConnectionRefusedError)] == []
    assert get(server.bind).text == "hello"


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
        assert refuses(server)
    assert bad.message == errors["bad"].message


def test_a_server_that_is_not_ready_in_its_own_time_has_failed(pool: Pool) -> None:
    server = pool.store_new(config("slow", "hanging", start_timeout=0.3))
    with pytest.raises(PoolStartError) as caught:
        server.start_sync()
    assert "not ready within 300ms" in caught.value.exceptions[0].message
    assert isinstance(caught.value.exceptions[0].__cause__, TimeoutError)
    assert server.state is State.FAILED
    assert refuses(server)


@pytest.mark.heavy_variants
def test_callers_timeout_is_distinguished_from_other_failures(pool: Pool) -> None:
    pool.store_new(config("warm"))
    pool.start_sync()  # what the first process costs is not this test's matter
    pool.store_new(config("slow", "hanging"))
    pool.store_new(config("bad", "refusing"))
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync(timeout=timedelta(seconds=10))
    causes = {error.name: error.__cause__ for error in caught.value.exceptions}
    assert isinstance(causes["slow"], TimeoutError)
    assert not isinstance(causes["bad"], TimeoutError)


def test_a_stop_cuts_a_start_short(pool: Pool) -> None:
    server = pool.store_new(config("slow", "hanging"))
    raised: list[BaseException] = []

    def start() -> None:
        try:
            server.start_sync()
        except PoolStartError as error:
            raised.extend(error.exceptions)

    thread = threading.Thread(target=start)
    thread.start()
    wait_until(lambda: server.state is State.STARTING)
    server.stop_sync()
    thread.join(60)
    assert [str(error) for error in raised] == ["slow: was stopped before it was ready"]
    assert server.state is State.STOPPED
    assert refuses(server)


def test_a_server_that_does_not_end_is_ended_at_its_timeout(pool: Pool) -> None:
    server = pool.store_new(config("stubborn", "stubborn", stop_timeout=0.5))
    pool.start_sync()
    assert get(server.bind).text == "still here"
    pool.stop_sync()
    assert server.state is State.STOPPED
    assert refuses(server)


def test_deleted_server_is_stopped_and_join_awaits_it(pool: Pool) -> None:
    server = pool.store_new(config("web"))
    pool.start_sync()
    pool.delete(server.bind)
    pool.join_sync()
    assert server.state is State.STOPPED
    assert refuses(server)


def test_a_replaced_server_gives_its_address_to_its_successor(pool: Pool) -> None:
    old = pool.store_new(config("old"))
    pool.start_sync()
    new = pool.store_new(config("new", "without_lifespan", bind=old.bind))
    pool.start_sync()
    assert get(new.bind).text == "plain"
    pool.join_sync()
    assert (old.state, new.state) == (State.STOPPED, State.RUNNING)


def test_a_view_starts_its_own_members_and_removing_from_it_stops_nothing(pool: Pool) -> None:
    one, two = pool.store_new(config("one")), pool.store_new(config("two"))
    view = pool.filter(Field.NAME, "one")
    view.start_sync()
    assert (one.is_running, two.is_running) == (True, False)
    view.clean()
    view.join_sync()
    assert one.is_running
    assert get(one.bind).text == "hello"


@pytest.mark.parametrize("make_runner", [ProcessRunner], indirect=True)
def test_several_workers_share_the_listener(pool: Pool) -> None:
    server = pool.store_new(config("web", workers=3))
    pool.start_sync()
    assert get(server.bind).text == "hello"
    pool.restart_sync()
    assert get(server.bind).text == "hello"
    pool.stop_sync()
    pool.join_sync()
    assert refuses(server)


def test_localhost_and_the_wildcard_serve_every_loopback_address(pool: Pool) -> None:
    named = pool.store_new(config("named", bind=f"localhost:{claim_port()}"))
    everywhere = pool.store_new(config("all", bind=f":{claim_port()}"))
    pool.start_sync()
    for server in (named, everywhere):
        port = server.config.address.port
        assert get(f"127.0.0.1:{port}").text == "hello"
        if socket.has_ipv6 and any(endpoint.startswith("[") for endpoint in server.endpoints):
            assert get(f"[::1]:{port}").text == "hello"


def test_a_unix_socket_is_served_and_removed_at_the_end(pool: Pool, short_path: Path) -> None:
    path = short_path / "local.sock"
    server = pool.store_new(config("local", bind=f"unix:{path}"))
    pool.start_sync()
    assert get(f"unix:{path}").text == "hello"
    assert server.monitor().status == "ok"
    pool.restart_sync()
    assert get(f"unix:{path}").text == "hello"
    pool.stop_sync()
    assert not path.exists()


def test_a_factory_makes_the_app(pool: Pool) -> None:
    server = pool.store_new(config("made", "make_hello", factory=True))
    pool.start_sync()
    assert get(server.bind).text == "made"


def test_dependencies_start_first_and_stop_last(pool: Pool) -> None:
    web = pool.store_new(config("web", depends_on=["db"]))
    db = pool.store_new(config("db"))
    pool.start_sync()
    assert db.uptime > web.uptime
    pool.stop_sync()
    assert (web.state, db.state) == (State.STOPPED, State.STOPPED)


def test_an_async_pool_is_started_and_stopped_at_the_end(pool: Pool) -> None:
    server = pool.store_new(config("web"))

    async def use() -> str:
        async with pool as entered:
            assert entered is pool
            return (await asyncio.to_thread(get, server.bind)).text

    assert asyncio.run(use()) == "hello"
    assert refuses(server)


def test_an_async_pool_that_fails_to_start_leaves_nothing_running(pool: Pool) -> None:
    good = pool.store_new(config("good"))
    pool.store_new(config("bad", "refusing"))

    async def use() -> None:
        async with pool:
            raise AssertionError("it did not start")

    with pytest.raises(PoolStartError):
        asyncio.run(use())
    assert refuses(good)


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
    assert all(refuses(server) for server in servers)


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
