"""What applications read of a client: the same whether its connection is passed to them or its requests are proxied."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any, NamedTuple

import pytest
from websockets.asyncio.client import connect

from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import write_table
from poolctl.worker import tally
from poolctl.worker.serving.worker_routes import GatewayRoutes
from tests.asgi_apps import lifespan
from tests.features.gateway.passing_stage import Stage
from tests.serving import ENGINES, ZTTP, Client, Engine, Pair, blank_page, served

PASSED, PROXIED = "passed", "proxied"
ABOUT_CLIENT = ("forward", "x-f", "x_f", "x-real", "x_real", "x-poolctl", "x_poolctl", "proxy")
OWN_REPORT = {
    "x-forwarded-for": "127.0.0.1",
    "x-forwarded-proto": "http",
    "x-forwarded-host": "a.test",
    "forwarded": 'for=127.0.0.1;proto=http;host="a.test"',
}


_LOOKS_LIKE_IT = {"x-forward": "1", "forwarded-for": "2", "x-realip": "3", "x-poolctlx": "4"}


class Case(NamedTuple):
    """Lines that a client sends, and what the application reads of them: from any client, and from a trusted one."""

    lines: tuple[str, ...]
    read: dict[str, str]
    from_trusted: dict[str, str]


def replaced(*lines: str, **from_trusted: str) -> Case:
    """Lines of which nothing arrives from any client, and from a trusted one these fields of the report."""
    named = {name.replace("_", "-"): value for name, value in from_trusted.items()}
    return Case(lines, OWN_REPORT, OWN_REPORT | named)


CASES = {
    "nothing": replaced(),
    "x-forwarded-for": replaced("X-Forwarded-For: 1.1.1.1", x_forwarded_for="1.1.1.1, 127.0.0.1"),
    "several of them": replaced(
        "x-forwarded-for: 1.1.1.1, 2.2.2.2",
        "X-FORWARDED-FOR:  3.3.3.3 ",
        x_forwarded_for="1.1.1.1, 2.2.2.2, 3.3.3.3, 127.0.0.1",
    ),
    "x-forwarded-proto": replaced("X-Forwarded-Proto: https", x_forwarded_proto="https"),
    "x-forwarded-host": replaced("X-Forwarded-Host: evil.test", x_forwarded_host="evil.test"),
    "forwarded": replaced(
        "Forwarded: for=1.1.1.1;host=evil.test",
        forwarded='for=1.1.1.1;host=evil.test, for=127.0.0.1;proto=http;host="a.test"',
    ),
    "others of that kind": replaced(
        "X-Forwarded-Port: 1", "X-Forwarded-User: root", "x-forwarded-prefix: /", "X-Forwarded-: 1"
    ),
    "real ip": replaced("X-Real-IP: 1.1.1.1", "x-real_ip: 1.1.1.1", "X_REAL_IP: 1.1.1.1"),
    "underscores": replaced(
        "X_Forwarded_For: 1.1.1.1",
        "X-Forwarded_For: 1.1.1.1",
        "x_forwarded-proto: https",
        "X_Poolctl_Route: a",
    ),
    "of the gateway": replaced("X-Poolctl-Route: other", "x-poolctl-upstream: b", "X-POOLCTL-ANYTHING: c"),
    "other characters": replaced("X-Forwarded-For.: 1", "X-Forwarded-~: 1"),
    "CGI's proxy": replaced("Proxy: http://evil.test"),
    "names that only look like it": Case(
        ("X-Forward: 1", "Forwarded-For: 2", "X-Realip: 3", "X-Poolctlx: 4"),
        _LOOKS_LIKE_IT | OWN_REPORT,
        _LOOKS_LIKE_IT | OWN_REPORT,
    ),
}


class Reflecting:
    """Answers with the headers about the client that it was called with."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        text = json.dumps(about_client(scope["headers"]))
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": text})
            await send({"type": "websocket.close"})
            return
        while (await receive()).get("more_body"):
            continue
        length = (b"content-length", b"%d" % len(text))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": text.encode()})


def about_client(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    found = [(name.decode(), value.decode()) for name, value in headers]
    chosen = [each for each in found if each[0].startswith(ABOUT_CLIENT)]
    assert len(dict(chosen)) == len(chosen), "a field twice"
    return dict(chosen)


class Way(NamedTuple):
    """A gateway's port, and the page on which the worker behind it counts."""

    port: int
    page: memoryview

    @property
    def passed(self) -> int:
        """How many requests have come to the worker with a connection of their client."""
        return self.page[tally.claim_route_slot(self.page, "app")]

    async def read(self, client: Client, *lines: str, host: str = "a.test") -> dict[str, str]:
        """What the application reads of a request with these lines."""
        client.writer.write(request(*lines, host=host))
        return await answered(client)


def request(*lines: str, host: str = "a.test") -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode()


async def answered(client: Client) -> dict[str, str]:
    status, _, body = await client.answer()
    assert status == 200
    found: dict[str, str] = json.loads(body)
    return found


@asynccontextmanager
async def way_to_worker(stage: Stage, engine: Engine, way: str) -> AsyncIterator[Way]:
    async with AsyncExitStack() as stack:
        pair, routes, page = Pair(), GatewayRoutes("app"), blank_page()
        stack.callback(pair.close)
        stack.callback(routes.replace_route_table, [])
        worker = await stack.enter_async_context(
            served(engine, Reflecting(), adoption=pair.worker(), routes=routes, tally=page)
        )
        if way == PASSED:
            route = Route(alias="app", to=(Target(server="app"),))
            stage.edge.passing.set_pair("app", pair.give.dup(), tls=False)
        else:
            route = Route(alias="app", to=(Target(url=f"http://127.0.0.1:{worker.port}"),))
        stage.routes(route)
        stage.apply("app")
        fd = write_table([route], 1)
        routes.replace_route_table([fd, stage.back.fileno()])
        os.close(fd)
        yield Way(stage.listener.getsockname()[1], page)


def play(
    engine: Engine, way: str, scene: Callable[[Way], Coroutine[Any, Any, None]], **settings: Any
) -> None:
    async def on_stage() -> None:
        with closing(Stage(**settings)) as stage:
            async with way_to_worker(stage, engine, way) as found:
                await scene(found)

    engine.run(on_stage())


@pytest.fixture(params=[*ENGINES, *ZTTP], ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture(params=[PASSED, PROXIED])
def way(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.mark.parametrize(
    "trusted", [(), ("10.0.0.0/8",), ("127.0.0.1",)], ids=lambda each: "".join(each) or "none"
)
def test_application_reads_what_is_known_of_the_client_and_nothing_that_it_says(
    engine: Engine, way: str, trusted: tuple[str, ...]
) -> None:
    believed = trusted == ("127.0.0.1",)

    async def scene(to: Way) -> None:
        kept = await Client.connect(to.port)
        for number, (name, case) in enumerate(CASES.items()):
            expected = case.from_trusted if believed else case.read
            first = await Client.connect(to.port)
            assert await to.read(first, *case.lines) == expected, name
            # A head that was seen before, and a later request.
            assert await to.read(first, *case.lines) == expected, name
            assert await to.read(kept, *case.lines) == expected, name
            again = await Client.connect(to.port)
            assert await to.read(again, *case.lines) == expected, name
            assert to.passed == (4 * (number + 1) if way == PASSED else 0)
        # In one piece: each has its own.
        sent = [case for case in CASES.values() for _ in range(2)]
        kept.writer.write(b"".join(request(*case.lines) for case in sent))
        found = [await answered(kept) for _ in sent]
        assert found == [case.from_trusted if believed else case.read for case in sent]

    play(engine, way, scene, trusted_proxies=trusted)


def test_host_of_each_request_is_reported(engine: Engine, way: str) -> None:
    async def scene(to: Way) -> None:
        client = await Client.connect(to.port)
        for host in ("a.test", "b.test:80", "a.test", "[::1]:80"):
            found = await to.read(client, "X-Forwarded-For: 1.1.1.1", host=host)
            assert found["x-forwarded-host"] == host
            assert found["forwarded"] == f'for=127.0.0.1;proto=http;host="{host}"'

    play(engine, way, scene)


def test_websockets_are_no_way_around(engine: Engine, way: str) -> None:
    async def scene(to: Way) -> None:
        said = {"X-Forwarded-For": "1.1.1.1", "X_Real_IP": "2.2.2.2", "X-Poolctl-Route": "other"}
        for _ in range(2):
            async with connect(f"ws://127.0.0.1:{to.port}/", additional_headers=said, proxy=None) as socket:
                found = json.loads(await socket.recv())
            host = f"127.0.0.1:{to.port}"
            named = {"x-forwarded-host": host, "forwarded": f'for=127.0.0.1;proto=http;host="{host}"'}
            assert found == OWN_REPORT | named

    play(engine, way, scene)


def test_connections_that_come_without_the_gateway_are_left_as_they_are(engine: Engine) -> None:
    async def scene() -> None:
        async with served(engine, Reflecting()) as worker:
            client = await Client.connect(worker.port)
            client.writer.write(request("X-Forwarded-For: 1.1.1.1"))
            assert await answered(client) == {"x-forwarded-for": "1.1.1.1"}

    engine.run(scene())
