"""The runner of this process: its thread, its limits, and how it behaves in forks."""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolctl import (
    Field,
    Pool,
    PoolConfig,
    PoolContext,
    PoolStartError,
    Server,
    ServerConfig,
    State,
    Status,
    TLSConfig,
)
from poolctl.runners.inline_runner import InlineRunner
from tests.asgi_apps import answer, hanging, hello, lifespan, make_hello, saying
from tests.certificates import certificate
from tests.deadline import wait_until
from tests.http_get import get, refused
from tests.ports import claim_port


def config(name: str = "web", app: Any = hello, **keys: Any) -> ServerConfig:
    keys.setdefault("bind", f"127.0.0.1:{claim_port()}")
    return ServerConfig(name=name, app=app, **keys)


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool()
    yield made
    made.stop_sync(timeout=60)
    made.join_sync()


def engine_threads() -> list[threading.Thread]:
    gc.collect()  # a runner that a test made keeps the loop thread as long as it lives
    return [thread for thread in threading.enumerate() if thread.name == "poolctl-engine"]


def port_of(server: Server) -> int:
    port = server.config.address.port
    assert port is not None
    return port


def test_the_thread_is_there_while_something_runs_and_gone_afterwards(pool: Pool) -> None:
    wait_until(lambda: not engine_threads())
    pool.store_new(config())
    pool.start_sync()
    assert len(engine_threads()) == 1
    pool.store_new(config("other"))
    pool.start_sync()
    assert len(engine_threads()) == 1
    pool.stop_sync()
    wait_until(lambda: not engine_threads())


def test_blocking_on_the_thread_that_serves_is_refused_instead_of_hanging(pool: Pool) -> None:
    caught: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        for blocking in (pool.stop_sync, pool.join_sync):
            try:
                blocking()
            except RuntimeError as error:
                caught.append(error)
        await answer(send, "ok")

    server = pool.store_new(config(app=app))
    pool.start_sync()
    get(server.bind)
    assert [str(error) for error in caught] == [
        "this would block the loop that serves the pool; use the coroutine of the same name"
    ] * 2


def test_an_app_may_restart_another_server_of_its_own_pool(pool: Pool) -> None:
    async def admin(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        await pool["127.0.0.1:" + scope["path"][1:]].restart()
        await answer(send, "restarted")

    web = pool.store_new(config("web"))
    console = pool.store_new(config("admin", admin))
    pool.start_sync()
    before = web.uptime
    assert get(console.bind, f"/{port_of(web)}").text == "restarted"
    assert web.uptime < before + pool.uptime
    assert get(web.bind).text == "hello"


def test_cancelling_a_start_leaves_nothing_behind(pool: Pool) -> None:
    server = pool.store_new(config(app=hanging))

    async def give_up() -> None:
        task = asyncio.ensure_future(server.start())
        while server.state is not State.STARTING:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    wait_until(lambda: server.state is State.STOPPED)
    wait_until(lambda: not engine_threads())
    assert refused(server.bind)


def test_the_callers_context_variables_do_not_reach_the_requests(pool: Pool) -> None:
    import contextvars

    secret: contextvars.ContextVar[str] = contextvars.ContextVar("secret", default="none")
    secret.set("mine")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await answer(send, secret.get())

    server = pool.store_new(config(app=app))
    pool.start_sync()
    assert get(server.bind).text == "none"


# Applications.


def test_context_values_reach_requests_and_lifespan() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen[scope["type"]] = dict(scope["state"])
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
        else:
            await answer(send, "ok")

    database = object()
    pool = Pool([config(app=app)], context=PoolContext({"db": database}))
    pool.start_sync()
    get(next(iter(pool)))
    pool.stop_sync()
    assert seen == {"lifespan": {"db": database}, "http": {"db": database}}


def test_cancelling_the_context_ends_the_servers_and_join_awaits_them() -> None:
    context = PoolContext()
    pool = Pool([config("a"), config("b")], context=context)
    pool.start_sync()
    context.cancel()
    pool.join_sync()
    assert [server.state for server in pool.values()] == [State.STOPPED, State.STOPPED]
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    assert "its context was cancelled" in str(caught.value)


def test_the_handler_of_the_pool_serves_by_key() -> None:
    pool = Pool([config("a", None), config("b", None, handler_key="admin")])
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    assert "has no app, no command and no handler" in str(caught.value)
    pool.handler(lambda: {"": saying("default"), "admin": saying("admin")})
    pool.start_sync()
    texts = [get(bind).text for bind in pool]
    pool.stop_sync()
    assert texts == ["default", "admin"]


def test_a_handler_without_that_key_says_what_there_is() -> None:
    pool = Pool([config("a", None, handler_key="b")], handler=lambda: {"x": hello, "y": hello})
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    assert caught.value.exceptions[0].message == "the handler has nothing under 'b'"
    assert caught.value.exceptions[0].hint == "it has: 'x', 'y'"


def test_a_handler_that_fails_is_the_failure_of_its_servers_alone() -> None:
    def fail() -> dict[str, Any]:
        raise LookupError("no such thing")

    def leave() -> dict[str, Any]:
        sys.exit(3)

    pool = Pool([config("a", None), config("b")], handler=fail)
    a, b = pool.values()
    handlers: list[tuple[Any, str]] = [
        (fail, "the handler failed: LookupError: no such thing"),
        (leave, "the handler failed: SystemExit: 3"),
        (lambda: None, "the handler gives no mapping of applications, but None"),
    ]
    try:
        for handler, message in handlers:
            pool.handler(handler)
            with pytest.raises(PoolStartError) as caught:
                pool.start_sync()
            assert [(child.name, child.message) for child in caught.value.exceptions] == [("a", message)]
            assert (a.state, b.ready) == (State.FAILED, True)
            if handler is fail:
                assert isinstance(caught.value.exceptions[0].__cause__, LookupError)
        assert get(b.bind).text == "hello"
    finally:
        pool.stop_sync()


def test_a_file_names_the_function_that_gives_the_handlers(tmp_path: Path) -> None:
    ports = [claim_port(), claim_port()]
    (tmp_path / "many.py").write_text("from tests.asgi_apps import handlers\n")
    (tmp_path / "pool.toml").write_text(
        f"""
        [pool]
        handlers = "many:handlers"
        [[server]]
        name = "a"
        bind = "127.0.0.1:{ports[0]}"
        [[server]]
        name = "b"
        bind = "127.0.0.1:{ports[1]}"
        handler_key = "admin"
        """
    )
    pool = PoolConfig.load(tmp_path / "pool.toml").pool()
    pool.start_sync()
    texts = [get(port).text for port in ports]
    pool.stop_sync()
    assert texts == ["default", "admin"]


def test_an_app_that_is_not_there_is_named(pool: Pool) -> None:
    pool.store_new(config("a", "no_such_module_at_all:app"))
    pool.store_new(config("b", "sys:exit", factory=True))
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    first, second = (error.message for error in caught.value.exceptions)
    assert "No module named 'no_such_module_at_all'" in first
    assert "SystemExit" in second, "an app that exits ends neither the loop nor this process"


def lose(kept: list[Any], *ports: int) -> None:
    """Give up the references, the last ones; return when none of the servers accepts any more."""
    kept.clear()
    gc.collect()
    wait_until(lambda: all(refused(port) for port in ports))


def test_running_servers_that_the_program_loses_stop_with_a_warning() -> None:
    pool = Pool([config("db"), config("api", depends_on=["db"])])
    pool.start_sync()
    ports = [port_of(server) for server in pool.values()]
    kept = [pool]
    del pool
    with pytest.warns(ResourceWarning) as warned:
        lose(kept, *ports)
    assert sorted(str(each.message).split()[0] for each in warned) == ["api", "db"]
    wait_until(lambda: not engine_threads())


@pytest.mark.parametrize(
    "keep", [lambda pool: pool.filter(Field.NAME, "web"), lambda pool: next(iter(pool.values()))]
)
def test_running_server_serves_on_as_long_as_the_program_can_reach_it(keep: Any) -> None:
    pool = Pool([config()])
    pool.start_sync()
    (port,) = [port_of(server) for server in pool.values()]
    kept = keep(pool)
    del pool
    gc.collect()
    assert get(port).status == 200
    kept.stop_sync()
    del kept
    gc.collect()
    assert refused(port)


def test_lone_server_that_the_program_loses_while_it_restarts_stops() -> None:
    server = Server(config(drain_timeout=1))
    server.start_sync()
    port = port_of(server)
    server.restart_sync()
    kept = [server]
    del server
    with pytest.warns(ResourceWarning):
        lose(kept, port)


REFUSED: dict[str, dict[str, Any]] = {
    "`command` cannot be honoured inside this process": {"app": None, "command": ["true"]},
    "`env`, `limits.open_files`, `http.log_level` cannot be honoured inside this process": {
        "env": {"A": "1"}, "limits": {"open_files": 100}, "http": {"log_level": "debug"},
    },
    "`workers`, `python` cannot be honoured inside this process": {
        "python": "/usr/bin/other-python", "workers": 3,
    },
    "hooks.before_start cannot be run: `hooks` cannot be honoured inside this process": {
        "hooks": {"before_start": ["true"]},
    },
    "`hooks` cannot be honoured inside this process": {"hooks": {"after_stop": ["true"]}},
}  # fmt: skip


def test_keys_that_need_a_process_are_refused_by_name_also_a_job_that_is_not_due(pool: Pool) -> None:
    for number, keys in enumerate(REFUSED.values()):
        pool.store_new(config(f"s{number}", **keys))
    backup = pool.store_new(ServerConfig(name="backup", job=True, command=["true"], every="0 3 * * *"))
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    problems = {
        error.name: (error.message, "poolctl start" in error.hint) for error in caught.value.exceptions
    }
    expected = [*REFUSED, "`every` cannot be honoured inside this process"]
    assert sorted(problems.values()) == sorted((each, True) for each in expected)
    assert backup.state == "failed"


def test_the_access_log_is_one_servers_matter(caplog: pytest.LogCaptureFixture, pool: Pool) -> None:
    loud = pool.store_new(config("loud", http={"access_log": True}))
    quiet = pool.store_new(config("quiet"))
    pool.start_sync()
    with caplog.at_level(logging.INFO, "uvicorn.access"):
        get(loud.bind, "/loud")
        get(quiet.bind, "/quiet")
        wait_until(lambda: "/loud" in caplog.text)
    assert "/quiet" not in caplog.text


@pytest.mark.parametrize("implementation", ["h11", "httptools"])
def test_both_parsers_serve(implementation: str, pool: Pool) -> None:
    pytest.importorskip(implementation)
    server = pool.store_new(config(http={"implementation": implementation}))
    pool.start_sync()
    assert get(server.bind).text == "hello"
    server.restart_sync()
    assert get(server.bind).text == "hello"


@pytest.mark.capability
def test_connection_after_a_restart_reaches_the_new_instance(pool: Pool) -> None:
    server = pool.store_new(config("web", saying("0")))
    pool.start_sync()
    for turn in range(1, 20):
        pool.merge(Pool([config("web", saying(str(turn)), bind=server.bind)]))
        server.restart_sync()
        assert get(server.bind).text == str(turn)


# TLS.


def tls_text(server: Server, trust: Path, name: str = "localhost") -> str:
    context = ssl.create_default_context(cafile=str(trust))
    with (
        socket.create_connection(("127.0.0.1", port_of(server)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        secure.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b""
        while more := secure.recv(4096):
            data += more
    return data.rpartition(b"\r\n\r\n")[2].decode()


def test_tls_is_served_and_renewed_by_a_restart(pool: Pool, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    server = pool.store_new(config(tls=TLSConfig(cert=str(cert), key=str(key))))
    assert server.expose.startswith("https://")
    pool.start_sync()
    assert tls_text(server, cert) == "hello"
    certificate(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        tls_text(server, cert)
    pool.restart_sync()
    assert tls_text(server, cert) == "hello"


def test_the_default_certificate_serves_those_that_ask_for_tls(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    made = PoolConfig([config(tls=True)])
    made.set_default_tls(TLSConfig(cert=str(cert), key=str(key)))
    pool = made.pool()
    pool.start_sync()
    text = tls_text(pool[next(iter(pool))], cert)
    twin = pool.clone()
    pool.stop_sync()
    twin.start_sync()
    again = tls_text(twin[next(iter(twin))], cert)
    twin.stop_sync()
    assert (text, again) == ("hello", "hello")


def test_tls_without_any_certificate_never_becomes_plain_text(pool: Pool) -> None:
    server = pool.store_new(config(tls=True))
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    assert "asks for TLS, and there is no default" in str(caught.value)
    assert refused(server.bind)


def test_a_certificate_that_is_gone_is_the_servers_failure(pool: Pool, tmp_path: Path) -> None:
    pool.store_new(config(tls=TLSConfig(cert=str(tmp_path / "gone.pem"))))
    with pytest.raises(PoolStartError) as caught:
        pool.start_sync()
    assert "gone.pem" in caught.value.exceptions[0].message


# Two pools, one address.


def test_an_address_that_another_pool_of_this_process_serves_is_named(pool: Pool) -> None:
    first = pool.store_new(config("first"))
    pool.start_sync()
    twin = pool.clone()
    with pytest.raises(PoolStartError) as caught:
        twin.start_sync()
    assert "in use by 'first' of this process" in caught.value.exceptions[0].message
    assert get(first.bind).text == "hello"
    pool.stop_sync()
    twin.start_sync()
    assert get(first.bind).text == "hello"
    twin.stop_sync()


def test_a_given_runner_keeps_its_loop_as_long_as_it_lives() -> None:
    runner: InlineRunner | None = InlineRunner()
    pool = Pool([config()], runner=runner)
    pool.start_sync()
    pool.stop_sync()
    wait_until(lambda: len(engine_threads()) == 1)  # that of an earlier pool may still be ending
    pool.start_sync()
    assert repr(runner) == "<InlineRunner 1 workers on 1 listeners>"
    pool.stop_sync()
    del pool, runner
    wait_until(lambda: not engine_threads())


def test_closing_the_runner_ends_what_runs_on_it() -> None:
    runner = InlineRunner()
    pool = Pool([config()], runner=runner)
    pool.start_sync()
    server = next(iter(pool.values()))
    from poolctl.pool import loop_thread

    loop_thread.run_sync(runner.aclose())
    assert refused(server.bind)
    wait_until(lambda: server.state is State.STOPPED)


# Monitors.


def test_a_monitor_measures_and_counts(pool: Pool) -> None:
    server = pool.store_new(config())
    before = server.monitor()
    assert (before.status, before.latency, before.rises, before.sli) == (Status.KO, None, 0, 0.0)
    pool.start_sync()
    running = server.monitor()
    assert running.latency is not None
    assert running.latency.total_seconds() < 20
    assert (running.status, running.rises, running.falls, running.message) == (Status.OK, 1, 0, "")
    assert running.rise.total_seconds() > 0
    assert running.fall.total_seconds() == 0
    pool.stop_sync()
    after = server.monitor()
    assert (after.status, after.rises, after.falls, after.message) == (Status.KO, 1, 1, "stopped")
    assert (after.rise, after.fall.total_seconds() > 0) == (running.rise, True)
    assert 0 < after.sli < 1
    assert after.uptime >= running.uptime
    assert repr(after) == f"<Monitor web ko, up {after.sli:.1%} (stopped)>"


# Forks.


def test_a_forked_child_holds_no_port_and_has_a_pool_that_is_stopped(pool: Pool) -> None:
    server = pool.store_new(config())
    pool.start_sync()
    connection = socket.create_connection(("127.0.0.1", port_of(server)), timeout=60)
    told, tell = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child is not measured
        status = 1
        try:
            tell.send((server.state, pool.is_running, server.pids))
            other = Pool([ServerConfig(name="child", bind=f"127.0.0.1:{claim_port()}", app=hello)])
            other.start_sync()
            tell.send(get(next(iter(other))).text)
            other.stop_sync()
            tell.send("waiting")
            signal.pause()
        finally:
            os._exit(status)
    try:
        assert told.recv() == (State.STOPPED, False, [])
        assert told.recv() == "hello"
        assert told.recv() == "waiting"
        assert get(server.bind).text == "hello", "the parent serves on"
        pool.stop_sync()
        assert refused(server.bind), "the child holds no listener"
        connection.settimeout(60)
        assert connection.recv(1) == b"", "nor a connection"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        connection.close()


def test_an_object_that_makes_the_application_is_called_by_us(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    server = pool.store_new(config(app=make_hello, factory=True))
    nothing = pool.store_new(config("nothing", app=lambda: None, factory=True))
    with pytest.raises(PoolStartError) as failed:
        pool.start_sync()
    (child,) = failed.value.exceptions
    assert child.name == nothing.name
    assert "is no ASGI or WSGI application but None" in child.message
    assert get(server.bind).text == "made"
    assert "factory" not in caplog.text, "uvicorn had to find out by itself"


def test_env_file_next_to_the_file_is_left_to_the_program(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("A=1\n")
    file = tmp_path / "pool.toml"
    file.write_text(
        f'[[server]]\nname = "a"\nbind = "127.0.0.1:{claim_port()}"\napp = "tests.asgi_apps:hello"\n'
    )
    made = PoolConfig.load(file).pool()
    made.start_sync()
    assert made.is_running
    made.stop_sync()


def test_wsgi_application_may_be_given_as_an_object(pool: Pool) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [threading.current_thread().name.encode()]

    server = pool.store_new(config(app=app))
    made = pool.store_new(config("made", app=lambda: app, factory=True, http={"threads": 1}))
    wrong = pool.store_new(config("wrong", app=app, interface="asgi"))
    with pytest.raises(PoolStartError) as failed:
        pool.start_sync()
    assert [child.name for child in failed.value.exceptions] == [wrong.name]
    assert {get(each.bind).text for each in (server, made)} == {"wsgi"}
    pool.stop_sync()
    pool.clean()
    gc.collect()
    wait_until(lambda: "wsgi" not in {each.name for each in threading.enumerate()})
