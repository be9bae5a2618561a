"""Clients that a route refuses, and those that it redirects: for every engine that serves routes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poolctl.features.gateway.process.settings import ServerFacts
from poolctl.routing.route import BreakerRule, Redirect, Route, Target, TrafficLimits
from poolctl.routing.route_table import write_table
from poolctl.routing.separation import routes_for_workers
from poolctl.worker import tally
from poolctl.worker.serving.request_records import RequestCounts
from poolctl.worker.serving.worker_routes import GatewayRoutes
from tests.features.gateway.passing_stage import Serve, Stage, own_engine
from tests.features.gateway.proxy_stage import DEADLINE, Backend, Script, Wire
from tests.serving import ENGINES, Client, Engine, Pair, blank_page
from tests.serving import served as worker_served

HERE, ELSEWHERE = "127.0.0.0/8", "10.0.0.0/8"


async def answering(backend: Backend, wire: Wire) -> None:
    while True:
        await backend.request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


@pytest.fixture
def engine() -> Serve:
    """The gateway itself; features run the tests with engines of theirs."""
    return own_engine


@asynccontextmanager
async def gateway(
    engine: Serve, directory: Path, *routes: Route, script: Script = answering, **settings: Any
) -> AsyncIterator[int]:
    """The port of this engine, before a backend to which every route leads that has no redirect."""
    backend = await Backend(script).start()
    try:
        to = (Target(url=backend.url),)
        made = [
            each if each.redirect else replace(each, to=to, breaker=BreakerRule(failures=0, rate=0.0))
            for each in routes
        ]
        async with engine(directory, made, **settings) as port:
            yield port
    finally:
        backend.close()


class Answer(NamedTuple):
    status: int
    location: str = ""
    retry_after: str = ""


async def ask(port: int, *lines: str, host: str = "a.test", target: str = "/") -> Answer:
    wire = Wire(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), DEADLINE))
    with closing(wire):
        return await asked(wire, *lines, host=host, target=target)


async def asked(wire: Wire, *lines: str, host: str = "a.test", target: str = "/") -> Answer:
    await wire.send("\r\n".join([f"GET {target} HTTP/1.1", f"Host: {host}", *lines, "", ""]).encode())
    head = (await wire.response())[0].decode()
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n"))}
    return Answer(int(head.split()[1]), fields.get("location", ""), fields.get("retry-after", ""))


FOR = "X-Forwarded-For: "


@pytest.mark.parametrize(
    ("allow", "trusted", "lines", "status"),
    [
        ((HERE,), (), (), 200),
        (("127.0.0.1",), (), (), 200),
        ((ELSEWHERE, HERE), (), (), 200),
        (("*",), (), (), 200),
        ((ELSEWHERE,), (), (), 403),
        (("::1",), (), (), 403),
        # What a client says of itself counts for nothing.
        ((ELSEWHERE,), (), (f"{FOR}10.0.0.1",), 403),
        ((HERE,), (), (f"{FOR}10.0.0.1",), 200),
        # A trusted proxy reports the client.
        ((ELSEWHERE,), (HERE,), (f"{FOR}10.0.0.1",), 200),
        ((HERE,), (HERE,), (f"{FOR}10.0.0.1",), 403),
        ((ELSEWHERE,), (HERE,), (f"{FOR}10.0.0.1, 192.0.2.1",), 403),
        ((ELSEWHERE,), (HERE, "192.0.2.0/24"), (f"{FOR}10.0.0.1, 192.0.2.1, 192.0.2.2",), 200),
        ((ELSEWHERE,), (HERE,), (f"{FOR}192.0.2.1", f"{FOR}10.0.0.1"), 200),
        ((HERE,), (HERE,), (), 200),
        # If all were trusted, any client could name an address.
        ((ELSEWHERE,), ("*",), (f"{FOR}10.0.0.1",), 403),
    ],
)
def test_route_is_for_the_clients_that_it_allows(
    engine: Serve, tmp_path: Path, allow: tuple[str, ...], trusted: tuple[str, ...], lines: tuple[str, ...], status: int
) -> None:  # fmt: skip
    async def work() -> None:
        route = Route(alias="a", allow=allow)
        async with gateway(engine, tmp_path, route, trusted_proxies=trusted) as port:
            for _ in range(2):
                assert (await ask(port, *lines)).status == status

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


SECURE = Route(alias="https", host="a.test", redirect=Redirect(to="https"))


@pytest.mark.parametrize(
    ("redirect", "host", "target", "location"),
    [
        (Redirect(to="https"), "a.test", "/x?y=1", "https://a.test/x?y=1"),
        (Redirect(to="https", status=301), "A.test:8080", "/", "https://a.test/"),
        (Redirect(to="https://b.test"), "a.test", "/x?y=1", "https://b.test/x?y=1"),
        (Redirect(to="http://b.test:81", status=301), "a.test", "/%7ex", "http://b.test:81/"),
        (Redirect(to="https://b.test/"), "a.test", "/x?y=1", "https://b.test/"),
        (Redirect(to="https://b.test/100%25?a=b"), "a.test", "/x?y=1", "https://b.test/100%25?a=b"),
    ],
)
def test_clients_are_sent_where_the_route_redirects(
    engine: Serve, tmp_path: Path, redirect: Redirect, host: str, target: str, location: str
) -> None:
    async def work() -> None:
        async with gateway(engine, tmp_path, Route(alias="a", redirect=redirect)) as port:
            found = await ask(port, host=host, target=target)
            assert found.status == redirect.status
            assert found.location.startswith(location)
            assert "\r" not in found.location

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


def test_redirect_to_https_is_for_requests_without_it(engine: Serve, tmp_path: Path) -> None:
    async def work() -> None:
        routes = [Route(alias="app", host="a.test"), SECURE]  # which comes first in the file does not matter
        async with gateway(engine, tmp_path, *routes, trusted_proxies=(HERE,)) as port:
            assert await ask(port, target="/x") == Answer(308, "https://a.test/x")
            assert await ask(port, "X-Forwarded-Proto: https") == Answer(200)
            assert await ask(port, "X-Forwarded-Proto: https, http") == Answer(200)
            assert (await ask(port, "X-Forwarded-Proto: http")).status == 308
        async with gateway(engine, tmp_path, *routes) as port:  # nobody is trusted
            assert (await ask(port, "X-Forwarded-Proto: https")).status == 308

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


def test_connection_goes_on_after_a_response_of_the_route_itself(engine: Serve, tmp_path: Path) -> None:
    async def work() -> None:
        routes = [
            SECURE,
            Route(alias="closed", host="b.test", allow=(ELSEWHERE,)),
            Route(alias="app", host="c.test"),
        ]
        async with gateway(engine, tmp_path, *routes) as port:
            wire = Wire(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), DEADLINE))
            with closing(wire):
                for _ in range(3):
                    assert (await asked(wire)).status == 308
                    assert (await asked(wire, host="c.test")).status == 200
                    assert (await asked(wire, host="b.test")).status == 403

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


@pytest.mark.parametrize("worker", ENGINES, ids="-".join)
def test_passed_connections_serve_the_clients_that_are_allowed(worker: Engine) -> None:
    routes = [
        Route(alias="open", host="open.test", to=(Target(server="app"),)),
        # Behind the route of the same host in the file, and before it for requests without TLS.
        Route(alias="secure", host="secure.test", to=(Target(server="app"),)),
        Route(alias="https", host="secure.test", redirect=Redirect(to="https")),
        Route(alias="first", host="first.test", to=(Target(server="app"),), allow=("127.0.0.1",)),
        Route(alias="second", host="second.test", to=(Target(server="app"),), allow=("127.0.0.2/32",)),
    ]

    async def work() -> None:
        with closing(Stage()) as stage:
            async with AsyncExitStack() as stack:
                pair, known, page = Pair(), GatewayRoutes("app"), blank_page()
                stack.callback(pair.close)
                stack.callback(known.replace_route_table, [])
                server = await stack.enter_async_context(
                    worker_served(worker, adoption=pair.worker(), routes=known)
                )
                known.counts = RequestCounts(page)
                stage.edge.passing.set_pair("app", pair.give.dup(), tls=False)
                stage.routes(*routes)
                facts = ServerFacts(
                    name="app", bind=f"tcp://127.0.0.1:{server.port}", state="running", ready=True
                )
                stage.edge.backends.apply(list(stage.edge.table), {"app": facts})
                fd = write_table(routes_for_workers(routes), 1)
                known.replace_route_table([fd, stage.back.fileno()])
                os.close(fd)
                address = stage.listener.getsockname()

                async def connected(source: str) -> Client:
                    return Client(*await asyncio.open_connection(*address, local_addr=(source, 0)))

                for _ in range(2):  # heads that were seen before as well
                    clients = {source: await connected(source) for source in ("127.0.0.1", "127.0.0.2")}
                    for first in ("first", "second", "open"):
                        fresh = {source: await connected(source) for source in clients}
                        for source in clients:
                            allowed = {"open", "first" if source == "127.0.0.1" else "second"}
                            for host in (first, "first", "second", "open", "secure", "first", "first"):
                                for client in (fresh[source], clients[source]):
                                    client.writer.write(
                                        f"GET / HTTP/1.1\r\nHost: {host}.test\r\n\r\n".encode()
                                    )
                                    status, _, _ = await client.answer()
                                    expected = 308 if host == "secure" else 200 if host in allowed else 403
                                    assert status == expected, (source, host)
                counted = {each.alias: page[tally.claim_route_slot(page, each.alias)] for each in routes}
                assert {alias for alias, count in counted.items() if count} == {"open", "first", "second"}

    worker.run(work())


def of_client(**limit: Any) -> Route:
    return Route(alias="a", client_limit=TrafficLimits(**limit))


def test_client_has_a_rate_of_its_own(engine: Serve, tmp_path: Path) -> None:
    async def work() -> None:
        async with gateway(
            engine, tmp_path, of_client(requests_per_second=0.01), trusted_proxies=(HERE,)
        ) as port:
            for client in ("10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8:0:1::1"):
                assert (await ask(port, FOR + client)).status == 200
                refused = await ask(port, FOR + client)
                assert (refused.status, bool(refused.retry_after)) == (429, True)
            # The network of 64 bits is the client.
            assert (await ask(port, f"{FOR}2001:db8::2")).status == 429
            # Its connections and other claims make no difference.
            assert (await ask(port, f"{FOR}10.0.0.9, 10.0.0.1")).status == 429
            assert (await ask(port)).status == 200

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


def test_client_has_so_many_requests_in_flight(engine: Serve, tmp_path: Path) -> None:
    async def work() -> None:
        go_on, under_way = asyncio.Event(), []

        async def slow(backend: Backend, wire: Wire) -> None:
            while True:
                under_way.append(await backend.request(wire))
                await go_on.wait()
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        route = of_client(concurrency=2)
        async with gateway(engine, tmp_path, route, script=slow, trusted_proxies=(HERE,)) as port:
            first = [asyncio.ensure_future(ask(port, f"{FOR}10.0.0.1")) for _ in range(2)]
            async with asyncio.timeout(DEADLINE):
                while len(under_way) < 2:
                    await asyncio.sleep(0.001)
            assert (await ask(port, f"{FOR}10.0.0.1")).status == 429
            other = asyncio.ensure_future(ask(port, f"{FOR}10.0.0.2"))
            async with asyncio.timeout(DEADLINE):
                while len(under_way) < 3:
                    await asyncio.sleep(0.001)
            go_on.set()
            assert [(await each).status for each in (*first, other)] == [200] * 3
            assert (await ask(port, f"{FOR}10.0.0.1")).status == 200

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


V1 = b"PROXY TCP4 10.0.0.1 10.0.0.2 5000 80\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes((10, 0, 0, 1, 10, 0, 0, 2)) + b"\x13\x88\x00\x50"
LOCAL = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
ONLY_THAT = Route(alias="a", allow=("10.0.0.1",))
REQUEST = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


async def status_of(port: int, *pieces: bytes) -> int:
    """The status of the response to these bytes, 0 for none."""
    wire = Wire(*await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port), DEADLINE))
    with closing(wire):
        try:
            for piece in pieces:
                await wire.send(piece)
                await asyncio.sleep(0.01)  # each in a packet of its own
            return int((await wire.response())[0].split()[1])
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0


@pytest.mark.parametrize(
    ("pieces", "status"),
    [
        ((V1 + REQUEST,), 200),
        ((V1, REQUEST), 200),
        ((V2 + REQUEST,), 200),
        ((LOCAL + REQUEST,), 403),  # the proxy itself
        ((b"PROXY UNKNOWN\r\n" + REQUEST,), 403),
        ((V1.replace(b"10.0.0.1 ", b"10.0.0.9 ") + REQUEST,), 403),
        ((REQUEST,), 0),
        ((b"PROXY TCP4 10.0.0.1\r\n" + REQUEST,), 0),
        ((V1 + V1 + REQUEST,), 400),
    ],
)
def test_trusted_proxy_reports_its_client_before_the_first_request(
    engine: Serve, tmp_path: Path, pieces: tuple[bytes, ...], status: int
) -> None:
    async def work() -> None:
        async with gateway(
            engine, tmp_path, ONLY_THAT, trusted_proxies=("127.0.0.1",), accept_proxy=True
        ) as port:
            assert await status_of(port, *pieces) == status

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


IN_PIECES = [
    (V1[:3], V1[3:20], V1[20:] + REQUEST[:5], REQUEST[5:]),
    (V2[:5], V2[5:20], V2[20:] + REQUEST),
]


@pytest.mark.parametrize("pieces", IN_PIECES)
def test_header_of_a_trusted_proxy_may_arrive_in_pieces(
    engine: Serve, tmp_path: Path, pieces: tuple[bytes, ...]
) -> None:
    async def work() -> None:
        async with gateway(
            engine, tmp_path, ONLY_THAT, trusted_proxies=("127.0.0.1",), accept_proxy=True
        ) as port:
            assert await status_of(port, *pieces) == 200

    asyncio.run(asyncio.wait_for(work(), DEADLINE))


def test_others_are_not_believed_what_they_report(engine: Serve, tmp_path: Path) -> None:
    async def work() -> None:
        routes = [replace(ONLY_THAT, host="a.test"), Route(alias="b")]
        for accept_proxy, trusted in ((True, ("192.0.2.1",)), (False, ("127.0.0.1",))):
            async with gateway(
                engine, tmp_path, *routes, trusted_proxies=trusted, accept_proxy=accept_proxy
            ) as port:
                assert await status_of(port, V1 + REQUEST) == 400
                assert await status_of(port, V2 + REQUEST) in (0, 400)
                assert await status_of(port, REQUEST) == 403
                assert await status_of(port, REQUEST.replace(b"a.test", b"b.test")) == 200

    asyncio.run(asyncio.wait_for(work(), DEADLINE))
