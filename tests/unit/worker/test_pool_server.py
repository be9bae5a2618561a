"""PoolServer on both loops and with each parser: ready, stop, drain, limits, headers, probes, no tick."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from websockets.asyncio.client import connect

from poolctl.worker.serving.connection_balancer import create_peer_counts_page
from poolctl.worker.serving.http1_connection import H11Connection
from poolctl.worker.serving.pool_server import (
    PoolServer,
    StartupFailed,
    close_websocket_for_restart,
    connection_class,
    load_config,
)
from poolctl.worker.serving.route_context import RouteContexts
from poolctl.worker.serving.uvicorn_parts import H11Protocol
from poolctl.worker.worker_process import IdleTimer
from tests.asgi_apps import answer, lifespan
from tests.certificates import certificate
from tests.descriptors import open_descriptors
from tests.load.frames import CLOSE, PING, TEXT, frame, new_key
from tests.serving import (
    FAST,
    App,
    Client,
    Engine,
    Pair,
    Served,
    leaving,
    listener,
    served,
    turns,
    until,
)

SECONDS = {"drain_seconds": 30.0, "stop_seconds": 10.0}


class Uncancellable(App):
    """Ignores its cancellation, as a request does that waits for a thread; responds once `release` is set."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        self.under_way.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await self.release.wait()
        await answer(send, "late")


async def test_server_is_not_ready_before_its_startup_is_complete(any_engine: Engine) -> None:
    complete = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await complete.wait()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    ready: list[bool] = []
    server = PoolServer(
        uvicorn.Config(app, loop=any_engine.loop, http=any_engine.http, log_config=None), **SECONDS
    )
    with listener() as sock:
        running = asyncio.ensure_future(server.run([sock], lambda: ready.append(True)))
        await turns(20)
        assert not ready
        complete.set()
        await until(lambda: ready)
        server.stop()
        await running


async def test_stop_completes_the_request_in_progress(any_engine: Engine) -> None:
    async with served(any_engine) as (server, app, port, running):
        client = await Client.connect(port)
        await client.send("/slow")
        await app.under_way.wait()
        server.stop()
        server.stop()
        await turns(10)
        assert not running.done()
        app.release.set()
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (200, "close", b"ok")
        assert await client.at_end()
        await running
        assert app.events == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_requests_that_do_not_end_within_the_stop_are_cancelled(any_engine: Engine) -> None:
    async with served(any_engine, stop_seconds=0.1) as (server, app, port, running):
        client = await Client.connect(port)
        await client.send("/slow")
        await app.under_way.wait()
        server.stop()
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (503, "close", b"Service Unavailable")
        assert await client.at_end()
        await running
        assert app.events == ["lifespan.startup.complete", "cancelled", "lifespan.shutdown.complete"]


async def test_request_above_the_concurrency_gets_503_and_idle_connections_do_not_count(
    any_engine: Engine,
) -> None:
    async with served(any_engine, config={"limit_concurrency": 1}) as (_server, app, port, _running):
        busy, idle, third = [await Client.connect(port) for _ in range(3)]
        for client in (idle, third):
            assert (await client.get())[0] == 200
        await busy.send("/slow")
        await app.under_way.wait()
        assert (await idle.get())[0] == 503
        app.release.set()
        assert (await busy.answer())[0] == 200
        assert (await third.get())[0] == 200


@pytest.mark.parametrize(
    ("trusted", "headers", "client"),
    [
        ("unix", ["x-forwarded-for: 6.6.6.6, 9.9.9.9", "x-forwarded-proto: https"], ("9.9.9.9", 0)),
        ("unix", ["x-forwarded-proto: https"], None),
        ("127.0.0.1", ["x-forwarded-for: 9.9.9.9"], None),
    ],
)
@pytest.mark.loop(run=FAST.run)
async def test_proxy_on_a_unix_socket_is_believed_if_it_is_trusted(
    trusted: str, headers: list[str], client: Any, tmp_path: Path
) -> None:
    path, config = str(tmp_path / "s"), {"proxy_headers": True, "forwarded_allow_ips": [trusted]}
    routes = RouteContexts("web")
    async with served(FAST, config=config, listening=path, routes=routes) as (
        _server,
        app,
        _port,
        _running,
    ):
        await Client(*await asyncio.open_unix_connection(path)).get("/", *headers)
        (scope,) = app.scopes
        assert (scope["client"], scope["scheme"]) == (client, "https" if trusted == "unix" else "http")


@pytest.mark.loop(run=FAST.run)
async def test_client_of_a_port_without_an_address_is_not_one_of_a_unix_socket() -> None:
    async def discard(message: Any = None) -> None:
        pass

    config = {"proxy_headers": True, "forwarded_allow_ips": ["unix"]}
    async with served(FAST, config=config) as (server, app, port, _running):
        await (await Client.connect(port)).get("/", "x-forwarded-proto: https")
        # As of a client that has left before its connection was accepted.
        await server.config.loaded_app({**app.scopes[0], "client": None}, discard, discard)
        assert [each["scheme"] for each in app.scopes] == ["http", "http"]


async def test_request_in_a_thread_does_not_delay_its_503(any_engine: Engine) -> None:
    app = Uncancellable()
    async with served(any_engine, app, stop_seconds=0.1) as (server, _, port, running):
        client = await Client.connect(port)
        await client.send("/")
        await app.under_way.wait()
        server.stop()
        assert (await client.answer())[0] == 503
        assert await client.at_end()
        app.release.set()
        await running


async def test_application_that_is_cancelled_may_respond_itself(any_engine: Engine) -> None:
    app = Uncancellable()
    app.release.set()
    async with served(any_engine, app, stop_seconds=0.1) as (server, _, port, running):
        client = await Client.connect(port)
        await client.send("/")
        await app.under_way.wait()
        server.stop()
        assert (await client.answer())[0] == 200
        await running


@pytest.mark.parametrize("implementation", ["websockets-sansio", "wsproto"])
async def test_websocket_handshake_that_a_stop_interrupts_gets_503(
    any_engine: Engine, implementation: str
) -> None:
    app = Uncancellable()
    app.release.set()
    async with served(any_engine, app, config={"ws": implementation}) as (server, _, port, running):
        client = await Client.connect(port)
        key = "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="
        await client.send("/", "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", key)
        await app.under_way.wait()
        server.stop()
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (503, "close")
        assert await client.at_end()
        running.cancel()


async def test_silent_connection_does_not_delay_a_stop(any_engine: Engine) -> None:
    async with served(any_engine) as (server, _, port, running):
        silent = await Client.connect(port)
        talking = await Client.connect(port)
        await talking.get()
        server.stop()
        await asyncio.wait_for(running, 10)
        silent.close()
        talking.close()


async def test_connections_that_wait_in_the_backlog_survive_the_stop_of_one_server(
    any_engine: Engine,
) -> None:
    with listener() as sock:
        port = sock.getsockname()[1]
        config = {"loop": any_engine.loop, "http": any_engine.http, "log_config": None}
        for _ in range(10):
            app = App()
            server = PoolServer(uvicorn.Config(app, **config), **SECONDS)  # type: ignore[arg-type]
            clients = [await Client.connect(port) for _ in range(5)]
            for client in clients:
                await client.send("/", "connection: close")
            await server.run([sock], server.stop)
            successor = PoolServer(uvicorn.Config(App(), **config), **SECONDS)  # type: ignore[arg-type]
            running = asyncio.ensure_future(successor.run([sock], lambda: None))
            for client in clients:
                # Some were answered by the first, the others by its successor: none was lost.
                assert (await client.answer())[0] == 200
            successor.stop()
            await running


async def test_max_requests_lets_a_worker_drain(any_engine: Engine) -> None:
    async with served(any_engine, config={"limit_max_requests": 3}) as (_, _app, port, running):
        client = await Client.connect(port)
        connections = [(await client.get())[1].get("connection") for _ in range(3)]
        assert connections[:2] == [None, None]
        client.close()
        await running


def test_workers_reach_their_maximum_of_requests_at_different_times() -> None:
    limits = {
        PoolServer(
            uvicorn.Config(App(), limit_max_requests=1000), drain_seconds=1, stop_seconds=1
        ).limit_max_requests
        for _ in range(50)
    }
    assert len(limits) > 1
    assert all(limit is not None and 1000 <= limit <= 1100 for limit in limits)


async def test_headers_can_be_left_out(any_engine: Engine) -> None:
    async with served(any_engine, config={"date_header": False, "server_header": False}) as served_:
        client = await Client.connect(served_.port)
        _, headers, _ = await client.get()
        assert headers.keys() == {"content-length"}
        client.close()


async def refuse_to_start(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def fail_to_start(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("no database")


@pytest.mark.parametrize("app", [refuse_to_start, fail_to_start])
async def test_application_that_does_not_start_ends_the_server_with_uvicorns_status(
    any_engine: Engine, app: Any
) -> None:
    with pytest.raises(StartupFailed) as caught:
        async with served(any_engine, app, config={"lifespan": "on"}):
            pass
    assert caught.value.status == 3


async def test_end_of_a_request_wakes_no_task_of_the_server(any_engine: Engine) -> None:
    async with served(any_engine) as (server, _, port, _running):
        changed = server.server_state.changed
        client = await Client.connect(port)
        for _ in range(2):
            assert (await client.get())[0] == 200
            await turns()
            assert changed.is_set()  # a task that is woken by it clears it
        client.close()


@pytest.mark.loop(run=Engine("asyncio", "h11").run)
async def test_idle_worker_never_wakes_up() -> None:
    loop = asyncio.get_running_loop()
    async with served(Engine("asyncio", "h11")) as (_, _app, port, _running):
        client = await Client.connect(port)
        await client.get()
        turns = 0
        selector = loop._selector  # type: ignore[attr-defined]
        select = selector.select

        def counted(timeout: float | None = None) -> Any:
            nonlocal turns
            turns += 1
            return select(timeout)

        selector.select = counted
        await asyncio.sleep(0.5)
        del selector.select
        # One to go to sleep, one for our own timer. uvicorn's tick would be five more.
        assert turns <= 3
        client.close()


async def test_drain_keeps_an_idle_connection_whose_next_response_says_close(any_engine: Engine) -> None:
    async with served(any_engine) as (server, _, port, running):
        client = await Client.connect(port)
        assert "connection" not in (await client.get())[1]
        left: list[bool] = []
        server.on_left = lambda: left.append(True)
        server.drain()
        assert await client.stays_open(0.1)
        assert left == [True]
        status, headers, _ = await client.get()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.at_end()
        await running


async def test_drain_closes_an_idle_or_silent_connection_after_a_quiet_period(any_engine: Engine) -> None:
    async with served(any_engine) as (server, _, port, running):
        idle, silent = await Client.connect(port), await Client.connect(port)
        await idle.get()
        await until(lambda: len(server.server_state.connections) == 2)
        server.drain()
        assert await idle.stays_open(0.1)
        assert await idle.at_end()
        assert await silent.at_end()
        await running


async def test_response_in_progress_at_a_drain_is_the_last_one(any_engine: Engine) -> None:
    async with served(any_engine) as (server, app, port, running):
        client = await Client.connect(port)
        await client.send("/slow")
        await app.under_way.wait()
        server.drain()
        await leaving(server)
        app.release.set()
        status, headers, body = await client.answer()
        assert (status, headers["connection"], body) == (200, "close", b"ok")
        assert await client.at_end()
        await running


class SlowBody(App):
    """Begins its response at once, and sends the body once `release` is set."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await super().__call__(scope, receive, send)
            return
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        self.under_way.set()
        await self.release.wait()
        await send({"type": "http.response.body", "body": b"ok"})


async def test_response_begun_before_a_drain_leaves_time_for_one_more_request(any_engine: Engine) -> None:
    async with served(any_engine, SlowBody()) as (server, app, port, running):
        client = await Client.connect(port)
        await client.send("/")
        await app.under_way.wait()
        server.drain()
        await leaving(server)
        app.release.set()
        assert "connection" not in (await client.answer())[1]
        assert await client.stays_open(0.05)
        assert (await client.get())[1]["connection"] == "close"
        await asyncio.wait_for(running, 10)


async def test_no_connection_is_open_after_a_stop(any_engine: Engine) -> None:
    async with served(any_engine, SlowBody(), stop_seconds=0.05) as (server, app, port, running):
        client = await Client.connect(port)
        await client.send("/")
        await app.under_way.wait()
        server.stop()
        await leaving(server)
        app.release.set()
        assert "connection" not in (await client.answer())[1]
        await running
        async with asyncio.timeout(1):  # less than the quiet period
            assert await client.at_end()


async def test_stop_after_a_drain_leaves_requests_in_progress_their_time(any_engine: Engine) -> None:
    async with served(any_engine, drain_seconds=0.05, stop_seconds=5.0) as (server, app, port, running):
        client = await Client.connect(port)
        await client.send("/slow")
        await app.under_way.wait()
        server.drain()
        await asyncio.sleep(0.15)
        server.stop()
        await turns()
        app.release.set()
        assert (await client.answer())[0] == 200
        await asyncio.wait_for(running, 10)
        assert "cancelled" not in app.events


async def test_drain_answers_the_first_request_of_a_new_connection(any_engine: Engine) -> None:
    async with served(any_engine) as (server, _, port, running):
        client = await Client.connect(port)
        await until(lambda: server.server_state.connections)
        server.drain()
        await leaving(server)
        status, headers, _ = await client.get()
        assert (status, headers["connection"]) == (200, "close")
        await running


async def test_drain_ends_at_its_timeout(any_engine: Engine) -> None:
    async with served(any_engine, drain_seconds=0.1, stop_seconds=0.1) as (server, app, port, running):
        client = await Client.connect(port)
        await client.send("/slow")
        await app.under_way.wait()
        server.drain()
        await asyncio.wait_for(running, 10)
        assert "cancelled" in app.events


async def test_stop_ends_a_drain_early(any_engine: Engine) -> None:
    async with served(any_engine) as (server, _, port, running):
        client = await Client.connect(port)
        await client.get()
        server.drain()
        await leaving(server)
        assert not running.done()
        server.stop()
        await asyncio.wait_for(running, 10)
        assert await client.at_end()


WEBSOCKETS = ["websockets-sansio", "wsproto", "websockets"]


@pytest.fixture(params=WEBSOCKETS)
def websocket(request: pytest.FixtureRequest) -> dict[str, str]:
    """Each of uvicorn's WebSocket classes, as a part of its configuration."""
    if request.param == "wsproto":
        pytest.importorskip("wsproto")
    if request.param == "websockets":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("uvicorn.protocols.websockets.websockets_impl")
    return {"ws": request.param}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_websocket_is_closed_with_1012_after_a_drain(
    any_engine: Engine, websocket: dict[str, str]
) -> None:
    async with served(any_engine, config=websocket, drain_seconds=0.2) as (server, app, port, running):
        async with connect(f"ws://127.0.0.1:{port}/", proxy=None) as client:
            await app.under_way.wait()
            began = asyncio.get_running_loop().time()
            server.drain()
            await client.wait_closed()
            assert client.close_code == 1012
            assert asyncio.get_running_loop().time() - began >= 0.15
        await running


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_websocket_closes_when_its_client_has_replied(
    any_engine: Engine, websocket: dict[str, str]
) -> None:
    async with served(any_engine, config=websocket, drain_seconds=0.05) as (server, app, port, running):
        client = await Client.connect(port)
        await client.send("/", *upgrade(new_key()))
        await client.reader.readuntil(b"\r\n\r\n")
        server.drain()
        assert await client.reader.readexactly(4) == b"\x88\x02" + (1012).to_bytes(2, "big")
        assert await client.stays_open(0.1)
        for _ in range(50):
            client.writer.write(frame(PING, b"x"))
            client.writer.write(frame(TEXT, b"x" * 100))
        client.writer.write(frame(CLOSE, (1012).to_bytes(2, "big")))
        await client.reader.read()  # pongs, perhaps, and then the end
        client.close()
        await asyncio.wait_for(running, 10)
        assert app.events[1] == "disconnect 1012"


def upgrade(key: bytes) -> list[str]:
    return [
        "upgrade: websocket",
        "connection: upgrade",
        "sec-websocket-version: 13",
        f"sec-websocket-key: {key.decode()}",
    ]


async def ticking(scope: Any, receive: Any, send: Any) -> None:
    """One event, and then silence until the client has gone."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"data: tick\n\n", "more_body": True})
    if (await receive())["type"] == "http.disconnect":
        scope["state"]["over"].set()


@pytest.mark.parametrize("accept", ["text/event-stream", "*/*"])
async def test_drain_ends_event_streams_between_events_and_no_other_streams(
    any_engine: Engine, accept: str
) -> None:
    over = asyncio.Event()

    options = {"drain_seconds": 0.1, "stop_seconds": 0.1, "state": {"over": over}}
    async with served(any_engine, ticking, **options) as (server, _, port, running):
        client = await Client.connect(port)
        await client.send("/", f"accept: {accept}")
        await client.reader.readuntil(b"tick\n\n")
        server.drain()
        rest = await client.reader.read()
        assert rest.endswith(b"0\r\n\r\n") == (accept == "text/event-stream")
        assert over.is_set() == (accept == "text/event-stream")
        await asyncio.wait_for(running, 10)


@pytest.mark.parametrize("drains", [True, False])
async def test_stop_during_a_drain_or_with_a_successor_ends_event_streams_between_events(
    any_engine: Engine, pair: Pair, drains: bool
) -> None:
    options = {"drain_seconds": 10.0, "stop_seconds": 10.0, "state": {"over": asyncio.Event()}}
    async with served(any_engine, ticking, adoption=pair.worker(), **options) as (server, _, port, running):
        client = await Client.connect(port)
        await client.send("/", "accept: text/event-stream")
        await client.reader.readuntil(b"tick\n\n\r\n")
        if drains:
            server.drain()
            assert await client.stays_open(0.05)
        server.stop(migrate=not drains)
        rest = await asyncio.wait_for(client.reader.read(), 5)
        assert rest.endswith(b"0\r\n\r\n")
        await asyncio.wait_for(running, 10)


@pytest.mark.loop(run=Engine("asyncio", "h11").run)
async def test_keep_alive_timeout_spares_a_connection_with_an_unread_request() -> None:
    # Whether the loop has read it or not: a byte that has arrived is a request that has begun.
    async with served(Engine("asyncio", "h11")) as (server, _, port, _running):
        client = await Client.connect(port)
        await client.get()
        (lingering,) = server.server_state.connections
        lingering.transport.pause_reading()
        await client.send("/")
        await turns()
        lingering.timeout_keep_alive_handler()
        lingering.transport.resume_reading()
        assert (await client.answer())[0] == 200


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def asking(ours: socket.socket, context: ssl.SSLContext | None = None) -> Client:
    name = "anything" if context is not None else None
    return Client(*await asyncio.open_connection(sock=ours, ssl=context, server_hostname=name))


async def answers(served_: Served, seconds: float = 0.15) -> bool:
    client = await Client.connect(served_.port)
    await client.send()
    waiting = asyncio.ensure_future(client.answer())
    done, _ = await asyncio.wait({waiting}, timeout=seconds)
    if not done:
        waiting.cancel()
    return bool(done)


async def test_probe_is_answered_like_a_request_and_not_counted(
    any_engine: Engine, ends: tuple[socket.socket, socket.socket]
) -> None:
    config = {"limit_max_requests": 2, "timeout_keep_alive": 0}
    async with served(any_engine, config=config) as (server, app, port, running):
        told: list[bool] = []
        idleness = IdleTimer(server.server_state, 0.1, told.append)
        server.answer_probe({"kind": "http"}, ends[1])
        client = await asking(ends[0])
        for _ in range(5):
            status, headers, _ = await client.get()
            assert (status, headers["server"]) == (200, "uvicorn")
        assert app.scopes[-1]["server"] == ("127.0.0.1", port)
        assert app.scopes[-1]["client"] == ("127.0.0.1", 0)
        assert app.scopes[-1]["scheme"] == "http"
        assert server.server_state.total_requests == 0
        while not told:
            await client.get()
            await asyncio.sleep(0)
        assert told == [True]
        assert not running.done()
        idleness.stop()
        server.drain()
        assert await client.at_end()
        await running


async def test_probe_of_a_tls_server_may_use_tls_or_not(any_engine: Engine, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE

    async with served(any_engine, secure=context) as (server, app, _port, _running):
        for plain in (False, True):
            ours, theirs = socket.socketpair()
            server.answer_probe({"kind": "http", "plain": plain}, theirs)
            client = await asking(ours, None if plain else trusting)
            assert (await client.get())[0] == 200
            assert app.scopes[-1]["scheme"] == "https"
            client.close()


async def test_echo_is_answered_while_the_loop_runs(
    any_engine: Engine, ends: tuple[socket.socket, socket.socket]
) -> None:
    async with served(any_engine) as (server, app, _port, _running):
        server.answer_probe({"kind": "echo"}, ends[1])
        client = await asking(ends[0])
        client.writer.write(b"?")
        assert await client.reader.readexactly(1) == b"?"
        assert app.scopes == []


async def test_worker_that_starts_out_of_rotation_accepts_when_put_into_it(
    any_engine: Engine, ends: tuple[socket.socket, socket.socket]
) -> None:
    async with served(any_engine, resting=True) as it:
        it.server.answer_probe({"kind": "http"}, ends[1])
        assert (await (await asking(ends[0])).get())[0] == 200
        waiting = await Client.connect(it.port)
        await waiting.send()
        assert not await answers(it)
        it.server.accept_or_drain(True)
        assert (await waiting.answer())[0] == 200
        it.server.accept_or_drain(False)
        it.server.accept_or_drain(True)
        assert await answers(it, 10)


async def test_resting_worker_drains_its_clients_and_accepts_no_new_ones(any_engine: Engine) -> None:
    async with served(any_engine) as it:
        client = await Client.connect(it.port)
        await client.get()
        it.server.accept_or_drain(False)
        assert (await client.get())[1]["connection"] == "close"
        await turns()  # what connects meanwhile is still answered
        assert not await answers(it)
        it.server.set_in_rotation_or_drain(False)
        it.server.accept_or_drain(True)
        other = await Client.connect(it.port)
        assert (await other.get())[1]["connection"] == "close"  # out of rotation all the same
        it.server.set_in_rotation_or_drain(True)
        assert "connection" not in (await (await Client.connect(it.port)).get())[1]


async def test_worker_that_is_stopped_while_out_of_rotation_ends(any_engine: Engine) -> None:
    async with served(any_engine, resting=True) as (server, _app, _port, running):
        server.accept_or_drain(True)
        server.stop()
        await asyncio.wait_for(running, 15)
        assert server.servers == [] or not any(each.is_serving() for each in server.servers)


# Classes, certificates and pages with which a server begins.


class OfTomorrow(asyncio.Protocol):
    """uvicorn has no such class."""


class Extended(H11Protocol):
    """Not one that poolctl's class extends, though it has each known part."""


@pytest.mark.parametrize("unknown", [OfTomorrow, Extended, asyncio.Protocol])
def test_unknown_protocol_class_or_one_without_known_parts_is_used_as_it_is_with_a_warning(
    unknown: type[asyncio.Protocol], caplog: pytest.LogCaptureFixture
) -> None:
    assert connection_class(unknown) is unknown
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        f"uvicorn's {unknown.__name__} is not known to this version of poolctl: a restart closes its connections, "
        "and may lose requests that are on their way, and none is counted; "
        'set http.implementation to "h11" or "httptools"'
    )
    caplog.clear()
    assert connection_class(H11Protocol) is H11Connection
    assert caplog.records == []


TLS = {"password": None, "client_auth": "none", "min_version": "1.2", "ciphers": None}


def test_certificate_is_read_from_its_descriptors_which_are_closed(tmp_path: Path) -> None:
    fds = [os.open(path, os.O_RDONLY) for path in certificate(tmp_path)]
    config = load_config(uvicorn.Config(App(), log_config=None), None, TLS, fds)
    assert isinstance(config.ssl, ssl.SSLContext)
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_certificate_that_cannot_be_used_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.pem").write_text("nothing")
    fds = [os.open(tmp_path / "no.pem", os.O_RDONLY)] * 2
    with pytest.raises(StartupFailed, match="its certificate cannot be used: ") as caught:
        load_config(uvicorn.Config(App(), log_config=None), None, TLS, fds)
    assert capsys.readouterr().err == f"{caught.value}\n"
    assert caught.value.status == 3
    os.close(fds[0])


@pytest.mark.parametrize("early", [True, False])
def test_page_of_counts_is_used_until_the_server_leaves(any_engine: Engine, pair: Pair, early: bool) -> None:
    adoption = pair.worker()

    async def scenario() -> None:
        made = uvicorn.Config(App(), http=any_engine.http, loop=any_engine.loop, log_config=None)  # type: ignore[arg-type]
        server = PoolServer(made, adoption=adoption, **SECONDS)
        pages = [create_peer_counts_page() for _ in range(3)]
        if early:
            server.balance_by_counts_page(pages.pop())
            server.balance_by_counts_page(pages.pop())  # the one before is closed
        with listener() as sock:
            ready = asyncio.Event()
            running = asyncio.ensure_future(server.run([sock], ready.set))
            await ready.wait()
            if early:
                assert server.server_state.balancer is not None
            server.balance_by_counts_page(pages.pop())
            first = server.server_state.balancer
            assert first is not None
            while pages:
                server.balance_by_counts_page(pages.pop())
                assert server.server_state.balancer is not first
            server.stop()
            await running
            assert server.server_state.balancer is None
            server.balance_by_counts_page(create_peer_counts_page())
            assert server.server_state.balancer is None

    def pages_in_memory() -> list[str]:
        return [file for file in open_descriptors().values() if "memfd" in file]

    before = pages_in_memory()
    any_engine.run(scenario())
    assert pages_in_memory() == before


@pytest.mark.parametrize("adopts", [True, False])
async def test_page_that_cannot_be_used_is_closed(any_engine: Engine, pair: Pair, adopts: bool) -> None:
    async with served(any_engine, adoption=pair.worker() if adopts else None) as (server, *_):
        page = os.open(os.devnull, os.O_RDONLY) if adopts else create_peer_counts_page()
        server.balance_by_counts_page(page)
        assert server.server_state.balancer is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(page)


class Aborted:
    """A transport that records whether it was aborted."""

    aborted = False

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.aborted = True


def test_connection_that_fails_to_close_is_aborted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __init__(self) -> None:
            self.transport = Aborted()

        def shutdown(self) -> None:
            raise RuntimeError("no")

    broken = Broken()
    close_websocket_for_restart(broken)
    assert broken.transport.aborted
    (record,) = caplog.records
    assert record.getMessage() == "aborting a connection of class Broken"
    assert record.exc_info is not None
