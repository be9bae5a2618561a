"""Connections of a route: each request is served by the server that its route names, and by no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect

from poolctl.http.messages import canonical_head
from poolctl.keeper import connection_handover
from poolctl.keeper.connection_handover import MOST_HOPS, Connection, Routed
from poolctl.routing.context import try_get_route, upstream_name
from poolctl.routing.decision import passable_match
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import RouteTable, write_table
from poolctl.worker import tally
from poolctl.worker.serving import http1_connection, routed_connections
from poolctl.worker.serving.routed_connections import RoutedConnection
from poolctl.worker.serving.worker_routes import GatewayRoutes
from tests.asgi_apps import lifespan
from tests.certificates import certificate
from tests.examples import examples
from tests.serving import (
    ENGINES,
    ZTTP,
    Client,
    Engine,
    Pair,
    accepted,
    blank_page,
    leaving,
    served,
    turns,
    until,
)

ROUTES = [
    Route(alias="one", host="one.test", to=(Target(server="one"),)),
    Route(alias="two", host="two.test", to=(Target(server="two"),)),
    Route(alias="both", host="both.test", to=(Target(server="one"),)),
    Route(alias="inner", host="both.test", path="/inner", to=(Target(server="two"),)),
    Route(alias="leaf", host="leaf.test", path="/a", to=(Target(server="one"),)),
    Route(alias="other leaf", host="leaf.test", path="/b", to=(Target(server="two"),)),
    Route(alias="proxied", host="proxied.test", to=(Target(url="http://127.0.0.1:1"),)),
]


@pytest.fixture(params=[*ENGINES, *ZTTP], ids="-".join)
def engine(request: pytest.FixtureRequest) -> Engine:
    chosen: Engine = request.param
    return chosen


@pytest.fixture
def table() -> Iterator[int]:
    fd = write_table(ROUTES, 5)
    yield fd
    os.close(fd)


class Echo:
    """Answers with its name, the path and the body; `/slow` when `release` is set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.release = asyncio.Event()
        self.under_way = asyncio.Event()
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            while (message := await receive())["type"] != "websocket.disconnect":
                if text := message.get("text"):
                    await send({"type": "websocket.send", "text": f"{self.name} {text}"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        if scope["path"].endswith("/slow"):
            self.under_way.set()
            await self.release.wait()
        text = b" ".join((self.name.encode(), scope["raw_path"], body))
        length = (b"content-length", b"%d" % len(text))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": text})


class Gateway:
    """Takes back what workers return, and passes it on by the same table."""

    def __init__(self, table: int, servers: dict[str, Pair]) -> None:
        self.own = Pair()
        self.table = RouteTable(table)
        self.servers = servers
        self.returned: list[Routed] = []
        self.refused: list[bytes] = []
        self.begin()

    def begin(self) -> None:
        asyncio.get_running_loop().add_reader(self.own.take.fileno(), self._take)

    def stop(self) -> None:
        asyncio.get_running_loop().remove_reader(self.own.take.fileno())

    def close(self) -> None:
        self.stop()
        self.own.close()
        self.table.close()

    def _take(self) -> None:
        taken = connection_handover.receive_connection(self.own.take)
        assert taken is not None
        assert taken.routed is not None
        self.returned.append(taken.routed)
        self.pass_queue_or_refuse(taken, taken.received, 0 if taken.routed is None else taken.routed.hops)

    def pass_queue_or_refuse(self, sock: socket.socket, received: bytes = b"", hops: int = 0) -> None:
        """Decide by the head, which is complete."""
        with sock:
            data = received
            with contextlib.suppress(BlockingIOError):
                data += sock.recv(65536, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            head = canonical_head(data)
            match = None if head is None else passable_match(head, self.table)
            if match is None:
                self.refused.append(data)
                return
            routed = Routed(match.route.alias, self.table.generation, hops, received)
            (server,) = match.servers
            connection_handover.send_connection(self.servers[server].give, sock.fileno(), routed=routed)


class Stage(NamedTuple):
    """Two servers behind a gateway."""

    gateway: Gateway
    apps: dict[str, Echo]
    servers: dict[str, Any]
    routes: dict[str, GatewayRoutes]

    async def client(self, first: bytes) -> Client:
        """A client whose first bytes, a whole head at least, have been passed on."""
        client, sock = await accepted()
        client.writer.write(first)
        sock.setblocking(False)
        await until(lambda: canonical_head(peek(sock)))
        self.gateway.pass_queue_or_refuse(sock)
        return client

    async def exchange(self, client: Client, *messages: bytes) -> list[bytes]:
        """The answers to these messages, each sent after the one before it was answered."""
        found = []
        for message in messages:
            client.writer.write(message)
            found.append((await client.answer())[2])
        return found


def peek(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


@contextlib.asynccontextmanager
async def staged(engine: Engine, table: int, **options: Any) -> AsyncIterator[Stage]:
    async with contextlib.AsyncExitStack() as stack:
        pairs = {name: Pair() for name in ("one", "two")}
        for pair in pairs.values():
            stack.callback(pair.close)
        gateway = Gateway(table, pairs)
        stack.callback(gateway.close)
        apps, servers, routes = {}, {}, {}
        for name, pair in pairs.items():
            routes[name] = GatewayRoutes(name)
            routes[name].replace_route_table([table, gateway.own.give.fileno()])
            stack.callback(routes[name].replace_route_table, [])
            apps[name] = Echo(name)
            servers[name] = await stack.enter_async_context(
                served(engine, apps[name], adoption=pair.worker(), routes=routes[name], **options)
            )
        yield Stage(gateway, apps, servers, routes)


@pytest.mark.parametrize(
    ("bound", "secure", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:{port}"),
        ("0.0.0.0", True, "https://127.0.0.1:{port}"),
        ("::1", False, "http://[::1]:{port}"),
        ("unix", False, "unix:{path}"),
    ],
)
def test_context_has_the_address_of_the_server(tmp_path: Path, bound: str, secure: bool, url: str) -> None:
    path = str(tmp_path / "s")
    family = {"::1": socket.AF_INET6, "unix": socket.AF_UNIX}.get(bound, socket.AF_INET)
    with socket.socket(family) as listener:
        listener.bind(path if bound == "unix" else (bound, 0))
        port = 0 if bound == "unix" else listener.getsockname()[1]
        context = GatewayRoutes("one", [listener], secure=secure).scope_context(ROUTES[0])
    assert context["url"] == url.format(port=port, path=path)
    assert context["name"] == "one"


def request(host: str, path: str = "/", method: str = "GET", *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def post(host: str, path: str, body: bytes) -> bytes:
    return request(host, path, "POST", f"Content-Length: {len(body)}", body=body)


def chunked(host: str, path: str, body: bytes, step: int = 3, trailers: bytes = b"") -> bytes:
    chunks = b"".join(
        b"%X\r\n%b\r\n" % (len(body[at : at + step]), body[at : at + step])
        for at in range(0, len(body), step)
    )
    return request(
        host, path, "POST", "Transfer-Encoding: chunked", body=chunks + b"0\r\n" + trailers + b"\r\n"
    )


def run(engine: Engine, table: int, scenario: Any, **options: Any) -> None:
    async def staged_scenario() -> None:
        async with staged(engine, table, **options) as stage:
            await scenario(stage)

    engine.run(staged_scenario())


def test_each_request_is_served_by_the_server_of_its_route(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test", "/1"))
        assert (await client.answer())[2] == b"one /1 "
        hosts = ["one.test", "two.test", "two.test", "one.test", "both.test", "one.test"] * 3
        found = await stage.exchange(client, *(request(host, f"/{host}") for host in hosts))
        expected = [b"%b /%b " % (b"two" if host == "two.test" else b"one", host.encode()) for host in hosts]
        assert found == expected
        assert {routed.hops for routed in stage.gateway.returned} == {1}
        assert {routed.generation for routed in stage.gateway.returned} == {5}
        assert not any(routed.decided for routed in stage.gateway.returned)

    run(engine, table, scenario)


def test_paths_of_one_host_belong_to_different_routes(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("both.test", "/x"))
        await client.answer()
        paths = ["/y", "/inner", "/innermost", "/inner/x", "/x/inner", "/y?/inner", "/"]
        found = await stage.exchange(client, *(request("both.test", path) for path in paths))
        assert [text.split()[0] for text in found] == [b"one", b"two", b"one", b"two", *[b"one"] * 3]
        leaves = ["/a", "/a/b", "/b/a", "/a/c?/b", "/b", "/a/"]
        found = await stage.exchange(client, *(request("leaf.test", path) for path in leaves))
        assert [text.split()[0] for text in found] == [b"one", b"one", b"two", b"one", b"two", b"one"]

    run(engine, table, scenario)


def test_requests_of_two_routes_of_a_server_keep_their_routes(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test", "/1"))
        await client.answer()
        messages = [
            post("both.test", "/2", b"abc"),
            request("one.test", "/3"),
            post("one.test", "/4", b"abcd"),
            request("both.test", "/5"),
            post("both.test", "/6", b"ab"),
            request("one.test", "/7"),
        ]
        await stage.exchange(client, *messages * 2)
        client.writer.write(post("both.test", "/slow", b"abc"))
        await stage.apps["one"].under_way.wait()
        client.writer.write(request("one.test", "/8"))
        await turns()
        stage.apps["one"].release.set()
        assert [(await client.answer())[2] for _ in range(2)] == [b"one /slow abc", b"one /8 "]
        routes = [route and route.alias for route in map(try_get_route, stage.apps["one"].scopes)]
        assert routes == ["one", *["both", "one", "one", "both", "both", "one"] * 2, "both", "one"]

    run(engine, table, scenario)


REFUSED = [
    request("proxied.test"),
    request("unknown.test"),
    request("one.test", "/a/../b"),
    request("one.test", "/%2e%2e/b"),
    request("one.test", "/", "GET", "Host: two.test"),
    request("one.test", "/", "POST", "Content-Length: 3", "Transfer-Encoding: chunked", body=b"abc"),
    b"GET / HTTP/1.1\nHost: one.test\n\n",
    b"\r\n" + request("one.test"),
    request("one.test", "/", "CONNECT"),
    b"GET http://one.test/ HTTP/1.1\r\nHost: one.test\r\n\r\n",
]


@pytest.mark.parametrize("odd", REFUSED, ids=range(len(REFUSED)))
def test_request_that_no_worker_may_serve_goes_back_unread(engine: Engine, table: int, odd: bytes) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        client.writer.write(odd)
        await until(lambda: stage.gateway.refused)
        assert stage.gateway.refused == [odd]
        assert await client.at_end()
        assert len(stage.apps["one"].scopes) == 1

    run(engine, table, scenario)


messages = st.one_of(
    st.builds(request, st.just("HOST"), st.sampled_from(["/", "/inner/x", "/x?y"])),
    st.builds(
        post, st.just("HOST"), st.just("/p"), st.sampled_from([b"", b"abc", b"GET / HTTP/1.1\r\n\r\n"])
    ),
    st.builds(
        chunked,
        st.just("HOST"),
        st.just("/c"),
        st.sampled_from([b"", b"0\r\n\r\n", b"Host: two.test"]),
        st.integers(1, 5),
        st.sampled_from([b"", b"X-Host: one.test\r\nx: y\r\n"]),
    ),
)
hosts = st.sampled_from(["one.test", "two.test", "both.test"])


def with_host(message: bytes, host: str) -> bytes:
    return message.replace(b"HOST", host.encode(), 1)


def expected_answer(message: bytes) -> bytes:
    head = canonical_head(message)
    assert head is not None
    table_fd = write_table(ROUTES, 5)
    try:
        table = RouteTable(table_fd)
        match = passable_match(head, table)
        table.close()
    finally:
        os.close(table_fd)
    assert match is not None
    (server,) = match.servers
    body = message[head.end :]
    if head.body < 0:
        data, at = b"", head.end
        while size := int(message[at : (end := message.index(b"\r\n", at))], 16):
            data += message[end + 2 : end + 2 + size]
            at = end + size + 4
        body = data
    return b" ".join((server.encode(), head.path, body))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES, *ZTTP], ids="-".join)
@examples(25)
@given(data=st.data())
def test_any_split_of_pipelined_requests_gives_each_to_the_right_server_once(
    engine: Engine, data: st.DataObject
) -> None:
    sequence = data.draw(
        st.lists(st.builds(with_host, messages, hosts), min_size=1, max_size=6), label="requests"
    )
    text = b"".join(sequence)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=12), label="cuts"))
    table = write_table(ROUTES, 5)

    async def scenario(stage: Stage) -> None:
        client, sock = await accepted()
        sock.setblocking(False)
        passing = asyncio.ensure_future(pass_when_complete(sock, stage.gateway))
        answers = asyncio.ensure_future(all_answers(client, len(sequence)))
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            client.writer.write(text[begin:end])
            await turns(8)
        assert await answers == [expected_answer(message) for message in sequence]
        await passing
        assert sum(len(app.scopes) for app in stage.apps.values()) == len(sequence)

    try:
        run(engine, table, scenario)
    finally:
        os.close(table)


async def pass_when_complete(sock: socket.socket, gateway: Gateway) -> None:
    await until(lambda: canonical_head(peek(sock)))
    gateway.pass_queue_or_refuse(sock)


async def all_answers(client: Client, count: int) -> list[bytes]:
    return [(await client.answer())[2] for _ in range(count)]


def test_request_of_another_server_waits_for_the_response_before_it(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test", "/slow"))
        await stage.apps["one"].under_way.wait()
        client.writer.write(request("two.test", "/x") + request("one.test", "/y"))
        await turns()
        assert not stage.gateway.returned
        stage.apps["one"].release.set()
        assert await all_answers(client, 3) == [b"one /slow ", b"two /x ", b"one /y "]

    run(engine, table, scenario)


def test_connection_waits_for_room_in_a_full_gateway_and_loses_nothing(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        stage.gateway.stop()
        filled = stage.gateway.own.fill()
        client.writer.write(request("two.test", "/x") + request("one.test", "/y"))
        (connection,) = stage.servers["one"].server.server_state.connections
        await until(lambda: connection.routing.pending)
        await turns()
        stage.gateway.own.empty(filled)
        stage.gateway.begin()
        assert await all_answers(client, 2) == [b"two /x ", b"one /y "]

    run(engine, table, scenario)


async def refusal(client: Client) -> int:
    """The status of the last answer: the connection is closed after it."""
    status, headers, _ = await client.answer()
    assert headers["connection"] == "close"
    assert await client.at_end()
    return status


def test_connection_is_refused_when_the_gateway_has_no_room_for_long(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        stage.gateway.stop()
        stage.gateway.own.fill()
        client.writer.write(request("two.test"))
        assert await refusal(client) == 503

    run(engine, table, scenario, head_seconds=0.3)


def test_connection_is_refused_when_the_gateway_has_ended(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        stage.gateway.stop()
        for end in (stage.gateway.own.take, stage.gateway.own.give):
            end.shutdown(socket.SHUT_RDWR)
        client.writer.write(request("two.test"))
        assert await refusal(client) == 421

    run(engine, table, scenario)


async def passed_by_hand(stage: Stage, routed: Routed, server: str = "one") -> Client:
    client, sock = await accepted()
    with sock:
        connection_handover.send_connection(stage.gateway.servers[server].give, sock.fileno(), routed=routed)
    return client


def test_connection_is_not_sent_back_more_often_than_allowed(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        for hops in (MOST_HOPS - 1, MOST_HOPS):
            client = await passed_by_hand(stage, Routed("one", 5, hops, request("two.test"), decided=False))
            if hops == MOST_HOPS:
                assert await refusal(client) == 421
            else:
                assert (await client.answer())[2] == b"two / "
        assert [routed.hops for routed in stage.gateway.returned] == [MOST_HOPS]
        # Each request that is served is a new beginning.
        client = await passed_by_hand(stage, Routed("one", 5, MOST_HOPS, request("one.test")))
        found = [(await client.answer())[2], *await stage.exchange(client, request("two.test"))]
        assert found == [b"one / ", b"two / "]

    run(engine, table, scenario)


def test_first_request_is_served_as_the_gateway_has_decided(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        # By a newer table, which this worker has not got yet.
        client = await passed_by_hand(stage, Routed("newer", 6, received=request("newer.test")))
        assert (await client.answer())[2] == b"one / "
        assert not stage.gateway.returned
        client.writer.write(request("newer.test"))
        await until(lambda: stage.gateway.refused)

    run(engine, table, scenario)


@pytest.mark.parametrize("size", [0, 100_000])
def test_received_bytes_come_before_those_in_the_socket(engine: Engine, table: int, size: int) -> None:
    async def scenario(stage: Stage) -> None:
        text = post("one.test", "/x", b"x" * size) + request("one.test", "/y")
        for cut in (1, 30, len(text) - 20, len(text) - 1, len(text)):
            client, sock = await accepted()
            client.writer.write(text[cut:])
            await turns()
            with sock:
                routed = Routed("one", 5, received=text[:cut])
                connection_handover.send_connection(
                    stage.gateway.servers["one"].give, sock.fileno(), routed=routed
                )
            assert await all_answers(client, 2) == [b"one /x " + b"x" * size, b"one /y "]

    run(engine, table, scenario)


def test_route_is_in_the_scope_of_each_request(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        await stage.exchange(client, request("both.test"), request("two.test"))
        found = []
        for app in stage.apps.values():
            found += [(try_get_route(scope), upstream_name(scope)) for scope in app.scopes]
        assert found == [(ROUTES[0], "one"), (ROUTES[2], "one"), (ROUTES[1], "two")]
        plain = await Client.connect(stage.servers["one"].port)
        await plain.get()
        assert try_get_route(stage.apps["one"].scopes[-1]) is None

    run(engine, table, scenario)


def test_passed_requests_are_counted_by_route_and_others_are_not(engine: Engine, table: int) -> None:
    page = blank_page()

    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        await stage.exchange(client, request("one.test", "/again"), request("both.test"))
        await (await Client.connect(stage.servers["one"].port)).get()
        aliases = {tally.route_mark(route.alias): route.alias for route in ROUTES}
        await until(lambda: page[tally.STARTED] == 4)
        assert {aliases[mark]: count for mark, count in tally.by_route_mark(page.tolist()).items()} == {
            ROUTES[0].alias: 2,
            ROUTES[2].alias: 1,
        }

    run(engine, table, scenario, tally=page)


@pytest.mark.parametrize("implementation", ["websockets-sansio", "wsproto"])
def test_websocket_has_its_route_and_ends_the_look(engine: Engine, table: int, implementation: str) -> None:
    async def scenario(stage: Stage) -> None:
        ours, theirs = socket.socketpair()
        loop = asyncio.get_running_loop()
        connecting = loop.create_task(_connect(ours))
        theirs.setblocking(False)
        await until(lambda: canonical_head(peek(theirs)))
        stage.gateway.pass_queue_or_refuse(theirs)
        websocket = await connecting
        for text in ("hello", "GET / HTTP/1.1\r\nHost: two.test\r\n\r\n"):
            await websocket.send(text)
            assert await websocket.recv() == f"one {text}"
        assert try_get_route(stage.apps["one"].scopes[0]) == ROUTES[0]
        await websocket.close()

    run(engine, table, scenario, config={"ws": implementation})


async def _connect(sock: socket.socket) -> Any:
    return await connect("ws://one.test/", sock=sock, proxy=None)


def test_request_waits_for_the_first_table(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        routes = stage.routes["one"]
        held, routes.table = routes.table, None
        client = await stage.client(request("one.test"))
        assert (await client.answer())[2] == b"one / "
        client.writer.write(request("two.test") + request("one.test", "/y"))
        await until(lambda: routes.waiting)
        routes.table = held
        routes.replace_route_table([table])
        assert await all_answers(client, 2) == [b"two / ", b"one /y "]

    run(engine, table, scenario)


def test_request_that_got_its_table_is_not_refused_later(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        routes = stage.routes["one"]
        client = await stage.client(request("one.test"))
        await client.answer()
        held, routes.table = routes.table, None
        client.writer.write(request("both.test", "/y"))
        await until(lambda: routes.waiting)
        (connection,) = routes.waiting
        routes.table = held
        routes.replace_route_table([table])
        assert (await client.answer())[2] == b"one /y "
        assert connection.routing.timer is None

    run(engine, table, scenario)


def test_request_is_refused_when_no_table_comes(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        routes = stage.routes["one"]
        held, routes.table = routes.table, None
        client = await stage.client(request("one.test"))
        await client.answer()
        client.writer.write(request("one.test"))
        assert await refusal(client) == 421
        assert not routes.waiting
        routes.table = held

    run(engine, table, scenario, head_seconds=0.3)


def test_server_without_a_gateway_any_more_serves_every_request(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        stage.routes["one"].replace_route_table([])
        found = await stage.exchange(client, request("one.test"), request("two.test", "/x"))
        assert found == [b"one / ", b"one /x "]

    run(engine, table, scenario)


def test_new_table_is_in_force_for_the_next_request(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("leaf.test", "/a"))
        await client.answer()
        await stage.exchange(client, request("leaf.test", "/a/x"))
        moved = [
            replace(route, to=(Target(server="two"),)) if route.alias == "leaf" else route for route in ROUTES
        ]
        newer = write_table(moved, 6)
        stage.routes["one"].replace_route_table([newer])
        stage.gateway.table.close()
        stage.gateway.table = RouteTable(newer)
        os.close(newer)
        assert await stage.exchange(client, request("leaf.test", "/a/x")) == [b"two /a/x "]
        assert [routed.generation for routed in stage.gateway.returned] == [6]

    run(engine, table, scenario)


def test_body_that_waits_for_the_continue_response_is_served(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        lines = "Expect: 100-continue", "Content-Length: 3"
        client.writer.write(request("one.test", "/e", "POST", *lines))
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        client.writer.write(b"abc" + request("two.test"))
        assert await all_answers(client, 2) == [b"one /e abc", b"two / "]

    run(engine, table, scenario)


@pytest.mark.parametrize(
    "body", [b"x\r\n", b"1 \r\na\r\n", b"0x1\r\na\r\n", b"1\na\n", b"-1\r\n", b"1;\x00\r\n"]
)
def test_chunks_that_parsers_could_read_differently_end_the_connection(
    engine: Engine, table: int, body: bytes
) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        line = "Transfer-Encoding: chunked"
        client.writer.write(request("one.test", "/c", "POST", line, body=b"1\r\na\r\n" + body))
        assert (await client.reader.read()).startswith(b"HTTP/1.1 400 ")

    run(engine, table, scenario)


def test_limits_of_a_head_hold_for_later_heads(engine: Engine, table: int) -> None:
    async def late(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        client.writer.write(b"GET / HTTP/1.1\r\nHost: one.te")
        assert await refusal(client) == 408

    async def in_time(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        client.writer.write(b"GET / HTTP/1.1\r\nx: ")
        await turns()
        client.writer.write(b"x" * 10_000)
        assert await refusal(client) == 431
        for begin in (b"GET /", b"GET / HTTP/1.1\r\nHost: one.test\r\n\r"):
            client = await stage.client(request("one.test"))
            await client.answer()
            client.writer.write(begin)
            await turns()
            client.writer.write(request("one.test")[len(begin) :])
            assert (await client.answer())[0] == 200

    run(engine, table, late, head_seconds=0.3)
    run(engine, table, in_time, head_bytes=8192)


def test_connection_that_moves_keeps_what_it_carries(engine: Engine, table: int) -> None:
    if engine.http == "zttp":
        pytest.skip("its connections do not move")

    async def scenario(stage: Stage) -> None:
        old, pair = stage.servers["one"], stage.gateway.servers["one"]
        routed = Routed("one", 5, 2, decided=False)
        idle = await stage.client(request("both.test"))
        await idle.answer()
        fresh = await passed_by_hand(stage, routed)
        part = await passed_by_hand(stage, routed._replace(received=b"GET / HT"))
        await until(lambda: len(old.server.server_state.connections) == 3)
        await turns()
        old.server.drain(migrate=True)
        await asyncio.wait_for(old.running, 10)
        found: dict[Any, Connection] = {}
        while len(found) < 3:
            taken = connection_handover.receive_connection(pair.take)
            assert taken is not None
            found[taken.getpeername()] = taken
        for client, expected in (
            (idle, Routed("both", 5, 0, decided=False)),
            (fresh, routed),
            (part, routed._replace(received=b"GET / HT")),
        ):
            taken = found[client.writer.get_extra_info("sockname")]
            assert taken.routed == expected
            with taken:
                connection_handover.send_connection(pair.give, taken.fileno(), taken.limits(), taken.routed)
        routes = stage.routes["one"]
        async with served(engine, stage.apps["one"], adoption=pair.worker(), routes=routes):
            part.writer.write(b"TP/1.1\r\nHost: one.test\r\n\r\n")
            assert (await part.answer())[2] == b"one / "
            assert await stage.exchange(idle, request("two.test")) == [b"two / "]
            assert await stage.exchange(fresh, request("one.test", "/z")) == [b"one /z "]

    run(engine, table, scenario)


def test_client_that_leaves_while_its_request_waits_is_forgotten(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test", "/slow"))
        await stage.apps["one"].under_way.wait()
        client.writer.write(request("two.test"))
        await turns()
        client.writer.transport.abort()
        stage.apps["one"].release.set()
        await until(lambda: not any(each.server.server_state.connections for each in stage.servers.values()))

    run(engine, table, scenario)


def test_connection_without_a_route_is_not_looked_at(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client, sock = await accepted()
        stage.gateway.servers["one"].hand_over(sock)
        client.writer.write(request("two.test"))
        assert (await client.answer())[2] == b"one / "
        (connection,) = stage.servers["one"].server.server_state.connections
        assert not isinstance(connection, RoutedConnection)

    run(engine, table, scenario)


def test_tls_connection_is_served_as_it_was_passed(engine: Engine, table: int, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate(tmp_path))

    async def scenario(stage: Stage) -> None:
        pair = stage.gateway.servers["one"]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connecting = asyncio.ensure_future(
                asyncio.open_connection(
                    *listener.getsockname(), ssl=ssl._create_unverified_context(), server_hostname="one.test"
                )
            )
            await turns()
            sock, _ = await asyncio.to_thread(listener.accept)
        with sock:
            # The gateway has waited for the whole ClientHello, and has set this back.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
            connection_handover.send_connection(pair.give, sock.fileno(), routed=Routed("one", 5))
        client = Client(*await connecting)
        assert await stage.exchange(client, request("one.test"), request("one.test", "/x")) == [
            b"one / ",
            b"one /x ",
        ]
        assert try_get_route(stage.apps["one"].scopes[0]) == ROUTES[0]
        other = await passed_by_hand(stage, Routed("one", 5, received=b"\x16\x03"))
        assert await other.at_end()

    run(engine, table, scenario, secure=context)


async def taken_back(gateway: Gateway) -> Connection:
    """The next connection that a worker gives back to a gateway that takes none by itself."""
    await asyncio.get_running_loop().run_in_executor(None, select.select, [gateway.own.take], [], [], 60)
    taken = connection_handover.receive_connection(gateway.own.take)
    assert taken is not None
    return taken


LEAVE = {
    "drain": lambda server: server.drain(),
    "stop": lambda server: server.stop(),
    "out of rotation": lambda server: server.set_in_rotation_or_drain(False),
    "rest": lambda server: server.accept_or_drain(False),
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=list(LEAVE))
def test_idle_connection_of_a_worker_that_leaves_goes_back_to_the_gateway(
    engine: Engine, table: int, leave: Callable[[Any], None]
) -> None:
    async def scenario(stage: Stage) -> None:
        idle = await stage.client(request("one.test"))
        await idle.answer()
        part = await stage.client(request("one.test"))
        await part.answer()
        part.writer.write(b"GET /x")
        state = stage.servers["one"].server.server_state
        await until(lambda: any(each.routing.partial for each in state.connections))
        stage.gateway.stop()
        leave(stage.servers["one"].server)
        for _ in range(2):
            taken = await taken_back(stage.gateway)
            received = taken.received
            assert taken.routed == Routed("one", 5, 0, received, decided=False)
            assert taken.until is not None
            assert taken.asked is not bool(received)
            if received:
                part.writer.write(b" HTTP/1.1\r\nHost: two.test\r\n\r\n")
            else:
                idle.writer.write(request("two.test"))
            taken.setblocking(False)
            await until(lambda taken=taken: canonical_head(taken.received + peek(taken)))
            stage.gateway.pass_queue_or_refuse(taken, received)
        assert (await idle.answer())[2] == b"two / "
        assert (await part.answer())[2] == b"two /x "
        await until(lambda: not state.connections)

    run(engine, table, scenario)


@pytest.mark.parametrize("leave", LEAVE.values(), ids=list(LEAVE))
def test_busy_connection_of_a_worker_that_leaves_goes_back_after_its_response(
    engine: Engine, table: int, leave: Callable[[Any], None]
) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test", "/slow"))
        await stage.apps["one"].under_way.wait()
        leave(stage.servers["one"].server)
        await leaving(stage.servers["one"].server)
        client.writer.write(request("two.test", "/x"))
        await turns()
        assert not stage.gateway.returned
        stage.apps["one"].release.set()
        status, headers, body = await client.answer()
        assert (status, headers.get("connection"), body) == (200, None, b"one /slow ")
        assert (await client.answer())[2] == b"two /x "
        await until(lambda: not stage.servers["one"].server.server_state.connections)

    run(engine, table, scenario)


@pytest.mark.parametrize("path", ["/", "/slow"])
def test_connection_that_the_server_must_not_keep_goes_back_before_its_next_request(
    engine: Engine, table: int, path: str
) -> None:
    async def scenario(stage: Stage) -> None:
        one, app = stage.servers["one"].server, stage.apps["one"]
        client = await stage.client(request("one.test", path))
        if path == "/slow":
            await app.under_way.wait()
        else:
            await client.answer()
        stage.gateway.stop()
        stage.routes["one"].replace_route_table([table], keeps=False)
        one.return_connections_to_gateway()
        if path == "/slow":
            app.release.set()
            assert (await client.answer())[2] == b"one /slow "
        taken = await taken_back(stage.gateway)
        with taken:
            await until(lambda: not one.server_state.connections)

    run(engine, table, scenario)


def test_connection_that_the_server_must_not_keep_moves_to_no_other_worker_of_it(
    engine: Engine, table: int
) -> None:
    async def scenario(stage: Stage) -> None:
        one = stage.servers["one"].server
        client = await stage.client(request("one.test"))
        await client.answer()
        stage.gateway.stop()
        stage.routes["one"].replace_route_table([table], keeps=False)
        one.drain(migrate=True)
        with await taken_back(stage.gateway):
            await until(lambda: not one.server_state.connections)

    run(engine, table, scenario)


def test_connection_goes_back_when_its_body_ends_after_its_response(engine: Engine, table: int) -> None:
    if engine.http == "h11":
        pytest.skip("uvicorn closes such a connection")

    async def early(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    async def scenario(stage: Stage) -> None:
        stage.servers["one"].server.config.loaded_app = early
        client = await stage.client(post("one.test", "/", b"body")[:-1])
        assert (await client.answer())[0] == 200
        stage.servers["one"].server.drain()
        await leaving(stage.servers["one"].server)
        client.writer.write(b"y" + request("two.test"))
        assert (await client.answer())[2] == b"two / "

    run(engine, table, scenario)


def test_connections_that_a_full_gateway_does_not_take_wait_for_room(
    engine: Engine, table: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routed_connections, "QUIET_SECONDS", 60.0)

    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        stage.gateway.stop()
        filled = stage.gateway.own.fill()
        (connection,) = stage.servers["one"].server.server_state.connections
        stage.servers["one"].server.stop()
        await until(lambda: connection.routing.timer)
        stage.gateway.own.empty(filled)
        (await taken_back(stage.gateway)).close()

    run(engine, table, scenario)


@pytest.mark.parametrize("gone", [True, False])
def test_idle_connection_is_closed_when_the_gateway_is_gone_or_full_for_long(
    engine: Engine, table: int, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (routed_connections, http1_connection):
        monkeypatch.setattr(module, "QUIET_SECONDS", 0.05)

    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test"))
        await client.answer()
        stage.gateway.stop()
        if gone:
            for end in (stage.gateway.own.take, stage.gateway.own.give):
                end.shutdown(socket.SHUT_RDWR)
        else:
            stage.gateway.own.fill()
        stage.servers["one"].server.stop()
        assert await client.at_end()

    run(engine, table, scenario)


def test_drain_without_a_gateway_finishes_a_routed_connection(engine: Engine, table: int) -> None:
    async def scenario(stage: Stage) -> None:
        client = await stage.client(request("one.test", "/slow"))
        await stage.apps["one"].under_way.wait()
        stage.routes["one"].replace_route_table([])
        stage.servers["one"].server.drain()
        await leaving(stage.servers["one"].server)
        stage.apps["one"].release.set()
        status, headers, _ = await client.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await client.at_end()

    run(engine, table, scenario)
