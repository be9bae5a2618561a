"""PoolServer on both loops and with both parsers: ready, stop, limits, headers, no tick."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import uvicorn

from poolctl.worker.serving.pool_server import PoolServer, StartupFailed
from poolctl.worker.serving.worker_routes import Routes
from tests.asgi_apps import answer
from tests.serving import ENGINES, App, Client, Engine, listener, served, turns, until


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


@pytest.fixture(params=ENGINES, ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


def test_server_is_ready_when_its_startup_is_complete_and_it_accepts(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (_, app, port, _running):
            assert app.events == ["lifespan.startup.complete"]
            client = await Client.connect(port)
            assert (await client.get())[0] == 200
            client.close()

    engine.run(scenario())


def test_server_is_not_ready_before_its_startup_is_complete(engine: Engine) -> None:
    async def scenario() -> None:
        complete = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await complete.wait()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

        ready: list[bool] = []
        server = PoolServer(uvicorn.Config(app, loop=engine.loop, http=engine.http, log_config=None))
        with listener() as sock:
            running = asyncio.ensure_future(server.run([sock], lambda: ready.append(True)))
            await turns(20)
            assert not ready
            complete.set()
            await until(lambda: ready)
            server.stop()
            await running

    engine.run(scenario())


def test_stop_completes_the_request_in_progress(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, app, port, running):
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

    engine.run(scenario())


def test_stop_closes_idle_connections_at_once(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            client = await Client.connect(port)
            await client.get()
            server.stop()
            assert await client.at_end()
            await running

    engine.run(scenario())


def test_requests_that_do_not_end_within_the_stop_are_cancelled(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, stop_seconds=0.1) as (server, app, port, running):
            client = await Client.connect(port)
            await client.send("/slow")
            await app.under_way.wait()
            server.stop()
            status, headers, body = await client.answer()
            assert (status, headers["connection"], body) == (503, "close", b"Service Unavailable")
            assert await client.at_end()
            await running
            assert app.events == ["lifespan.startup.complete", "cancelled", "lifespan.shutdown.complete"]

    engine.run(scenario())


def test_request_in_a_thread_does_not_delay_its_503(engine: Engine) -> None:
    async def scenario() -> None:
        app = Uncancellable()
        async with served(engine, app, stop_seconds=0.1) as (server, _, port, running):
            client = await Client.connect(port)
            await client.send("/")
            await app.under_way.wait()
            server.stop()
            assert (await client.answer())[0] == 503
            assert await client.at_end()
            app.release.set()
            await running

    engine.run(scenario())


def test_application_that_is_cancelled_may_respond_itself(engine: Engine) -> None:
    async def scenario() -> None:
        app = Uncancellable()
        app.release.set()
        async with served(engine, app, stop_seconds=0.1) as (server, _, port, running):
            client = await Client.connect(port)
            await client.send("/")
            await app.under_way.wait()
            server.stop()
            assert (await client.answer())[0] == 200
            await running

    engine.run(scenario())


@pytest.mark.parametrize("implementation", ["websockets-sansio", "wsproto"])
def test_websocket_handshake_that_a_stop_interrupts_gets_503(engine: Engine, implementation: str) -> None:
    async def scenario() -> None:
        app = Uncancellable()
        app.release.set()
        async with served(engine, app, config={"ws": implementation}) as (server, _, port, running):
            client = await Client.connect(port)
            key = "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA=="
            await client.send(
                "/", "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", key
            )
            await app.under_way.wait()
            server.stop()
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (503, "close")
            assert await client.at_end()
            running.cancel()

    engine.run(scenario())


def test_silent_connection_does_not_delay_a_stop(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, running):
            silent = await Client.connect(port)
            talking = await Client.connect(port)
            await talking.get()
            server.stop()
            await asyncio.wait_for(running, 10)
            silent.close()
            talking.close()

    engine.run(scenario())


def test_connections_that_wait_in_the_backlog_survive_the_stop_of_one_server(engine: Engine) -> None:
    async def scenario() -> None:
        with listener() as sock:
            port = sock.getsockname()[1]
            config = {"loop": engine.loop, "http": engine.http, "log_config": None}
            for _ in range(10):
                app = App()
                server = PoolServer(uvicorn.Config(app, **config))  # type: ignore[arg-type]
                clients = [await Client.connect(port) for _ in range(5)]
                for client in clients:
                    await client.send("/", "connection: close")
                await server.run([sock], server.stop)
                successor = PoolServer(uvicorn.Config(App(), **config))  # type: ignore[arg-type]
                running = asyncio.ensure_future(successor.run([sock], lambda: None))
                for client in clients:
                    # Some were answered by the first, the others by its successor: none was lost.
                    assert (await client.answer())[0] == 200
                successor.stop()
                await running

    engine.run(scenario())


def test_listener_stays_open_after_the_server_has_ended(engine: Engine) -> None:
    async def scenario() -> None:
        server = PoolServer(uvicorn.Config(App(), loop=engine.loop, http=engine.http, log_config=None))
        with listener() as sock:
            await server.run([sock], server.stop)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1

    engine.run(scenario())


def test_accepted_connections_do_not_wait_for_acknowledgements(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, _running):
            client = await Client.connect(port)
            await client.get()
            (connection,) = server.server_state.connections
            sock = connection.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            client.close()

    engine.run(scenario())


def test_max_requests_lets_a_worker_drain(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, config={"limit_max_requests": 3}) as (_, _app, port, running):
            client = await Client.connect(port)
            connections = [(await client.get())[1].get("connection") for _ in range(3)]
            assert connections[:2] == [None, None]
            client.close()
            await running

    engine.run(scenario())


def test_date_header_is_the_current_time(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (_, _app, port, _running):
            client = await Client.connect(port)
            before = int(time.time())
            _, headers, _ = await client.get()
            date = parsedate_to_datetime(headers["date"]).timestamp()
            assert before <= date <= time.time()
            assert headers["server"] == "uvicorn"
            client.close()

    engine.run(scenario())


def test_headers_can_be_left_out(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, config={"date_header": False, "server_header": False}) as served_:
            client = await Client.connect(served_.port)
            _, headers, _ = await client.get()
            assert headers.keys() == {"content-length"}
            client.close()

    engine.run(scenario())


def test_state_reaches_the_application(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, state={"database": "here"}) as (_, app, port, _running):
            client = await Client.connect(port)
            await client.get()
            assert app.scopes[0]["state"] == {"database": "here"}
            client.close()

    engine.run(scenario())


def test_failed_startup_raises_with_uvicorns_exit_status(engine: Engine) -> None:
    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no database"})

    async def scenario() -> None:
        with pytest.raises(StartupFailed) as caught:
            async with served(engine, refuse):
                pass
        assert caught.value.status == 3

    engine.run(scenario())


def test_application_that_raises_at_startup_does_not_start_if_it_has_a_lifespan(
    engine: Engine,
) -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("no database")

    async def scenario() -> None:
        with pytest.raises(StartupFailed):
            async with served(engine, broken, config={"lifespan": "on"}):
                pass

    engine.run(scenario())


def test_end_of_a_request_wakes_no_task_of_the_server(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (server, _, port, _running):
            changed = server.server_state.changed
            client = await Client.connect(port)
            for _ in range(2):
                assert (await client.get())[0] == 200
                await turns()
                assert changed.is_set()  # a task that is woken by it clears it
            client.close()

    engine.run(scenario())


def test_scope_has_the_addresses_of_client_and_server(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine) as (_, app, port, _running):
            client = await Client.connect(port)
            assert (await client.get())[0] == 200
            assert app.scopes[0]["client"] == client.writer.get_extra_info("sockname")
            assert app.scopes[0]["server"] == ("127.0.0.1", port)
            client.close()

    engine.run(scenario())


def test_idle_worker_never_wakes_up() -> None:
    async def scenario() -> None:
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

    Engine("asyncio", "h11").run(scenario())


def test_server_with_routes_answers(engine: Engine) -> None:
    async def scenario() -> None:
        async with served(engine, routes=Routes("one")) as (_, _app, port, _running):
            client = await Client.connect(port)
            assert (await client.get())[0] == 200
            client.close()

    engine.run(scenario())
