"""When all connections or descriptors are in use: idle connections are closed for new ones, and nothing else is."""

from __future__ import annotations

import asyncio
import select
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from poolctl.feature import Feature
from poolctl.features.gateway.process import acceptor
from poolctl.features.gateway.process import edge as edge_module
from poolctl.features.gateway.process.descriptor_limit import DescriptorLimits, lowest_free
from poolctl.features.gateway.process.edge import GatewayState
from poolctl.features.gateway.process.settings import GatewaySettings
from poolctl.json_form import Table
from poolctl.routing.route import BreakerRule, Route, Target
from tests.features.gateway.passing_stage import HEAD, Stage, play, until
from tests.features.gateway.proxy_stage import Backend, Wire, no_descriptors_left, ok, route
from tests.features.gateway.test_connection_pool import Client

BODY = b"hello"


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptor, "_RETRY_SECONDS", 0.01)


async def answered(stage: Stage, sock: socket.socket) -> bool:
    """Whether a whole response arrives on the connection, which is kept."""
    data = b""
    while not data.endswith(BODY):
        piece = await stage.edge.loop.sock_recv(sock, 65536)
        if not piece:
            return False
        data += piece
    return data.startswith(b"HTTP/1.1 200 ")


async def ask(stage: Stage, sock: socket.socket) -> bool:
    await stage.edge.loop.sock_sendall(sock, HEAD)
    return await answered(stage, sock)


async def idle_client(stage: Stage) -> socket.socket:
    """A client that has got a response, and keeps its connection."""
    sock = await stage.connect()
    assert await ask(stage, sock)
    return sock


async def is_closed(stage: Stage, sock: socket.socket) -> bool:
    return not await stage.edge.loop.sock_recv(sock, 1)


def test_client_used_longest_ago_makes_room_for_a_new_one() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        first, second, third = [await idle_client(stage) for _ in range(3)]
        assert await ask(stage, first)
        fourth = await idle_client(stage)
        assert await is_closed(stage, second)
        fifth = await idle_client(stage)
        assert await is_closed(stage, third)
        for sock in (first, fourth, fifth):
            assert await ask(stage, sock)
        assert stage.edge.evicted == 2

    play(scene, max_connections=3)


def test_client_with_a_request_in_flight_is_left_alone() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(backend: Backend, wire: Wire) -> None:
        while True:
            await backend.request(wire)
            asked.set()
            await answer.wait()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    async def scene(stage: Stage) -> None:
        await stage.route(slow)
        busy = await stage.connect(HEAD)
        await asked.wait()
        late = await stage.connect(HEAD)
        await until(lambda: stage.acceptor._timer)
        answer.set()
        assert await answered(stage, busy)
        assert await answered(stage, late)
        assert await is_closed(stage, busy)

    play(scene, max_connections=1)


def test_client_whose_next_request_waits_to_be_read_is_not_closed() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        first, second = [await idle_client(stage) for _ in range(2)]
        first.send(HEAD)
        assert stage.edge.evict_client()
        assert await is_closed(stage, second)
        assert await answered(stage, first)

    play(scene)


def test_client_that_leaves_the_proxy_closes_no_other() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        clients = [await idle_client(stage) for _ in range(2)]
        stage.edge.descriptors.mark = 0
        oldest: Any = next(iter(stage.edge.pool.idle_clients))
        assert oldest._return_for_routing(b"", 60.0)
        await until(lambda: stage.waiting)
        for client in clients:
            assert await ask(stage, client)
        assert not stage.edge.evicted

    play(scene, max_connections=2)


def test_client_that_has_not_taken_its_response_is_not_closed() -> None:
    size = 60_000

    async def large(backend: Backend, wire: Wire) -> None:
        await backend.request(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(size))
        await wire.some()

    async def scene(stage: Stage) -> None:
        await stage.route(large)
        # Most of the response stays in the gateway.
        stage.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        with client:
            await stage.edge.loop.sock_connect(client, stage.listener.getsockname())
            await stage.edge.loop.sock_sendall(client, HEAD)
            await until(lambda: len(stage.edge.pool.clients) == len(stage.edge.pool.idle_clients) == 1)
            assert not stage.edge.evict_client()
            received = b""
            while not received.endswith(bytes(size)):
                received += await stage.edge.loop.sock_recv(client, 65536)

    play(scene)


def test_idle_clients_make_room_before_the_last_descriptors_are_in_use() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        first, second = [await idle_client(stage) for _ in range(2)]
        stage.edge.descriptors = DescriptorLimits(2**20)
        stage.edge.descriptors.mark = lowest_free() + 2  # the client's and the gateway's
        third = await idle_client(stage)
        assert not stage.edge.evicted
        await idle_client(stage)
        assert await is_closed(stage, first)
        assert await ask(stage, second)
        await idle_client(stage)
        assert await is_closed(stage, third)
        ((kind, event),) = stage.events
        assert kind == "gateway short of descriptors"
        assert event["message"].endswith(": idle ones are closed for new ones")

    play(scene)


def test_backends_leave_descriptors_for_the_orders_of_the_supervisor() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        client = await stage.connect()
        await until(lambda: stage.waiting)
        limit = stage.edge.descriptors
        limit.mark, limit.limit = 0, lowest_free() + 10
        await stage.edge.loop.sock_sendall(client, HEAD)
        assert (await stage.read_head(client)).startswith(b"HTTP/1.1 503 ")
        assert not backend.connections

    play(scene)


def test_silent_client_makes_room_before_an_idle_one_and_that_before_an_idle_backend() -> None:
    async def scene(stage: Stage) -> None:
        backend = await stage.route(ok)
        idle = await idle_client(stage)
        silent = await stage.connect()
        await until(lambda: stage.waiting)
        assert stage.edge.evict()
        assert await is_closed(stage, silent)
        assert stage.edge.evict()
        assert await is_closed(stage, idle)
        assert stage.edge.pool._idle
        assert stage.edge.evict()
        assert not stage.edge.evict()
        assert await idle_client(stage)
        assert backend.connections == 2

    play(scene)


def test_new_client_is_answered_when_no_descriptor_is_left() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok)
        idle = [await idle_client(stage) for _ in range(3)]
        late = socket.socket()
        late.setblocking(False)
        with no_descriptors_left():
            await stage.edge.loop.sock_connect(late, stage.listener.getsockname())
            assert await ask(stage, late)
        assert await is_closed(stage, idle[0])
        late.close()

    play(scene)


def test_connection_to_a_backend_gets_the_descriptor_of_an_idle_client() -> None:
    async def scene(stage: Stage) -> None:
        first = await stage.backend(ok)
        with socket.create_server(("127.0.0.1", 0)) as second:
            port = second.getsockname()[1]
            other = Route(alias="other", host="other", to=(Target(url=f"http://127.0.0.1:{port}"),))
            stage.routes(route(first), other)
            idle, client = [await idle_client(stage) for _ in range(2)]
            # Idle backends are not needed for it; accepting as well would take one more here.
            with no_descriptors_left():
                await stage.edge.loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: other\r\n\r\n")
                assert await is_closed(stage, idle)
                await until(lambda: select.select([second], [], [], 0)[0])
            accepted, _ = second.accept()
            with accepted:
                accepted.setblocking(False)
                assert await stage.edge.loop.sock_recv(accepted, 1000)
                accepted.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
                assert await answered(stage, client)

    play(scene)


def test_backend_is_not_blamed_for_a_descriptor_that_is_missing() -> None:
    async def scene(stage: Stage) -> None:
        await stage.route(ok, breaker=BreakerRule(failures=1, open_seconds=60.0))
        client = await stage.connect()
        await until(lambda: stage.waiting)
        with no_descriptors_left():
            await stage.edge.loop.sock_sendall(client, HEAD)
            refusal = b""
            while not refusal.endswith(b"503 Service Unavailable\n"):
                refusal += await stage.edge.loop.sock_recv(client, 1000)
        assert b"Retry-After: 1\r\n" in refusal
        assert await ask(stage, client)
        assert stage.edge.counts.route("app").errors == {"refused": 1}

    play(scene)


def settings(**keys: Any) -> GatewaySettings:
    return GatewaySettings(**{"directory": "/", **keys})


def with_edge(scene: Callable[[GatewayState, list[tuple[str, Table]]], None], **keys: Any) -> None:
    """Call it with the state of a gateway's process, and the events that it reports."""

    async def work() -> None:
        reported: list[tuple[str, Table]] = []
        edge = GatewayState(settings(**keys), lambda kind, data: reported.append((kind, data)))
        try:
            scene(edge, reported)
        finally:
            edge.close()

    asyncio.run(work())


def test_event_that_comes_at_any_rate_is_reported_every_ten_seconds() -> None:
    def scene(edge: GatewayState, reported: list[tuple[str, Table]]) -> None:
        now = 100.0
        edge.now = lambda: now  # type: ignore[method-assign]
        for now in (100.0, 100.0, 109.9, 110.0, 119.9):
            edge.throttled_event("short", at=now)
            edge.throttled_event("other", at=now)
        assert [data["at"] for kind, data in reported if kind == "short"] == [100.0, 110.0]
        assert len(reported) == 4
        edge.event("short", at=1)
        assert reported[-1] == ("short", {"at": 1})

    with_edge(scene)


def test_eviction_is_counted_and_reported() -> None:
    def scene(edge: GatewayState, reported: list[tuple[str, Table]]) -> None:
        assert not edge.evict()
        assert edge.evicted == 0
        (event,) = reported
        assert event[0] == "gateway short of descriptors"
        assert event[1]["message"].endswith(
            f"nearly all {edge.descriptors.limit} descriptors of the gateway: new ones have to wait, as none is idle"
        )
        reported.clear()
        edge._reported.clear()
        edge.pool.close_idle_backend = lambda: True  # type: ignore[method-assign]
        assert edge.evict()
        assert (edge.evicted, edge.evict_client()) == (1, False)
        assert reported[0][1]["message"].endswith("idle ones are closed for new ones")
        assert edge.snapshot()["evicted"] == 1

    with_edge(scene)


def test_access_log_is_opened_kept_and_closed_as_the_settings_say(tmp_path: Path) -> None:
    def scene(edge: GatewayState, _: object) -> None:
        path = str(tmp_path / "access.log")
        edge.configure(settings())
        assert edge.access_log is None
        edge.configure(settings(access_log=path))
        first = edge.access_log
        assert first is not None
        edge.configure(settings(access_log=path))
        assert edge.access_log is first
        edge.configure(settings(access_log=f"{path}.2"))
        assert edge.access_log is not None
        assert edge.access_log.path == f"{path}.2"
        edge.configure(settings())
        assert edge.access_log is None

    with_edge(scene)


class CountingPart:
    """A feature's part that records what it is told."""

    def __init__(self, edge: GatewayState, its: Table) -> None:
        self.told: list[object] = [its]

    def configure(self, its: Table) -> None:
        self.told.append(its)

    def request_arrived(self, route: Route) -> None:
        self.told.append(route.alias)

    def snapshot(self) -> Table:
        return {"told": len(self.told)}

    def drain(self) -> None:
        self.told.append("drain")

    def close(self) -> None:
        self.told.append("close")


def test_hosts_follow_the_settings() -> None:
    def scene(edge: GatewayState, _: object) -> None:
        edge.configure(settings(traffic_re_enable_seconds=11.0, header_for_host="X-Host"))
        assert (edge.hosts.re_enable_seconds, edge.hosts.header_for_host) == (11.0, "X-Host")

    with_edge(scene)


def test_parts_of_features_exist_as_long_as_they_have_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    feature = Feature(package="poolctl.features.some", gateway="part:CountingPart")
    monkeypatch.setattr(edge_module, "features", lambda: (Feature(package="features.other"), feature))
    monkeypatch.setitem(sys.modules, "poolctl.features.some.part", sys.modules[__name__])

    def scene(edge: GatewayState, _: object) -> None:
        edge.configure(settings(parts={"poolctl.features.some": {"a": 1}}))
        part: Any = edge.parts["poolctl.features.some"]
        edge.configure(settings(parts={"poolctl.features.some": {"a": 2}}))
        assert edge.parts == {"poolctl.features.some": part}
        assert edge.snapshot()["parts"] == {"poolctl.features.some": {"told": 2}}
        edge.drain_connections()
        assert edge.draining
        edge.configure(settings())
        assert part.told == [{"a": 1}, {"a": 2}, "drain", "close"]
        assert edge.parts == {}
        assert "parts" not in edge.snapshot()

    with_edge(scene)


def test_connections_are_kept_unless_the_gateway_drains_or_keeps_none() -> None:
    def scene(edge: GatewayState, _: object) -> None:
        assert edge.keeps_connections
        edge.drain_connections()
        assert not edge.keeps_connections

    with_edge(scene)
    with_edge(lambda edge, _: none_is_kept(edge), keep_alive_seconds=0.0)


def none_is_kept(edge: GatewayState) -> None:
    assert not edge.keeps_connections


@pytest.mark.parametrize(
    ("proxies", "trusted"), [((), False), (("10.0.0.0/8",), True), (("10.1.0.0/16",), False)]
)
def test_proxies_of_the_settings_are_trusted(proxies: tuple[str, ...], trusted: bool) -> None:
    def scene(edge: GatewayState, _: object) -> None:
        assert edge.is_trusted("10.0.0.1") is trusted

    with_edge(scene, trusted_proxies=proxies)


def test_machine_is_put_and_dropped_as_reported() -> None:
    def scene(edge: GatewayState, _: object) -> None:
        host = "http://10.0.0.1:80"
        edge.update_machine({"host": host, "state": "stopped"})
        assert host in edge.machines
        edge.update_machine({"host": host, "state": ""})
        assert host not in edge.machines

    with_edge(scene)


def test_snapshot_has_the_present_numbers() -> None:
    def scene(edge: GatewayState, _: object) -> None:
        found = edge.snapshot()
        assert (found["connections"], found["waiting"], found["hosts"], found["queues"]) == (0, 0, [], {})
        edge.pool.add_client(Client(), idle=False)
        assert edge.snapshot()["connections"] == 1

    with_edge(scene)
