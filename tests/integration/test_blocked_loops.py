"""An application that blocks the loop of all servers in its process holds up nobody who has set a limit."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolctl import (
    Pool,
    PoolError,
    PoolMonitorError,
    PoolRestartError,
    PoolStartError,
    PoolStopError,
    ServerConfig,
    State,
)
from tests.asgi_apps import hello
from tests.deadline import wait_until
from tests.http_get import get, refused
from tests.ports import claim_port

SECONDS = 10.0  # less than an application would block if nothing held its callers' limits


class Blocking:
    """An application that blocks its loop at a request, until it is told to go on."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/block":
            self.begun.set()
            self.wait_for_the_end()
        await hello(scope, receive, send)

    def wait_for_the_end(self) -> None:
        self.over.wait(60)


@pytest.fixture
def app() -> Iterator[Blocking]:
    made = Blocking()
    yield made
    made.over.set()


@pytest.fixture
def pool(app: Blocking) -> Iterator[Pool]:
    """A pool of which the loop is blocked."""
    made = Pool([server("web", app)])
    with blocked(made, app):
        yield made


@contextlib.contextmanager
def blocked(pool: Pool, app: Blocking) -> Iterator[None]:
    """The pool runs, and the first server blocks its loop."""
    pool.start_sync()
    client = threading.Thread(target=ask, args=(next(iter(pool)), "/block"), daemon=True)
    client.start()
    assert app.begun.wait(60)
    yield
    app.over.set()
    client.join(60)
    pool.stop_sync()


def ask(bind: str, path: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):
        get(bind, path)


def server(name: str, app: Any, **keys: Any) -> ServerConfig:
    return ServerConfig(
        name=name, bind=f"127.0.0.1:{claim_port()}", app=app, **{"stop_timeout": "100ms", **keys}
    )


def fails(kind: type[PoolError], work: Callable[[], object]) -> str:
    """The error of a call that fails in time."""
    begun = time.monotonic()
    with pytest.raises(kind) as caught:
        work()
    assert time.monotonic() - begun < SECONDS
    (error,) = caught.value.exceptions
    assert isinstance(error.__cause__, TimeoutError)
    assert "in wait_for_the_end" in "".join(error.__cause__.__notes__)
    return error.message


WHY = "the loop of all servers in this process is blocked in Blocking.wait_for_the_end (tests/integration/"


@pytest.mark.parametrize(
    "stop",
    [
        lambda pool: pool.stop_sync(timeout=0.2),
        lambda pool: asyncio.run(pool.stop(timeout=0.2)),
        lambda pool: pool.stop_sync(),  # its `stop_timeout` is the limit
        lambda pool: next(iter(pool.values())).stop_sync(timeout=0.2),
        lambda pool: pool.clean() or pool.join_sync(),
        lambda pool: pool.clean() or asyncio.run(pool.join()),
    ],
    ids=["sync", "coroutine", "without-a-timeout", "server", "join", "join-coroutine"],
)
def test_a_stop_returns_within_its_limit_and_closes_the_listener(
    pool: Pool, app: Blocking, stop: Callable[[Pool], object]
) -> None:
    (web,) = pool.values()
    assert WHY in fails(PoolStopError, lambda: stop(pool))
    assert refused(web.bind)
    app.over.set()
    wait_until(lambda: web.state is State.STOPPED, what="the stop that was ordered")
    pool.join_sync()
    assert web.state is State.STOPPED


def test_a_start_returns_within_its_limit_and_is_abandoned(pool: Pool, app: Blocking) -> None:
    other = Pool([server("other", hello, start_timeout="100ms")])
    (bind,) = other
    for start in (
        lambda: other.start_sync(timeout=0.2),
        lambda: asyncio.run(other.start(timeout=0.2)),
        other.start_sync,
    ):
        assert WHY in fails(PoolStartError, start)
    app.over.set()
    pool.stop_sync()
    assert refused(bind)
    other.merge(Pool([each.config.replace(start_timeout="60s") for each in other.values()]))
    other.start_sync()
    assert get(bind).text == "hello"
    other.stop_sync()


def test_an_application_that_blocks_its_own_start_refuses_connections(app: Blocking) -> None:
    async def blocked(scope: Any, receive: Any, send: Any) -> None:
        app.wait_for_the_end()

    pool = Pool([server("web", blocked)])
    fails(PoolStartError, lambda: pool.start_sync(timeout=0.2))
    assert refused(next(iter(pool)))
    app.over.set()
    pool.stop_sync()


def test_a_restart_a_change_and_metrics_return_within_their_limits(pool: Pool, app: Blocking) -> None:
    assert WHY in fails(PoolRestartError, lambda: pool.restart_sync(timeout=0.2))
    (config,) = (each.config.replace(start_timeout="100ms") for each in pool.values())
    assert WHY in fails(PoolRestartError, lambda: pool.apply_sync([config]))
    assert fails(PoolMonitorError, pool.metrics).startswith(f"gave no metrics within 5 s: {WHY}")
    app.over.set()
    assert get(next(iter(pool))).text == "hello"


def test_a_loop_that_is_busy_for_a_moment_is_awaited(pool: Pool, app: Blocking) -> None:
    threading.Timer(0.5, app.over.set).start()
    pool.stop_sync(timeout=0.1)
    assert not pool.is_running


def test_a_change_whose_start_is_abandoned_is_an_error(app: Blocking) -> None:
    async def blocked(scope: Any, receive: Any, send: Any) -> None:
        app.wait_for_the_end()

    pool = Pool()
    pool.start_sync()
    fails(PoolRestartError, lambda: pool.apply_sync([server("web", blocked, start_timeout="100ms")]))
    assert refused(next(iter(pool)))
    app.over.set()
    pool.stop_sync()


def test_a_change_has_the_time_of_the_new_configurations(pool: Pool, app: Blocking) -> None:
    other = Pool([server("old", hello, start_timeout="100ms")])
    threading.Timer(2.5, app.over.set).start()
    other.apply_sync([server("new", hello)])
    assert [each.name for each in other.values()] == ["new"]


def test_a_start_without_a_timeout_may_find_the_loop_busy_for_as_long_again(
    pool: Pool, app: Blocking
) -> None:
    other = Pool([server("other", hello, start_timeout="5s")])
    threading.Timer(8, app.over.set).start()
    with other:
        assert get(next(iter(other))).text == "hello"


def test_a_stop_without_a_timeout_waits_once_for_a_blocked_loop(app: Blocking) -> None:
    pool = Pool([server("web", app, stop_timeout="5s")])
    with blocked(pool, app):
        threading.Timer(8.5, app.over.set).start()
        with pytest.raises(PoolStopError):
            pool.stop_sync()
    pool.join_sync()


def test_servers_that_nobody_stops_or_starts_are_neither_cut_off_nor_blamed(app: Blocking) -> None:
    pool = Pool([
        server("web", app), server("api", hello), server("sleeps", hello, scale={"min": 0}),
        server("disabled", hello, disabled=True), server("rests", hello, on_demand=True),
    ])  # fmt: skip
    web, api, sleeps, *_ = pool
    with blocked(pool, app):
        with pytest.raises(PoolStartError) as caught:
            pool.start_sync(timeout=0.2)
        assert [each.name for each in caught.value.exceptions] == ["web", "api", "sleeps"]
        pool.delete(web)
        fails(PoolStopError, pool.join_sync)
        assert [refused(bind) for bind in (web, api, sleeps)] == [True, False, False]
        app.over.set()
        assert get(api).text == "hello"
        pool.join_sync()


def test_a_stop_that_fails_hides_no_exception_of_the_program(app: Blocking) -> None:
    pool = Pool([server("web", app)])

    async def work() -> None:
        async with pool:
            await asyncio.to_thread(block)

    def block() -> None:
        threading.Thread(target=ask, args=(next(iter(pool)), "/block"), daemon=True).start()
        assert app.begun.wait(60)
        raise ZeroDivisionError

    for run in (lambda: asyncio.run(work()), work_sync(pool, block)):
        with pytest.raises(ZeroDivisionError) as caught:
            run()
        assert WHY in caught.value.__notes__[0]
        app.over.set()
        pool.join_sync()
        app.begun.clear()
        app.over.clear()


def work_sync(pool: Pool, work: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with pool:
            work()

    return run


PROGRAM = """
import threading, time, urllib.request
from poolctl import Pool, ServerConfig
from tests.asgi_apps import hello

begun = threading.Event()

async def app(scope, receive, send):
    if scope["type"] == "http":
        begun.set()
        time.sleep(600)
    await hello(scope, receive, send)

pool = Pool([ServerConfig(name="web", bind="127.0.0.1:auto", app=app)])
pool.start_sync()
threading.Thread(target=urllib.request.urlopen, args=[pool.url("web")], daemon=True).start()
begun.wait()
threading.Thread(target=pool.stop_sync, kwargs={"timeout": 2.5}).start()
"""


def test_a_program_ends_while_a_thread_waits_for_a_blocked_loop() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert "still runs after 2.5 s: the loop of all servers in this process is blocked in app" in done.stderr
