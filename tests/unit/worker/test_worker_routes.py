"""A worker's view of the gateway: the newest route table, the way back, and what applications see of a route."""

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
    try_get_route,
    try_get_table,
    upstream_name,
    upstream_url,
    write_table,
)
from poolctl.http.messages import CHUNKED
from poolctl.keeper import wire
from poolctl.keeper.connection_handover import Routed
from poolctl.routing.context import CONTEXT_FIELD, EXTENSION, context_line
from poolctl.worker import tally
from poolctl.worker.serving import worker_routes
from poolctl.worker.serving.request_records import RequestCounts
from poolctl.worker.serving.worker_routes import (
    ConnectionRoutingState,
    GatewayRoutes,
    add_route_to_scopes,
    app_with_route_in_scope,
    with_route_context,
)
from tests.serving import ENGINES, ZTTP, Client, Engine, blank_page, served

USERS = Route(alias="users", to=(Target(server="one"),))
HOST = (b"host", b"a")


def routes_with_table(*, key: str = "") -> GatewayRoutes:
    routes = GatewayRoutes("one")
    fd = write_table([USERS], 1)
    routes.replace_route_table([fd], context_key=key)
    os.close(fd)
    return routes


def counting(routes: GatewayRoutes) -> memoryview:
    """The page on which these routes' requests are counted from now on."""
    page = blank_page()
    routes.counts = RequestCounts(page)
    return page


def counted(page: memoryview, alias: str = "users") -> tuple[int, int]:
    """The requests on this route, and the errors among them."""
    return page[tally.claim_route_slot(page, alias)], page[tally.error_slot(page, alias) or 0]


def scope_of(**keys: Any) -> dict[str, Any]:
    return {"type": "http", "scheme": "http", "client": ("10.0.0.1", 5), "headers": [HOST]} | keys


class Listening:
    """Counts how often it was to search for a table again."""

    def __init__(self) -> None:
        self.looks = 0

    def process_held(self) -> None:
        self.looks += 1


class App:
    """Answers with the statuses, or fails after them; keeps the scopes it was called with."""

    def __init__(self, *statuses: int, error: Exception | None = None) -> None:
        self.statuses = statuses
        self.error = error
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        for status in self.statuses:
            await send({"type": "http.response.start", "status": status})
        await send({"type": "http.response.body"})
        if self.error is not None:
            raise self.error


def ask(app: Any, scope: dict[str, Any]) -> list[Any]:
    """What the application sends when it is called with this scope."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def call() -> None:
        await app(scope, None, send)

    asyncio.run(call())
    return sent


def test_application_sees_the_newest_table_and_an_older_one_stays_readable() -> None:
    routes = GatewayRoutes("one")
    scope = {"extensions": {EXTENSION: routes.scope_context(USERS)}}
    assert try_get_table(scope) is None
    seen = []
    for generation in (1, 2):
        fd = write_table([USERS], generation)
        routes.replace_route_table([fd])
        os.close(fd)
        seen.append(try_get_table(scope))
    routes.replace_route_table([])
    assert try_get_table(scope) is None
    assert [(each.generation, len(each), each.by_alias("users") is not None) for each in seen if each] == [
        (1, 1, True),
        (2, 1, True),
    ]


def test_renewal_replaces_the_gateways_end_only_when_it_is_given_or_the_gateway_has_ended() -> None:
    routes = GatewayRoutes("one")
    assert (routes.ended, routes.keeps, routes.gateway) == (False, True, None)
    ours, theirs = wire.pair()
    table = write_table([USERS], 1)
    with ours, theirs:
        routes.replace_route_table([table, ours.fileno()], keeps=False, context_key="k")
        first = routes.gateway
        assert first is not None
        assert first.fileno() != ours.fileno(), "the caller keeps its own"
        assert not os.get_inheritable(first.fileno())
        assert (routes.ended, routes.keeps, routes.context_key) == (False, False, "k")
        routes.replace_route_table([table])
        assert (routes.gateway, routes.keeps, routes.context_key) == (first, True, "")
        routes.replace_route_table([table, ours.fileno()])
        assert routes.gateway is not first
        assert first.fileno() < 0
        second = routes.gateway
        routes.replace_route_table([])
        assert second is not None
        assert (second.fileno(), routes.gateway, routes.ended, routes.table) == (-1, None, True, None)
        assert ours.fileno() > 0
    routes.close_gateway_socket()
    os.close(table)


def test_connections_that_wait_look_once_after_each_table() -> None:
    routes, waiting = GatewayRoutes("one"), Listening()
    routes.waiting.add(waiting)
    routes.replace_route_table([])
    routes.replace_route_table([])
    assert waiting.looks == 1
    assert routes.waiting == set()


def test_descriptor_that_is_no_table_is_refused_and_the_present_table_stays() -> None:
    routes = routes_with_table()
    with open(os.devnull, "rb") as file, pytest.raises((OSError, ValueError)):
        routes.replace_route_table([file.fileno()])
    assert routes.context_by_alias("users") is not None


def test_context_is_found_by_alias_and_made_once_for_each_table() -> None:
    routes = routes_with_table()
    found = routes.context_by_alias("users")
    assert found is not None
    assert (found["route"].alias, found["name"], found["url"]) == ("users", "one", "")
    assert routes.context_by_alias("users") is found
    assert routes.context_by_alias("other") is None
    fd = write_table([USERS], 2)
    routes.replace_route_table([fd])
    os.close(fd)
    assert routes.context_by_alias("users") is not found
    assert GatewayRoutes("one").context_by_alias("users") is None


def test_url_of_a_server_is_where_clients_of_this_machine_reach_it(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with socket.create_server(("0.0.0.0", 0)) as anywhere, socket.socket(socket.AF_UNIX) as unix:
        port = anywhere.getsockname()[1]
        unix.bind(str(path))
        assert GatewayRoutes("one", [anywhere]).scope_context(USERS)["url"] == f"http://127.0.0.1:{port}"
        assert (
            GatewayRoutes("one", [anywhere, unix], secure=True).scope_context(USERS)["url"]
            == f"https://127.0.0.1:{port}"
        )
        assert GatewayRoutes("one", [unix]).scope_context(USERS)["url"] == f"unix:{path}"
    assert GatewayRoutes("one", [anywhere]).scope_context(USERS)["url"] == ""
    if socket.has_ipv6:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
            assert (
                GatewayRoutes("one", [six]).scope_context(USERS)["url"]
                == f"http://[::1]:{six.getsockname()[1]}"
            )


def test_state_of_a_connection_goes_to_another_worker_as_it_is_and_to_the_gateway_undecided() -> None:
    state = Routed("users", 3, 1, b"GET", True, True)
    routing = ConnectionRoutingState(GatewayRoutes("one"), state)
    assert routing.for_worker() == state
    assert routing.for_gateway(4) == Routed("users", 4, 2, b"GET", decided=False)


def test_body_with_a_length_ends_after_so_many_bytes() -> None:
    routing = ConnectionRoutingState(GatewayRoutes("one"), Routed("users"))
    routing.begin_body(5)
    assert routing.consume_body(b"__abc", 2) == 5
    assert routing.body == 2
    assert routing.consume_body(b"deGET", 0) == 2
    assert routing.body == 0
    assert routing.consume_body(b"GET", 0) == 0


def test_chunked_body_ends_with_its_last_chunk() -> None:
    routing = ConnectionRoutingState(GatewayRoutes("one"), Routed("users"))
    routing.begin_body(CHUNKED)
    assert routing.consume_body(b"__2\r\nab\r\n", 2) == 9
    assert routing.chunks is not None
    assert routing.consume_body(b"0\r\n\r\nGET", 0) == 5
    assert (routing.body, routing.chunks) == (0, None)


def test_requests_and_errors_are_counted_by_route_each_request_once() -> None:
    routes = GatewayRoutes("one")
    page = counting(routes)
    routing = ConnectionRoutingState(routes, Routed("users"))
    routing.context = routes.scope_context(USERS)
    ask(with_route_context(App(200), routing), scope_of())
    ask(with_route_context(App(499), routing), scope_of())
    assert counted(page) == (2, 0)
    ask(with_route_context(App(500), routing), scope_of())
    with pytest.raises(RuntimeError):
        ask(with_route_context(App(503, error=RuntimeError()), routing), scope_of())
    with pytest.raises(RuntimeError):
        ask(with_route_context(App(200, error=RuntimeError()), routing), scope_of())
    assert counted(page) == (5, 3)
    ask(with_route_context(App(500), routing), scope_of(type="websocket"))
    assert counted(page) == (6, 3)


def test_scope_has_the_route_beside_other_extensions_and_nothing_without_a_route() -> None:
    routes, app = GatewayRoutes("one"), App(200)
    page = counting(routes)
    routing = ConnectionRoutingState(routes, Routed("users"))
    assert [each["type"] for each in ask(with_route_context(app, routing), scope_of())] == [
        "http.response.start",
        "http.response.body",
    ]
    routing.context = context = routes.scope_context(USERS)
    ask(with_route_context(app, routing), scope_of())
    ask(with_route_context(app, routing), scope_of(extensions={"tls": {}}))
    assert [each.get("extensions") for each in app.scopes] == [
        None,
        {EXTENSION: context},
        {"tls": {}, EXTENSION: context},
    ]
    assert counted(page) == (2, 0)


@pytest.mark.parametrize(
    ("scheme", "client", "trusted", "reported"),
    [
        ("http", ("10.0.0.1", 5), False, (b"10.0.0.1", b"http")),
        ("https", ("10.0.0.1", 5), False, (b"10.0.0.1", b"https")),
        ("wss", ("10.0.0.1", 5), False, (b"10.0.0.1", b"https")),
        ("ws", ("10.0.0.1", 5), True, (b"1.2.3.4, 10.0.0.1", b"http")),
    ],
)
def test_client_is_reported_and_only_a_trusted_peer_may_name_another(
    scheme: str, client: Any, trusted: bool, reported: tuple[bytes, bytes]
) -> None:
    app = App(200)
    routing = ConnectionRoutingState(GatewayRoutes("one"), Routed("users"))
    routing.trusted = trusted
    ask(
        with_route_context(app, routing),
        scope_of(scheme=scheme, client=client, headers=[HOST, (b"x-forwarded-for", b"1.2.3.4")]),
    )
    headers = dict(app.scopes[0]["headers"])
    assert (headers[b"x-forwarded-for"], headers[b"x-forwarded-proto"]) == reported


def test_route_of_a_proxied_request_is_believed_with_the_key_and_always_removed() -> None:
    name = CONTEXT_FIELD.encode()
    for key, value, found in (
        ("k", b"k users", True),
        ("k", b"x users", False),
        ("k", b"k other", False),
        ("", b" users", False),
    ):
        routes, app = routes_with_table(key=key), App(200)
        ask(
            app_with_route_in_scope(app, routes),
            scope_of(headers=[(name, value), HOST], extensions={"tls": {}}),
        )
        (scope,) = app.scopes
        assert scope["headers"] == [HOST]
        assert scope["extensions"].keys() == ({"tls", EXTENSION} if found else {"tls"})
    ask(app_with_route_in_scope(app, routes), {"type": "lifespan"})
    assert app.scopes[-1] == {"type": "lifespan"}


def test_websockets_of_a_connection_see_its_route_too() -> None:
    class Connection:
        ws_protocol_class: Any = None

        def __init__(self, **_: Any) -> None:
            self.app: Any = App(200)

    routes = GatewayRoutes("one")
    page = counting(routes)
    routing = ConnectionRoutingState(routes, Routed("users"))
    routing.context = routes.scope_context(USERS)
    plain, upgraded = Connection(), Connection()
    upgraded.ws_protocol_class = Connection
    add_route_to_scopes(plain, routing)
    add_route_to_scopes(upgraded, routing)
    assert plain.ws_protocol_class is None
    for app in (plain.app, upgraded.app, upgraded.ws_protocol_class(config=None).app):
        ask(app, scope_of())
    assert counted(page) == (3, 0)


def test_addresses_of_every_interface_are_reached_by_loopback() -> None:
    assert worker_routes.ANYWHERE == {"0.0.0.0": "127.0.0.1", "::": "::1"}


# The route of a request that the gateway has proxied, as its worker's application finds it.

KEY = "0123456789abcdef"
ROUTE = Route(alias="users über", host="users.test", path="/v1", to=(Target(server="one"),))


@pytest.fixture(params=[*ENGINES, *ZTTP], ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture
def routes() -> Iterator[GatewayRoutes]:
    found = GatewayRoutes("one")
    fd = write_table([ROUTE], 5)
    found.replace_route_table([fd], context_key=KEY)
    os.close(fd)
    yield found
    found.replace_route_table([])


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
    engine: Engine, routes: GatewayRoutes, case: str
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
    engine: Engine, routes: GatewayRoutes
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


def test_worker_without_a_key_believes_no_request(engine: Engine, routes: GatewayRoutes) -> None:
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
