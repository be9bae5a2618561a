"""The route of a request that the gateway has proxied, as its worker's application finds it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect

from poolctl.gateway.routes import try_get_route, try_get_table, upstream_name, upstream_url
from poolctl.routing.context import CONTEXT_FIELD, context_line
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import write_table
from poolctl.worker.serving.worker_routes import Routes
from tests.serving import ENGINES, ZTTP, Client, Engine, served

KEY = "0123456789abcdef"
ROUTE = Route(alias="users über", host="users.test", path="/v1", to=(Target(server="one"),))


@pytest.fixture(params=[*ENGINES, *ZTTP], ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture
def routes() -> Iterator[Routes]:
    found = Routes("one")
    fd = write_table([ROUTE], 5)
    found.renew([fd], context_key=KEY)
    os.close(fd)
    yield found
    found.renew([])


GOOD = context_line(ROUTE.alias, KEY)
FORGED = context_line(ROUTE.alias, "guessed")
LINES = {
    "the gateway's": (GOOD, True),
    "a client's": (FORGED, False),
    "a client's and the gateway's": (FORGED + GOOD, True),
    "the gateway's and a client's": (GOOD + FORGED, True),
    "without a key": (context_line(ROUTE.alias, ""), False),
    "an empty one": (f"{CONTEXT_FIELD}:\r\n".encode(), False),
    "in other cases": (GOOD.replace(b"x-poolctl", b"X-PoolCTL"), True),
    "a key alone": (f"{CONTEXT_FIELD}: {KEY}\r\n".encode(), False),
    "an unknown route": (context_line("gone", KEY), False),
    "bytes": (f"{CONTEXT_FIELD}: ".encode() + b"\xff\xfe users\r\n", False),
    "none": (b"", False),
}


@pytest.mark.parametrize("case", list(LINES))
def test_route_of_a_proxied_request_is_the_one_that_the_gateway_names(
    engine: Engine, routes: Routes, case: str
) -> None:
    lines, known = LINES[case]

    async def scenario() -> None:
        async with served(engine, routes=routes) as it:
            client = Client(*await asyncio.open_connection("127.0.0.1", it.port))
            for _ in range(2):
                client.writer.write(
                    b"GET /v1 HTTP/1.1\r\nHost: users.test\r\nX-Other: 1\r\n" + lines + b"\r\n"
                )
                await client.answer()
            client.writer.close()
        for scope in it.app.scopes:
            assert sorted(name for name, _ in scope["headers"]) == [b"host", b"x-other"]
            assert try_get_route(scope) == (ROUTE if known else None)
            assert upstream_name(scope) == ("one" if known else "")
            assert upstream_url(scope) == ""  # it was given no listener
            assert (try_get_table(scope) is not None) is known

    engine.run(scenario())


def test_route_of_a_proxied_websocket_is_the_one_that_the_gateway_names(
    engine: Engine, routes: Routes
) -> None:
    async def scenario() -> None:
        async with served(engine, routes=routes) as it:
            name, _, value = GOOD.decode().strip().partition(": ")
            async with connect(f"ws://127.0.0.1:{it.port}/v1", additional_headers={name: value}):
                await it.app.under_way.wait()
        (scope,) = it.app.scopes
        assert try_get_route(scope) == ROUTE
        assert CONTEXT_FIELD.encode() not in dict(scope["headers"])

    engine.run(scenario())


def test_worker_without_a_key_believes_no_request(engine: Engine, routes: Routes) -> None:
    routes.context_key = ""

    async def scenario() -> None:
        async with served(engine, routes=routes) as it:
            client = Client(*await asyncio.open_connection("127.0.0.1", it.port))
            client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n" + context_line(ROUTE.alias, "") + b"\r\n")
            await client.answer()
            client.writer.close()
        (scope,) = it.app.scopes
        assert try_get_route(scope) is None
        assert CONTEXT_FIELD.encode() not in dict(scope["headers"])

    engine.run(scenario())
