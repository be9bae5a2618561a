"""A gateway's streams on one event loop, with real sockets and backends, and a clock that can be moved by hand."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from typing import Any

import pytest
import uvloop

from poolctl.features.gateway.process.backends.backends import Backends
from poolctl.features.gateway.process.backends.hosts import HostStates
from poolctl.features.gateway.process.descriptor_limit import DescriptorLimits, StreamDescriptorLimit
from poolctl.features.gateway.process.passing import ConnectionSender
from poolctl.features.gateway.process.settings import GatewaySettings, ServerFacts
from poolctl.features.gateway.process.streams.tcp import TcpStream
from poolctl.features.gateway.process.streams.udp import UdpStream
from poolctl.routing.decision import is_within
from poolctl.routing.route import StreamRoute, Target

SECONDS = 60.0

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture
def run() -> Run:
    """Runs a coroutine on the gateway's loop."""

    def run_it(work: Coroutine[Any, Any, None]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(SECONDS):
                await work
                for _ in range(5):  # transports close some iterations of the loop later
                    await asyncio.sleep(0)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(limited())

    return run_it


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Wait for a condition; the test's deadline ends it."""
    while not condition():
        await asyncio.sleep(0.002)


class StreamEdge:
    """What a stream uses of the gateway."""

    def __init__(self, servers: Mapping[str, ServerFacts] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        self.moved_seconds = 0.0
        self.hosts = HostStates(self.now)
        self.backends = Backends(self.hosts, self.now)
        self.servers = dict(servers or {})
        self.passing = ConnectionSender(lambda kind, **data: None)
        self.descriptors = DescriptorLimits()
        self.stream_share = StreamDescriptorLimit(self.descriptors)
        self.settings = GatewaySettings(directory="/", head_seconds=60.0)

    def now(self) -> float:
        return self.loop.time() + self.moved_seconds

    def evict(self) -> bool:
        """There is nothing but the streams."""
        return False

    def is_trusted(self, peer: str) -> bool:
        return is_within(peer, self.settings.trusted_proxies)

    def use(self, *routes: StreamRoute) -> None:
        self.backends.apply(routes, self.servers)


def listening(host: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> socket.socket:
    """A socket as the pool opens it, on a port of the kernel's choice."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, kind)
    sock.bind((host, 0))
    if kind == socket.SOCK_STREAM:
        sock.listen(100)
    sock.setblocking(False)
    return sock


@contextlib.contextmanager
def closed_port(kind: int = socket.SOCK_STREAM) -> Iterator[int]:
    """A port that refuses: it is bound, so that no other process gets it, and does not listen."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_DGRAM:
            sock.connect(("127.0.0.1", sock.getsockname()[1]))  # accepts datagrams from there only
        yield sock.getsockname()[1]


def a_route(*targets: int | str, protocol: str = "tcp", **keys: Any) -> StreamRoute:
    """A route to these ports of this machine, or these addresses; the first that is available is used."""
    to = tuple(Target(url=f"127.0.0.1:{each}" if isinstance(each, int) else each) for each in targets)
    return StreamRoute(
        **{"alias": "db", "bind": "", "to": to, "protocol": protocol, "policy": "first", **keys}
    )


@contextlib.asynccontextmanager
async def tcp(route: StreamRoute, edge: StreamEdge | None = None) -> AsyncIterator[tuple[TcpStream, int]]:
    """The stream in service, and its port."""
    edge = edge or StreamEdge()
    edge.use(route)
    with listening() as listener:
        stream = TcpStream(edge, [listener], route)  # type: ignore[arg-type]
        try:
            yield stream, listener.getsockname()[1]
        finally:
            await stream.drain(0)


@contextlib.asynccontextmanager
async def udp(
    route: StreamRoute, edge: StreamEdge | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[tuple[UdpStream, int]]:
    """Likewise for datagrams."""
    edge = edge or StreamEdge()
    edge.use(route)
    with listening(host, socket.SOCK_DGRAM) as sock:
        stream = UdpStream(edge, [sock], route)  # type: ignore[arg-type]
        try:
            yield stream, sock.getsockname()[1]
        finally:
            await stream.drain(0)
