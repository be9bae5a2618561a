"""What applications see of requests that the gateway has forwarded: route, client, scheme and path."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from poolctl.gateway.routes import (
    Route,
    Target,
    registry_of,
    try_get_route,
    try_get_table,
    upstream_name,
    upstream_url,
    write_table,
)
from poolctl.routing.context import CONTEXT_FIELD, context_value
from poolctl.worker.serving.route_context import RouteContexts
from tests.serving import PLAIN, Client, Engine, Pair, listener, served

KEY = "0123456789abcdef"
ROUTE = Route(alias="users über", host="users.test", path="/v1", to=(Target(server="one"),))
OTHER = Route(alias="other", to=(Target(server="one"),))
GOOD = f"{CONTEXT_FIELD}: {context_value('one', KEY, ROUTE.alias)}"
FORGED = f"{CONTEXT_FIELD}: {context_value('one', 'guessed', ROUTE.alias)}"


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def contexts(*listeners: socket.socket, secure: bool = False, **options: Any) -> RouteContexts:
    """A worker's view of the gateway that sends it requests of ROUTE."""
    made = RouteContexts("one", listeners, secure=secure)
    replace(made, ROUTE, OTHER, **options)
    return made


def replace(contexts: RouteContexts, *routes: Route, key: str = KEY, trusted: tuple[str, ...] = ()) -> None:
    fd = write_table(routes, 5)
    contexts.replace_routes([fd], key, trusted)
    os.close(fd)


async def scope_of_request(engine: Engine, contexts: RouteContexts, *lines: str, **options: Any) -> Any:
    """The scope that the application sees of the second request with these headers on a connection."""
    config = {"proxy_headers": False, **options}
    async with served(engine, routes=contexts, config=config) as it:
        client = await Client.connect(it.port)
        for _ in range(2):
            assert (await client.get("/items", *lines))[0] == 200
        return it.app.scopes[-1]


LINES = {
    "the gateway's": ([GOOD], True),
    "a client's": ([FORGED], False),
    "a client's and the gateway's": ([FORGED, GOOD], True),
    "the gateway's and a client's": ([GOOD, FORGED], True),
    "without a key": ([f"{CONTEXT_FIELD}: {context_value('one', '', ROUTE.alias)}"], False),
    "an empty one": ([f"{CONTEXT_FIELD}:"], False),
    "in other cases": ([GOOD.replace("x-poolctl", "X-PoolCTL")], True),
    "a key alone": ([f"{CONTEXT_FIELD}: {KEY}"], False),
    "a name alone": ([f"{CONTEXT_FIELD}: one"], False),
    "an unknown route": ([f"{CONTEXT_FIELD}: {context_value('one', KEY, 'gone')}"], False),
    "none": ([], False),
}


@pytest.mark.parametrize("case", list(LINES))
async def test_application_sees_the_route_that_the_gateway_names_and_never_the_header(
    any_engine: Engine, case: str
) -> None:
    lines, known = LINES[case]
    with listener() as own:
        scope = await scope_of_request(any_engine, contexts(own), *lines)
        url = f"http://127.0.0.1:{own.getsockname()[1]}"
    assert [name for name, _ in scope["headers"]] == [b"host"]
    assert try_get_route(scope) == (ROUTE if known else None)
    assert upstream_name(scope) == ("one" if known else "")
    assert upstream_url(scope) == (url if known else "")
    assert [each.alias for each in registry_of(scope).http] == (["users über", "other"] if known else [])


async def test_worker_without_a_key_believes_no_request(any_engine: Engine) -> None:
    line = f"{CONTEXT_FIELD}: {context_value('one', '', ROUTE.alias)}"
    scope = await scope_of_request(
        any_engine, contexts(key=""), line, "x-forwarded-for: 192.0.2.7", "x-forwarded-proto: https"
    )
    assert try_get_route(scope) is None
    assert (scope["scheme"], scope["client"][0]) == ("http", "127.0.0.1")
    assert CONTEXT_FIELD.encode() not in dict(scope["headers"])


async def test_requests_of_two_clients_on_one_connection_and_one_that_is_not_the_gateways_are_told_apart(
    any_engine: Engine,
) -> None:
    requests = [
        [GOOD, "x-forwarded-for: 192.0.2.7", "x-forwarded-proto: https"],
        [GOOD, "x-forwarded-for: 192.0.2.8", "x-forwarded-proto: http"],
        ["x-forwarded-for: 192.0.2.9", "x-forwarded-proto: https"],
    ]

    async with served(any_engine, routes=contexts(), config={"proxy_headers": False}) as it:
        client = await Client.connect(it.port)
        for lines in requests:
            assert (await client.get("/items", *lines))[0] == 200
        seen = [(each["client"][0], each["scheme"], try_get_route(each)) for each in it.app.scopes]
    assert seen == [("192.0.2.7", "https", ROUTE), ("192.0.2.8", "http", ROUTE), ("127.0.0.1", "http", None)]


FORWARDED = {
    "a client": (["x-forwarded-for: 192.0.2.7"], (), ("192.0.2.7", 0)),
    "a client with its port": (["x-forwarded-for: 192.0.2.7:81"], (), ("192.0.2.7", 81)),
    "IPv6": (["x-forwarded-for: 2001:db8::1"], (), ("2001:db8::1", 0)),
    "IPv6 in brackets": (["x-forwarded-for: [2001:db8::1]"], (), ("2001:db8::1", 0)),
    "IPv6 with its port": (["x-forwarded-for: [2001:db8::1]:82"], (), ("2001:db8::1", 82)),
    "a proxy that is not trusted": (["x-forwarded-for: 192.0.2.7, 10.0.0.1"], (), ("10.0.0.1", 0)),
    "a trusted proxy": (["x-forwarded-for: 192.0.2.7, 10.0.0.1"], ("10.0.0.0/8",), ("192.0.2.7", 0)),
    "a client behind a trusted proxy that claims to be another": (
        ["x-forwarded-for: 192.0.2.1, 192.0.2.7,10.0.0.1"],
        ("unix", "10.0.0.0/8"),
        ("192.0.2.7", 0),
    ),
    "trusted proxies alone": (["x-forwarded-for: 10.0.0.2, 10.0.0.1"], ("10.0.0.0/8",), ("10.0.0.2", 0)),
    "a proxy that does not know its client": (
        ["x-forwarded-for: 192.0.2.7, unknown, 10.0.0.1"],
        ("10.0.0.1",),
        ("10.0.0.1", 0),
    ),
    "a Unix socket of a trusted proxy": (["x-forwarded-for: 192.0.2.7"], ("unix",), ("192.0.2.7", 0)),
    "a Unix socket of a trusted proxy that does not know its client": (
        ["x-forwarded-for: unknown"],
        ("unix",),
        None,
    ),
    "several lines": (
        ["x-forwarded-for: 192.0.2.7", "x-forwarded-for: 10.0.0.1"],
        ("10.0.0.1",),
        ("192.0.2.7", 0),
    ),
    "every proxy trusted": (["x-forwarded-for: 192.0.2.7, 10.0.0.1"], ("*",), ("10.0.0.1", 0)),
    "a Unix socket": ([], (), None),
}


@pytest.mark.parametrize("case", list(FORWARDED))
def test_client_is_the_last_address_that_is_no_trusted_proxy(case: str) -> None:
    lines, trusted, client = FORWARDED[case]
    scope = PLAIN.run(scope_of_request(PLAIN, contexts(trusted=trusted), GOOD, *lines))
    assert scope["client"] == client


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [
        ("https", "https"),
        ("http", "http"),
        ("https, http", "https"),
        ("HTTPS", "https"),
        ("wss", "https"),
        ("ws", "http"),
        ("ftp", "http"),
    ],
)
def test_scheme_is_that_of_the_clients_request(proto: str, scheme: str) -> None:
    scope = PLAIN.run(scope_of_request(PLAIN, contexts(), GOOD, f"x-forwarded-proto: {proto}"))
    assert scope["scheme"] == scheme


@pytest.mark.parametrize(
    ("prefix", "configured", "root", "path", "raw"),
    [
        ("/api", "", "/api", "/api/items", b"/api/items"),
        ("/caf%C3%A9", "", "/café", "/café/items", b"/caf%C3%A9/items"),
        ("/api", "/shop", "/shop", "/shop/items", b"/shop/items"),
        ("", "", "", "/items", b"/items"),
    ],
)
def test_path_begins_with_the_prefix_that_the_gateway_has_removed_unless_the_server_has_a_root_path(
    prefix: str, configured: str, root: str, path: str, raw: bytes
) -> None:
    lines = [f"x-forwarded-prefix: {prefix}"] if prefix else []
    scope = PLAIN.run(scope_of_request(PLAIN, contexts(), GOOD, *lines, root_path=configured))
    assert (scope["root_path"], scope["path"], scope["raw_path"]) == (root, path, raw)


async def test_websocket_has_route_client_and_prefix_and_not_the_header(any_engine: Engine) -> None:
    name, _, value = GOOD.partition(": ")
    headers = {
        name: value,
        "X-Forwarded-For": "192.0.2.7",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Prefix": "/api",
    }

    async with (
        served(any_engine, routes=contexts()) as it,
        connect(f"ws://127.0.0.1:{it.port}/v1", additional_headers=headers),
    ):
        await it.app.under_way.wait()
    (scope,) = it.app.scopes
    assert try_get_route(scope) == ROUTE
    assert (scope["scheme"], scope["client"]) == ("wss", ("192.0.2.7", 0))
    assert (scope["root_path"], scope["path"]) == ("/api", "/api/v1")
    assert CONTEXT_FIELD.encode() not in dict(scope["headers"])


async def test_context_is_made_once_for_each_table_and_the_last_one_ends_with_the_gateway(
    any_engine: Engine,
) -> None:
    known = contexts()
    async with served(any_engine, routes=known) as it:
        client = await Client.connect(it.port)
        for routes in ((ROUTE,), (ROUTE, OTHER)):
            replace(known, *routes)
            for _ in range(2):
                await client.get("/", GOOD)
        first, again, second, _ = it.app.scopes
        assert first["extensions"]["poolctl.route"] is again["extensions"]["poolctl.route"]
        # Each reads the newest.
        assert [len(try_get_table(scope) or ()) for scope in (first, second)] == [2, 2]
        known.replace_routes([])
        await client.get("/", GOOD)
        assert try_get_route(it.app.scopes[-1]) is None
        assert try_get_table(first) is None
        assert len(registry_of(first).http) == 0


def test_descriptor_that_is_no_table_is_refused_and_the_present_table_stays() -> None:
    known = contexts()
    with open(os.devnull, "rb") as file, pytest.raises((OSError, ValueError)):
        known.replace_routes([file.fileno()], KEY)
    assert try_get_route(PLAIN.run(scope_of_request(PLAIN, known, GOOD))) == ROUTE


def test_url_of_a_server_is_where_clients_of_this_machine_reach_it(tmp_path: Path) -> None:
    def url(*listeners: socket.socket, secure: bool = False) -> str:
        known = contexts(*listeners, secure=secure)
        return upstream_url(PLAIN.run(scope_of_request(PLAIN, known, GOOD)))

    path = tmp_path / "sock"
    with socket.create_server(("0.0.0.0", 0)) as anywhere, socket.socket(socket.AF_UNIX) as unix:
        port = anywhere.getsockname()[1]
        unix.bind(str(path))
        assert url(anywhere) == f"http://127.0.0.1:{port}"
        assert url(anywhere, unix, secure=True) == f"https://127.0.0.1:{port}"
        assert url(unix) == f"unix:{path}"
    assert url(anywhere) == ""
    if socket.has_ipv6:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
            assert url(six) == f"http://[::1]:{six.getsockname()[1]}"


SHORT = {"timeout_keep_alive": 0}


async def test_idle_connection_of_the_gateway_stays_open_and_that_of_a_client_is_closed(
    any_engine: Engine,
) -> None:
    async with served(any_engine, routes=contexts(), config=SHORT) as it:
        gateway, client = await Client.connect(it.port), await Client.connect(it.port)
        assert (await gateway.get("/", GOOD))[0] == 200
        assert (await client.get("/", FORGED))[0] == 200
        assert await client.at_end()
        assert (await gateway.get("/", GOOD))[0] == 200
        it.server.stop()
        assert await gateway.at_end()


@pytest.mark.loop(run=PLAIN.run)
async def test_idle_connection_of_the_gateway_closes_with_a_drain_that_cannot_hand_it_over() -> None:
    async with served(PLAIN, routes=contexts()) as it:
        gateway = await Client.connect(it.port)
        assert (await gateway.get("/", GOOD))[0] == 200
        it.server.drain()
        assert await gateway.at_end()


@pytest.mark.parametrize("resting", [False, True], ids=["drained", "drained while resting"])
def test_idle_connection_of_the_gateway_stays_open_in_workers_to_which_it_moves(
    pair: Pair, resting: bool
) -> None:
    async def scenario() -> None:
        options: Any = {"routes": contexts(), "config": SHORT}
        async with served(PLAIN, adoption=pair.worker(), **options) as first:
            gateway = await Client.connect(first.port)
            assert (await gateway.get("/", GOOD))[0] == 200
            if resting:
                first.server.set_in_rotation_or_drain(False)
            async with served(PLAIN, adoption=pair.worker(), **options) as second:
                first.server.drain(migrate=True)
                await first.running
                client = await Client.connect(second.port)
                await client.get("/")
                assert await client.at_end()
                # Handed over twice without a request between.
                async with served(PLAIN, adoption=pair.worker(), **options) as third:
                    second.server.drain(migrate=True)
                    await second.running
                    client = await Client.connect(third.port)
                    await client.get("/")
                    assert await client.at_end()
                    assert (await gateway.get("/", GOOD))[0] == 200
                    assert len(third.app.scopes) == 2

    PLAIN.run(asyncio.wait_for(scenario(), 30))
