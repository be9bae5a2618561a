"""A gateway before real workers on one loop: tables that change quickly, and tables that differ."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

import pytest

from poolctl.features.gateway.process import passing
from poolctl.keeper.connection_handover import MOST_HOPS, Routed
from poolctl.routing.route import Route, Target
from poolctl.routing.route_table import RouteTable, write_table
from poolctl.worker.serving.worker_routes import GatewayRoutes
from tests.asgi_apps import lifespan
from tests.features.gateway.passing_stage import Stage, play, until
from tests.serving import Engine, Pair, served

ENGINE = Engine("uvloop", "httptools")
REQUEST = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


def leading_to(server: str, *others: str) -> list[Route]:
    """Routes of which that of the requests leads to this server, and some that change with each table."""
    routes = [Route(alias="a", host="a.test", to=(Target(server=server),))]
    return routes + [Route(alias=host, host=host, to=(Target(server=server),)) for host in others]


class Named:
    """Answers with its name."""

    def __init__(self, name: str) -> None:
        self.name = name.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        length = (b"content-length", b"%d" % len(self.name))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": self.name})


class Workers:
    """The workers of the servers "one" and "two", and the tables of all three processes."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.routes = {name: GatewayRoutes(name) for name in ("one", "two")}
        self.generation = 1

    def publish(self, tables: Mapping[str, Iterable[Route]]) -> None:
        """Put these tables in force, the gateway's among them, as new ones of one generation."""
        self.generation += 1
        for name, routes in tables.items():
            fd = write_table(routes, self.generation)
            if name == "gateway":
                before, self.stage.edge.table = self.stage.edge.table, RouteTable(fd)
                self.stage.apply(*self.routes)
                before.close()
            else:
                self.routes[name].replace_route_table([fd, self.stage.back.fileno()])
            os.close(fd)

    def publish_to_all(self, routes: Iterable[Route]) -> None:
        self.publish({name: list(routes) for name in ("gateway", *self.routes)})

    async def ask(self, client: socket.socket, request: bytes = REQUEST) -> bytes:
        """The body of the answer on this connection, or its status line."""
        await self.stage.edge.loop.sock_sendall(client, request)
        head, _, body = (await self.stage.read_head(client)).partition(b"\r\n\r\n")
        status = head.partition(b"\r\n")[0]
        return body if status == b"HTTP/1.1 200 OK" else status


@contextlib.asynccontextmanager
async def workers_of(stage: Stage) -> AsyncIterator[Workers]:
    found = Workers(stage)
    async with contextlib.AsyncExitStack() as stack:
        for name, routes in found.routes.items():
            pair = Pair()
            stack.callback(pair.close)
            stage.edge.passing.set_pair(name, pair.give.dup(), tls=False)
            await stack.enter_async_context(
                served(ENGINE, Named(name), adoption=pair.worker(), routes=routes)
            )
            stack.callback(routes.replace_route_table, [])
        yield found


def held() -> tuple[int, int]:
    """How many descriptors this process has, and how many mappings of files in memory."""
    with open("/proc/self/maps") as maps:
        return len(os.listdir("/proc/self/fd")), sum("memfd:" in each for each in maps)


@pytest.mark.slow
def test_idle_connections_follow_the_newest_of_many_tables_which_leave_nothing_behind() -> None:
    async def scene(stage: Stage) -> None:
        async with workers_of(stage) as workers:
            workers.publish_to_all(leading_to("one"))
            clients = [await stage.connect() for _ in range(200)]
            assert set(await asyncio.gather(*map(workers.ask, clients))) == {b"one"}
            gc.collect()  # no descriptor of an earlier test may be closed meanwhile
            before = held()
            for number in range(50):
                workers.publish_to_all(leading_to("one" if number % 2 else "two", f"{number}.test"))
                if number % 10 == 0:
                    # Between two tables, on the way from one worker to the other.
                    assert await workers.ask(clients[number]) == b"two"
            workers.publish_to_all(leading_to("two"))
            await until(lambda: held() == before)
            assert set(await asyncio.gather(*map(workers.ask, clients))) == {b"two"}
            await until(lambda: held() == before)

    play(scene)


STALE = {"gateway": leading_to("one"), "one": leading_to("two"), "two": leading_to("one")}


def test_request_is_answered_although_each_worker_takes_it_for_the_others() -> None:
    async def scene(stage: Stage) -> None:
        async with workers_of(stage) as workers:
            workers.publish(STALE)
            client = await stage.connect()
            for _ in range(5):
                # By its own table the worker gives it back; what the gateway has decided twice it serves.
                assert await workers.ask(client) == b"one"
            assert stage.events == []

    play(scene)


def test_request_that_no_worker_accepts_gets_421_after_the_most_hops(monkeypatch: pytest.MonkeyPatch) -> None:
    hops = []

    def undecided(routed: Routed) -> Routed:
        hops.append(routed.hops)
        return routed._replace(decided=False)

    async def scene(stage: Stage) -> None:
        # Workers that decide for themselves in any case.
        give = passing.connection_handover.send_connection
        monkeypatch.setattr(
            passing.connection_handover, "send_connection",
            lambda end, fd, limits=None, routed=None: give(end, fd, limits, routed and undecided(routed)),
        )  # fmt: skip
        async with workers_of(stage) as workers:
            workers.publish(STALE)
            assert await workers.ask(await stage.connect()) == b"HTTP/1.1 421 Misdirected Request"
        assert hops == [*range(MOST_HOPS)]

    play(scene)
