"""Contract §6: operations on a pool in this process while its servers run, from any thread."""

from __future__ import annotations

import asyncio
import inspect
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import poolctl
from poolctl import (
    Field,
    Pool,
    PoolAddError,
    PoolConfig,
    PoolContext,
    PoolError,
    PoolParamError,
    PoolRestartError,
    PoolStartError,
    PoolValidateError,
    Server,
    ServerConfig,
    State,
    Status,
)
from poolctl.runners.embedded_runner import ProcessRunner
from tests.deadline import wait_until
from tests.http_get import refused

Make = Callable[..., ServerConfig]


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise NotImplementedError(scope["type"])
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def failing(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})


@pytest.fixture
def make(free_port: Callable[[], int]) -> Make:
    def config(name: str, **keys: Any) -> ServerConfig:
        keys.setdefault("app", hello)
        keys.setdefault("bind", f"127.0.0.1:{free_port()}")
        return ServerConfig(name=name, **keys)

    return config


@pytest.fixture
def pool(make: Make) -> Iterator[Pool]:
    """Servers a, b, c, d, started."""
    pool = Pool([make(name) for name in "abcd"])
    pool.start_sync(timeout=60)
    yield pool
    pool.stop_sync()
    pool.join_sync()


def test_lifecycle_methods_are_coroutines_with_blocking_twins() -> None:
    assert (Path(poolctl.__file__).parent / "py.typed").exists()
    for kind in (Pool, Server):
        for name in ("start", "stop", "restart"):
            assert inspect.iscoroutinefunction(getattr(kind, name))
            assert not inspect.iscoroutinefunction(getattr(kind, f"{name}_sync"))
            assert inspect.signature(getattr(kind, f"{name}_sync")).parameters["timeout"].default is None
    for name in ("join", "apply"):
        assert inspect.iscoroutinefunction(getattr(Pool, name))
        assert not inspect.iscoroutinefunction(getattr(Pool, f"{name}_sync"))


def test_replaced_or_removed_server_is_stopped_and_join_awaits_it(pool: Pool, make: Make) -> None:
    a, b, c, d = binds = list(pool)
    before = [pool[bind] for bind in binds]
    stored = Server(make("a2", bind=a))
    pool.store(stored)
    pool.store_new(make("b2", bind=b))
    pool.delete(c)
    gone = pool.load_and_delete(d)
    assert gone is before[3]
    pool.join_sync()
    assert {server.state for server in before} == {State.STOPPED}
    assert all(refused(bind) for bind in binds)
    assert [server.name for server in pool.values()] == ["a2", "b2"]
    assert list(pool) == [a, b], "each keeps the place of the one before"
    pool.start_sync()
    assert pool[a] is stored
    assert stored.ready
    pool.clean()
    asyncio.run(pool.join())
    assert stored.state is State.STOPPED
    assert (len(pool), pool.is_running) == (0, False)


def test_a_view_is_live_and_its_own_list(pool: Pool) -> None:
    a, b, *_ = pool
    view = pool.filter(Field.NAME, regex="^[ab]$")
    assert view[a] is pool[a]
    view[a].stop_sync()
    assert pool[a].state is State.STOPPED
    view.start_sync()
    assert pool[a].ready
    view.delete(b)
    view.clean()
    assert not refused(b)
    assert pool[b].ready
    assert len(pool) == 4


def test_a_view_starts_no_server_that_its_pool_has_lost(pool: Pool, make: Make) -> None:
    a, b, c, _ = pool
    view = pool.filter(Field.NAME, regex="^[abc]$")
    lost = [pool[a], pool[b]]
    pool.delete(a)
    pool.store_new(make("b2", bind=b))
    alone = view.store_new(make("alone"))
    view.start_sync()
    view.restart_sync()
    pool.start_sync()
    assert [server.state for server in lost] == [State.STOPPED] * 2
    assert (refused(a), pool[b].ready, pool[c].ready) == (True, True, True)
    assert alone.ready, "it was stored in the view, and never was in the pool"
    alone.stop_sync()
    view.filter(Field.NAME, "alone").start_sync()
    assert alone.ready
    alone.stop_sync()


def test_a_clone_is_stopped_deep_and_its_own(pool: Pool) -> None:
    twin = pool.clone()
    assert [*twin] == [*pool]
    assert {server.state for server in twin.values()} == {State.STOPPED}
    assert not any(twin[bind] is pool[bind] for bind in pool)
    twin.clean()
    twin.join_sync()
    assert all(server.ready for server in pool.values())


def test_merge_over_a_running_server_swaps_it_at_its_next_start(pool: Pool, make: Make) -> None:
    a, b, *_ = pool
    other = Pool([make("renamed", bind=a), make("new")])
    server = pool[a]
    pool.merge(other)
    assert pool[a] is server
    assert (server.name, server.stale, server.ready) == ("renamed", True, True)
    assert (pool[b].stale, len(pool)) == (False, 5)
    pool.start_sync()
    assert not server.stale
    assert all(each.ready for each in pool.values())


def test_a_failed_restart_keeps_the_old_one_and_names_every_failure(pool: Pool, make: Make) -> None:
    a, b, c, _ = pool
    pool.merge(Pool([make("a", bind=a, app=failing), make("b", bind=b, app=failing)]))
    with pytest.raises(PoolRestartError) as caught:
        pool.restart_sync(timeout=60)
    assert (caught.value.code, caught.value.error) == (1325, "ErrorPoolRestart")
    assert [(child.name, child.bind) for child in caught.value.exceptions] == [("a", a), ("b", b)]
    assert all("no database" in child.message for child in caught.value.exceptions)
    assert all("the old instance serves on" in child.message for child in caught.value.exceptions)
    assert (pool[a].stale, pool[a].is_running, pool[c].stale) == (True, True, False)
    assert not any(refused(bind) for bind in (a, b, c))
    with pytest.raises(PoolRestartError) as alone:
        pool[a].restart_sync()
    assert len(alone.value.exceptions) == 1
    assert isinstance(alone.value, PoolError)


def test_one_server_alone(make: Make) -> None:
    server = Server(make("web", expose="http://shop.local", tags=["x"]))
    assert (server.name, server.expose, server.state, server.ready) == (
        "web",
        "http://shop.local",
        State.STOPPED,
        False,
    )
    assert (server.is_running, server.uptime, server.pids) == (False, timedelta(0), [])
    assert server.config.tags == ("x",)
    asyncio.run(server.start())
    server.start_sync()
    assert (server.state, server.ready, server.is_running) == (State.RUNNING, True, True)
    assert server.uptime > timedelta(0)
    assert not refused(server.bind)
    asyncio.run(server.restart())
    seen = server.monitor()
    assert (seen.name, seen.status) == ("web", Status.OK)
    assert seen.latency >= timedelta(0)
    server.stop_sync()
    server.stop_sync()
    assert refused(server.bind)
    assert server.monitor().status is not Status.OK
    off = Pool([make("off", disabled=True), make("on")])
    off.start_sync()
    assert [each.state for each in off.values()] == [State.DISABLED, State.RUNNING]
    off.stop_sync()


def test_a_pool_config_makes_a_pool_with_its_handler_context_and_certificates(
    make: Make, http_get: Any
) -> None:
    config = PoolConfig([make("a", app=None), make("b", app=None, handler_key="k")])
    config.set_handler(lambda: {"": hello, "k": hello})
    context = PoolContext(values={"x": 1}, stop=threading.Event())
    config.set_context(context)
    config.validate()
    with pytest.raises(PoolParamError):
        config.set_context("nonsense")
    with pytest.raises(PoolParamError):
        config.set_handler("nonsense")
    pool = config.pool()
    pool.start_sync()
    try:
        assert all(http_get(bind).text == "hello" for bind in pool)
        context.stop.set()
        pool.join_sync()
        assert not pool.is_running
    finally:
        pool.stop_sync()
    lacking = PoolConfig([make("a"), make("b", tls=True)])
    with pytest.raises(PoolAddError) as caught:
        lacking.pool()
    assert [server.name for server in caught.value.pool.values()] == ["a"]
    assert [child.name for child in caught.value.exceptions] == ["b"]
    with pytest.raises(PoolValidateError):
        PoolConfig([make("a", app=None)]).validate()


async def slowly(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await asyncio.Event().wait()


def test_a_timeout_affects_only_late_servers(make: Make) -> None:
    pool = Pool([make("late", app=slowly), make("failing", app=failing), make("good")])
    for seconds in (1.5, 6, 24):  # long enough to start the others on a busy machine
        with pytest.raises(PoolStartError) as caught:
            pool.start_sync(timeout=timedelta(seconds=seconds))
        children = {child.name: child for child in caught.value.exceptions}
        if sum(isinstance(child.__cause__, TimeoutError) for child in children.values()) == 1:
            break
        pool.stop_sync()
    assert children.keys() == {"late", "failing"}
    assert isinstance(children["late"].__cause__, TimeoutError)
    assert not isinstance(children["failing"].__cause__, TimeoutError)
    assert pool.is_running
    pool.stop_sync()
    with pytest.raises(PoolStartError) as own:
        Server(make("slow", app=slowly, start_timeout="300ms")).start_sync()
    (error,) = own.value.exceptions
    assert ("not ready within 300ms" in error.message, type(error.__cause__)) == (True, TimeoutError)


def test_any_method_of_a_running_pool_from_any_thread(pool: Pool, make: Make) -> None:
    first = next(iter(pool))
    new = [make(f"n{number}") for number in range(4)]

    server = pool[first]
    orders: list[Callable[[ServerConfig], object]] = [
        lambda mine: pool.restart_sync(timeout=60),
        lambda mine: server.restart_sync(),
        lambda mine: asyncio.run(server.restart()),
        lambda mine: pool.start_sync(),
        lambda mine: pool.filter(Field.BIND, regex=":").start_sync(),
        lambda mine: pool.clone(),
        lambda mine: pool.monitor(),
        lambda mine: pool.walk(lambda bind, each: each.ready or True),
        lambda mine: pool.store_new(mine),
        lambda mine: pool.merge(Pool([mine])),
        lambda mine: pool.load_and_delete(mine.bind),
        lambda mine: (pool.is_running, pool.uptime, pool.monitor_names(), len(pool), [*pool.items()]),
        lambda mine: pool.join_sync(),
    ]

    def visit(number: int) -> None:
        chance = random.Random(number)
        for _ in range(60):
            chance.choice(orders)(new[number])
            assert server.ready

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(visit, number) for number in range(4)]:
            done.result(timeout=100)
    for config in new:
        pool.delete(config.bind)
    pool.join_sync()
    assert [server.name for server in pool.values()] == ["a", "b", "c", "d"]
    assert all(server.ready for server in pool.values())
    pool.stop_sync()
    assert all(refused(bind) for bind in pool)


def test_server_removed_during_a_start_is_not_started(make: Make) -> None:
    go = threading.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await asyncio.to_thread(go.wait)
            await send({"type": "lifespan.startup.complete"})

    pool = Pool(
        [make("first", app=waiting), make("later", depends_on=["first"]), make("last", depends_on=["first"])]
    )
    first, later, last = pool
    view = pool.filter(Field.NAME, regex="^(first|last)$")

    async def start_and_remove() -> Server | None:
        starting = [asyncio.ensure_future(each.start()) for each in (pool, view)]
        await asyncio.sleep(0)
        await Pool().start()  # in turn, so that both have started
        server = pool.load_and_delete(later)
        pool.delete(last)
        go.set()
        await asyncio.wait_for(asyncio.gather(*starting), 60)
        return server

    server = asyncio.run(start_and_remove())
    pool.join_sync()
    assert refused(later)
    assert refused(last)
    assert server is not None
    assert (server.state, pool[first].ready) == (State.STOPPED, True)
    server.start_sync()
    assert server.ready, "by itself it may be started"
    server.stop_sync()
    pool.stop_sync()


UNTIL_SIGNAL = """
import signal, sys
from poolctl import Pool, ServerConfig
from tests.contract.test_python_running import failing, hello

before = signal.getsignal(signal.SIGINT)
pool = Pool([ServerConfig(name="web", bind=sys.argv[1], app=hello)])
pool.run_until_signal()
assert signal.getsignal(signal.SIGINT) is before
print("stopped", pool.is_running)
"""
FAILS = UNTIL_SIGNAL.replace("app=hello", "app=failing")


def ended(program: str, bind: str, told: signal.Signals | None) -> tuple[int, str]:
    """The status and output of the program, which gets the signal when its server answers."""
    process = subprocess.Popen(
        [sys.executable, "-c", program, bind],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        if told is not None:
            wait_until(lambda: not refused(bind), what="the server answers")
            process.send_signal(told)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_pool_runs_until_a_signal_and_stops_then(free_port: Callable[[], int], told: signal.Signals) -> None:
    bind = f"127.0.0.1:{free_port()}"
    status, said = ended(UNTIL_SIGNAL, bind, told)
    assert (status, said.endswith("stopped False\n")) == (0, True), said
    assert refused(bind)


def test_pool_that_cannot_start_does_not_wait_for_a_signal(free_port: Callable[[], int]) -> None:
    status, said = ended(FAILS, f"127.0.0.1:{free_port()}", None)
    assert (status, "PoolStartError" in said) == (1, True), said


def test_signals_are_for_the_main_thread() -> None:
    with ThreadPoolExecutor(1) as threads, pytest.raises(PoolParamError, match="main thread"):
        threads.submit(Pool().run_until_signal).result()


def test_processes_get_the_addresses_that_they_refer_to(tmp_path: Path) -> None:
    code = (
        f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'said')!r}).write_text(os.environ['SAID'])"
    )
    user = ServerConfig(
        name="user", env={"SAID": "${server.api.url} $${server.api.url}"}, depends_on=["api"], job=True,
        command=[sys.executable, "-c", code],
    )  # fmt: skip
    api = ServerConfig(
        name="api", bind="127.0.0.1:auto", command=[sys.executable, "-m", "http.server", "{port}"]
    )
    with Pool([user, api], runner=ProcessRunner()) as pool:
        assert (tmp_path / "said").read_text() == f"{pool.url('api', '')} ${{server.api.url}}"


MANY = """
import gc, sys
from poolctl import Pool, ServerConfig
from poolctl.runners.embedded_runner import ProcessRunner
from tests.deadline import wait_until
from tests.descriptors import open_descriptors

def run_pool():
    pool = Pool(
        [ServerConfig(name="web", bind="127.0.0.1:auto", command=[sys.executable, "-m", "http.server", "{port}"])],
        runner=ProcessRunner(),
    )
    pool.start_sync()
    pool.stop_sync()
    del pool
    gc.collect()
    return len(open_descriptors())

first, *_ = [run_pool() for _ in range(4)]
wait_until(lambda: len(open_descriptors()) <= first)
"""


@pytest.mark.slow
def test_pool_of_processes_leaves_nothing_open() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", MANY],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=Path(__file__).parents[2],
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_import_touches_no_signal_handler_of_a_script_with_the_name_of_the_command(tmp_path: Path) -> None:
    script = tmp_path / "poolctl"
    script.write_text(
        "import signal, poolctl\nfrom poolctl import Pool\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
